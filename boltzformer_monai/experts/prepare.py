"""Scans as the network sees them: resampled, normalised, and kept in files of which patches read what they need."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.experts.plan import Fingerprint, Plan
from boltzformer_monai.experts.scans import Scan, Stack, read_stack
from boltzformer_monai.storage import replacing, write_json, writing

__all__ = ["Prepared", "normalised", "prepare", "resampled", "take_fingerprint"]

_SAMPLE = 10_000  # voxels of the targets per scan, for intensities and for centres of patches
_THICK = 3.0  # times as coarse as the finest spacing: such slices are interpolated each by itself
_READY = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """A prepared scan on disk.

    Attributes:
        folder: of all of them.
        name: of the scan's volume.
    """

    folder: Path
    name: str

    def image(self) -> np.ndarray:
        """``(N, H, W)`` float32, mapped."""
        return np.load(self.folder / f"{self.name}.image.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def masks(self) -> np.ndarray:
        """``(C, N, H, W)`` bool, mapped."""
        return np.load(self.folder / f"{self.name}.masks.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def centres(self) -> list[np.ndarray]:
        """Voxels ``(M, 3)`` of every target that is there, at most 10,000 each."""
        with np.load(self.folder / f"{self.name}.centres.npz") as arrays:
            return [arrays[name] for name in sorted(arrays.files)]


def take_fingerprint(scans: Sequence[Scan], targets: Sequence[str], *, whole: bool) -> Fingerprint:
    """Read the training scans for planning.

    Args:
        scans: that train.
        targets: whose voxels' intensities are sampled.
        whole: whether volumes are needed.

    Raises:
        BoltzFormerError: a scan cannot be read.
    """
    shapes, spacings, samples = [], [], [np.zeros(0, np.float32)]
    for number, scan in enumerate(tqdm(scans, desc="planning", unit="scan", dynamic_ncols=True, disable=None)):
        stack = read_stack(scan, whole=whole)
        shapes.append((stack.image.shape[0], stack.image.shape[1], stack.image.shape[2]))
        spacings.append(stack.spacing)
        values = stack.image[np.isin(stack.label, [value for name in targets for value in scan.targets[name]])]
        samples.append(np.random.default_rng(number).permutation(values)[:_SAMPLE])
    ct = all(scan.original is not None and scan.entry["modality"] == "CT" for scan in scans)
    return Fingerprint(shapes, spacings, ct, np.concatenate(samples))


def normalised(image: np.ndarray, plan: Plan) -> np.ndarray:
    """Grey values of a scan for the network, float32."""
    if plan.hounsfield:
        return ((np.clip(image, plan.low, plan.high) - plan.mean) / plan.std).astype(np.float32)
    return ((image - image.mean()) / max(float(image.std()), 1e-8)).astype(np.float32)


def resampled(image: np.ndarray, shape: Sequence[int], *, smooth: bool, thick: bool) -> np.ndarray:
    """An array ``(N, H, W)`` at another number of voxels over the same space.

    Args:
        image: float32.
        shape: wanted.
        smooth: cubic splines instead of linear interpolation.
        thick: whether slices are so thick that the nearest one is taken instead of an interpolation between two.
    """
    if image.shape == tuple(shape):
        return image
    inplane = (image.shape[0] if thick else shape[0], shape[1], shape[2])
    if smooth:
        from scipy import ndimage

        factors = [new / old for new, old in zip(inplane, image.shape, strict=True)]
        found = ndimage.zoom(image, factors, order=3, mode="nearest", grid_mode=True)
    else:
        volume = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
        found = F.interpolate(volume, size=inplane, mode="trilinear", align_corners=False)[0, 0].numpy()
    if found.shape[0] != shape[0]:
        nearest = ((np.arange(shape[0]) + 0.5) * found.shape[0] / shape[0]).astype(np.int64)
        found = found[nearest]
    return np.ascontiguousarray(found, np.float32)


def new_shape(stack: Stack, plan: Plan) -> tuple[int, int, int]:
    """Voxels of a stack at the plan's spacing; 2-D keeps its slices."""
    old, spacing = stack.image.shape, stack.spacing
    wanted = [max(1, round(old[axis] * spacing[axis] / plan.spacing[axis])) for axis in range(3)]
    return old[0] if plan.dimensions == 2 else wanted[0], wanted[1], wanted[2]


def is_thick(stack: Stack, plan: Plan) -> bool:
    """Whether nothing is interpolated between slices."""
    return plan.dimensions == 2 or any(each[0] > _THICK * min(each) for each in (stack.spacing, plan.spacing))


def prepare(scans: Sequence[Scan], plan: Plan, folder: Path) -> list[Prepared]:
    """Prepare scans on disk; those that an earlier run of the same plan and dataset prepared are kept.

    Args:
        scans: that annotate all targets of the plan.
        plan: of the expert.
        folder: for the files; other content of it is removed.

    Raises:
        BoltzFormerError: a scan cannot be read, or the folder not be written.
    """
    entries = {scan.volume: scan.entry for scan in scans}
    text = json.dumps([plan.as_dict(), entries], sort_keys=True, default=str)
    made = {"made of": hashlib.sha256(text.encode()).hexdigest()}
    with writing(folder, much_else=True):
        if not _is_of(folder, made):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(folder / _READY, made)
        return [
            _prepare(scan, plan, folder)
            for scan in tqdm(scans, desc="preparing", unit="scan", dynamic_ncols=True, disable=None)
        ]


def _is_of(folder: Path, made: dict[str, str]) -> bool:
    try:
        return bool(json.loads((folder / _READY).read_text(encoding="utf-8")) == made)
    except (OSError, ValueError):
        return False


def _prepare(scan: Scan, plan: Plan, folder: Path) -> Prepared:
    prepared = Prepared(folder, scan.volume)
    if (folder / f"{scan.volume}.centres.npz").exists():  # written last
        return prepared
    stack = read_stack(scan, whole=plan.dimensions == 3)
    shape, thick = new_shape(stack, plan), is_thick(stack, plan)
    image = resampled(normalised(stack.image, plan), shape, smooth=True, thick=thick)
    masks = np.empty((len(plan.targets), *shape), bool)
    for mask, target in zip(masks, plan.targets, strict=True):
        drawn = np.isin(stack.label, scan.targets[target]).astype(np.float32)
        mask[...] = resampled(drawn, shape, smooth=False, thick=thick) >= 0.5
    chosen = {}
    for number, mask in enumerate(masks):
        places = np.flatnonzero(mask)
        if len(places):
            few = np.random.default_rng(number).permutation(places)[:_SAMPLE]
            chosen[f"{number:04d}"] = np.stack(np.unravel_index(few, shape), axis=1).astype(np.int32)
    for name, array in (("image", image), ("masks", masks)):
        with replacing(folder / f"{scan.volume}.{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
    with replacing(folder / f"{scan.volume}.centres.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **chosen)
    return prepared


def require_targets(scans: Sequence[Scan], targets: Sequence[str], *, what: str) -> list[Scan]:
    """The scans that annotate all targets: what is not annotated is neither there nor absent.

    Raises:
        DatasetError: there are none.
    """
    kept = [scan for scan in scans if set(targets) <= set(scan.targets)]
    if not kept:
        names = ", ".join(targets)
        raise DatasetError(f"no {what} scan of the dataset annotates {names}; train an expert for fewer --target")
    return kept
