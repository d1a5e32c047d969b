"""Augmentation of image and label map: the paper's (A.5), and two for training from random weights."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import RandAdjustContrastd, RandGaussianNoised, RandomizableTransform
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError

KEYS = ("image", "label_map")


class RandRotateCropd(RandomizableTransform):
    """With probability ``prob``: rotate by a multiple of 90° (uniform), then crop with shifted centre and scaled size.

    Resamples once, which MONAI's transforms cannot do with a joint probability and label maps of another size than the
    image. Images are bilinear, label maps nearest neighbour, zeros outside; an object that falls between the new
    pixels of the label map keeps the one that shows most of it.

    Args:
        prob: probability that an example is transformed (paper: 0.5).
        rotations: multiples of 90° to choose from (paper: 0, 1, 2, 3).
        shift: largest shift of the centre as a fraction of the edge (paper: 0.1), uniform, per axis.
        scale: largest change of the crop's edge as a fraction (paper: 0.1), uniform.
        angle: largest additional rotation in degrees, uniform (paper: 0).
    """

    def __init__(
        self,
        *,
        prob: float = 0.5,
        rotations: Sequence[int] = (0, 1, 2, 3),
        shift: float = 0.1,
        scale: float = 0.1,
        angle: float = 0.0,
    ) -> None:
        super().__init__(prob)
        if not rotations or not 0 <= shift < 1 or not 0 <= scale < 1:
            msg = f"rotations must not be empty, shift and scale in [0, 1); got {rotations}, {shift}, {scale}"
            raise ConfigError(msg)
        self.rotations = tuple(rotations)
        self.shift = shift
        self.scale = scale
        self.angle = angle

    def randomize(self, data: Any = None) -> None:
        """Sample the transform."""
        super().randomize(None)
        quarter = self.rotations[self.R.randint(len(self.rotations))]
        self._turn = quarter * np.pi / 2 + np.deg2rad(self.R.uniform(-self.angle, self.angle))
        self._zoom = 1 + self.R.uniform(-self.scale, self.scale)
        self._centre = self.R.uniform(-self.shift, self.shift, 2) * 2  # the grid runs from −1 to 1

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Transform ``image`` and, if present, ``label_map``, both ``(C, H, W)``."""
        out = dict(data)
        self.randomize()
        if not self._do_transform:
            return out
        cos, sin = np.cos(self._turn) * self._zoom, np.sin(self._turn) * self._zoom
        matrix = torch.tensor([[cos, -sin, self._centre[0]], [sin, cos, self._centre[1]]], dtype=torch.float32)
        for key, mode in zip(KEYS, ("bilinear", "nearest"), strict=True):
            if key in out:
                before = torch.as_tensor(out[key])
                out[key] = _resample(before, matrix, mode)
                if key == "label_map":
                    _keep_small(out[key], before, matrix)
        return out


def _keep_small(after: Tensor, before: Tensor, matrix: Tensor) -> None:
    """Put back labels that the image still shows and no pixel is nearest to: they would be trained as absent."""
    counts = [torch.bincount(each.flatten().long()) for each in (before, after)]
    for value in counts[0].nonzero().flatten().tolist():
        if value and (value >= len(counts[1]) or not counts[1][value]):
            share = _resample((before == value).to(torch.float32), matrix, "bilinear") * (after == 0)
            if share.max() > 0:  # else it left the picture
                after.view(-1)[share.argmax()] = value


def _resample(x: Tensor, matrix: Tensor, mode: str) -> Tensor:
    grid = F.affine_grid(matrix[None], [1, *x.shape], align_corners=False)
    return F.grid_sample(x[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]


class RandIntensityd(RandomizableTransform):
    """With probability ``prob``: image ← image · (1 ± contrast) ± brightness, uniform, clipped to 0–1.

    A single transform instead of three of MONAI's, for the joint probability.
    """

    def __init__(self, *, prob: float = 0.5, contrast: float = 0.2, brightness: float = 0.1) -> None:
        super().__init__(prob)
        self.contrast = contrast
        self.brightness = brightness

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Transform ``image`` ``(C, H, W)`` in 0–1."""
        out = dict(data)
        self.randomize(None)
        if self._do_transform:
            gain = 1 + self.R.uniform(-self.contrast, self.contrast)
            offset = self.R.uniform(-self.brightness, self.brightness)
            out["image"] = (torch.as_tensor(out["image"]) * gain + offset).clamp(0, 1)
        return out


def paper_augmentation() -> list[RandomizableTransform]:
    """A.5: with probability ½ a rotation by 0/90/180/270° and a crop with ±10 % shift and scale."""
    return [RandRotateCropd()]


def light_augmentation() -> list[RandomizableTransform]:
    """Small rotations and shifts: for training from random weights, where flipped patients do more harm than good."""
    return [RandRotateCropd(prob=0.8, rotations=(0,), shift=0.05, scale=0.1, angle=10.0), RandIntensityd()]


def strong_augmentation() -> list[RandomizableTransform]:
    """Wider rotations and scales, gamma and noise, about nnU-Net's: for long trainings on few patients."""
    return [
        RandRotateCropd(prob=0.9, rotations=(0,), shift=0.08, scale=0.2, angle=20.0),
        RandIntensityd(prob=0.5, contrast=0.3, brightness=0.15),
        RandAdjustContrastd(keys="image", prob=0.3, gamma=(0.7, 1.5)),
        RandGaussianNoised(keys="image", prob=0.15, std=0.05),
    ]
