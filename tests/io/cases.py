"""A volume in which every voxel, axis and spacing differs, and all orientations it can be stored in."""

from __future__ import annotations

import itertools

import numpy as np

from boltzformer_monai.io import Volume

ORIENTATIONS = [
    "".join(pairs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for pairs in itertools.product("LR", "PA", "IS")
]
TILT = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


def make_volume(*, tilt: np.ndarray | None = None) -> Volume:
    """Return a small RAS volume, every voxel different, every axis of another length and spacing."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if tilt is None else tilt) * (0.7, 0.9, 3.0)
    affine[:3, 3] = (-101.25, 33.1, -7.3)
    return Volume(np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5), affine, modality="CT", source="made here")
