"""Patches of prepared scans, augmented as nnU-Net does by MONAI's transforms.

nnU-Net's own interpolate rotated images by cubic splines; here it is linear, and nearest for masks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Affine,
    Compose,
    MapTransform,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandSimulateLowResolutiond,
)
from torch import Tensor
from torch.utils.data import Dataset

from boltzformer_monai.experts.plan import Plan
from boltzformer_monai.experts.prepare import Prepared
from boltzformer_monai.experts.settings import ExpertSettings

__all__ = ["FixedPatches", "RandPatch", "training_transform"]

_TURN, _RESIZE = 0.2, 0.2  # probabilities
_SCALES = (0.7, 1.4)
_FLAT = 3.0  # a patch this much longer than thick is turned in its slices only
_MARGIN = 0.35  # of the patch, on either side: what a turned or enlarged patch may reach


class RandPatch(Randomizable):
    """A patch at a random place of a prepared scan; a share of them are centred on a voxel of a random target.

    Beyond the scan there are zeros, the mean of its normalised voxels.

    Args:
        plan: of the expert.
        foreground: share that is centred on a target.
        augment: whether patches are turned and resized.
    """

    def __init__(self, plan: Plan, *, foreground: float, augment: bool) -> None:
        self.plan = plan
        self.foreground = foreground
        self.augment = augment
        self.size = np.asarray((1,) * (3 - plan.dimensions) + plan.patch)

    def randomize(self, data: Any = None) -> None:
        """Unused: what is drawn depends on the scan."""

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """``{"scan": Prepared}`` → ``image`` ``(1, *patch)`` and ``label`` ``(C, *patch)``, float32."""
        scan: Prepared = example["scan"]
        image, masks = scan.image(), scan.masks()
        start = self._place(np.asarray(image.shape), scan)
        angles, scale = self._pose()
        margin = np.zeros(3, np.int64)
        if angles or scale != 1:
            margin[-self.plan.dimensions :] = np.ceil(_MARGIN * self.size[-self.plan.dimensions :])
        window = (start - margin, self.size + 2 * margin)
        parts = {"image": _window(image[None], *window), "label": _window(masks, *window).astype(np.float32)}
        found = {name: torch.from_numpy(part) for name, part in parts.items()}
        if self.plan.dimensions == 2:
            found = {name: part[:, 0] for name, part in found.items()}
        if angles or scale != 1:
            turn = Affine(
                rotate_params=angles or None, scale_params=(scale,) * self.plan.dimensions,
                spatial_size=self.plan.patch, padding_mode="zeros", image_only=True,
            )  # fmt: skip
            modes = {"image": "bilinear", "label": "nearest"}
            found = {name: _plain(turn(part, mode=modes[name])) for name, part in found.items()}
        return found

    def _place(self, shape: np.ndarray, scan: Prepared) -> np.ndarray:
        """Where the patch starts, which may be outside of a scan that is smaller."""
        lacking = np.maximum(self.size - shape, 0)
        low, high = -(lacking // 2), shape - self.size + (lacking - lacking // 2)
        if self.R.random() < self.foreground and (targets := scan.centres()):
            places = targets[self.R.randint(len(targets))]
            wanted = places[self.R.randint(len(places))] - self.size // 2
            return np.clip(wanted, low, high)
        return self.R.randint(low, high + 1)

    def _pose(self) -> tuple[tuple[float, ...] | float | tuple[()], float]:
        """Angles (none: not turned) and scale."""
        if not self.augment:
            return (), 1.0
        dimensions, patch = self.plan.dimensions, self.plan.patch
        angles: tuple[float, ...] | float = ()
        if self.R.random() < _TURN:
            if dimensions == 2 or max(patch) > _FLAT * patch[0]:
                angle = self.R.uniform(-np.pi, np.pi)
                angles = angle if dimensions == 2 else (angle, 0.0, 0.0)
            else:
                angles = tuple(self.R.uniform(-np.pi / 6, np.pi / 6, 3))
        scale = 1.0
        if self.R.random() < _RESIZE:
            scale = self.R.uniform(*((_SCALES[0], 1.0) if self.R.random() < 0.5 else (1.0, _SCALES[1])))
        return angles, scale


class FixedPatches(Dataset[dict[str, Tensor]]):
    """The same patches in every validation.

    Args:
        scans: prepared ones, taken in turn.
        count: of patches.
        plan: of the expert.
        foreground: share that is centred on a target.
    """

    def __init__(self, scans: Sequence[Prepared], *, count: int, plan: Plan, foreground: float) -> None:
        self.scans = scans
        self.count = count
        self.patch = RandPatch(plan, foreground=foreground, augment=False)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``image`` and ``label``."""
        self.patch.set_random_state(seed=index)
        return self.patch({"scan": self.scans[index % len(self.scans)]})


class _Plain(MapTransform):
    """Tensors without MONAI's records of what was done to them."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {key: _plain(data[key]).contiguous() for key in self.keys}


def training_transform(plan: Plan, settings: ExpertSettings) -> Compose:
    """``{"scan": Prepared}`` → ``image`` and ``label``, augmented."""
    patch = RandPatch(plan, foreground=settings.foreground, augment=settings.augmentation)
    keys, image = ("image", "label"), "image"
    flips = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in plan.mirrored]
    if not settings.augmentation:
        return Compose([patch, *flips, _Plain(keys)])
    enlarged = "trilinear" if plan.dimensions == 3 else "bilinear"
    sigma = (0.5, 1.0)
    intensities = [
        RandGaussianNoised(image, prob=0.1, mean=0.0, std=0.1, sample_std=True),
        RandGaussianSmoothd(image, prob=0.2, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
        RandScaleIntensityd(image, prob=0.15, factors=0.25),
        RandScaleIntensityFixedMeand(image, prob=0.15, factors=0.25, fixed_mean=True, preserve_range=True),
        RandSimulateLowResolutiond(image, prob=0.25, zoom_range=(0.5, 1.0), upsample_mode=enlarged),
        RandAdjustContrastd(image, prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
        RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
    ]
    return Compose([patch, *intensities, *flips, _Plain(keys)])


def _window(array: np.ndarray, start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """``(C, *size)`` of an array ``(C, N, H, W)`` from a place that may be outside of it; zeros there."""
    found = np.zeros((len(array), *size), array.dtype)
    low, high = np.maximum(start, 0), np.minimum(start + size, array.shape[1:])
    if (high > low).all():
        source, target = (
            (slice(None), *(slice(int(a), int(b)) for a, b in zip(low - first, high - first, strict=True)))
            for first in (np.zeros_like(start), start)
        )
        found[target] = array[source]
    return found


def _plain(found: Any) -> Tensor:
    tensor: Tensor = found.as_tensor() if hasattr(found, "as_tensor") else found
    return tensor.float()
