"""A body of ellipsoids with lesions, on any grid and anywhere in space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boltzformer_monai.io.volume import Volume
from tests.findings.test_lesions import rotation

Lesion = tuple[tuple[float, float, float], float]
"""Centre in the body, radius; in mm."""


def rigid(angles: Sequence[float], shift: Sequence[float]) -> np.ndarray:
    """(4, 4): the body's coordinates → the world's."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(*angles)
    matrix[:3, 3] = shift
    return matrix


def body(
    lesions: Sequence[Lesion],
    *,
    place: np.ndarray,
    spacing: Sequence[float] = (3.0, 3.0, 4.0),
    patient: int = 0,
    size_mm: Sequence[float] = (260, 220, 200),
    noise: float = 8,
    modality: str = "CT",
) -> tuple[Volume, np.ndarray]:
    """A scan of a patient in HU, and its lesions' mask (I, J, K) bool."""
    random = np.random.default_rng(patient)
    shape = [round(length / mm) for length, mm in zip(size_mm, spacing, strict=True)]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.array(spacing) * (np.array(shape) - 1) / 2
    world = np.stack(np.indices(shape), -1) @ affine[:3, :3].T + affine[:3, 3]
    back = np.linalg.inv(place)
    points = world @ back[:3, :3].T + back[:3, 3]
    array = np.full(shape, -1000.0)
    array[_inside(points, (0, 0, 0), (100, 75, 140))] = 0
    array[_inside(points, (45, 10, 40), (35, 45, 60))] = -800
    array[_inside(points, (-48, 5, 35), (33, 48, 65))] = -800
    array[_inside(points, (0, -55, 0), (14, 14, 140))] = 400
    for _ in range(8):
        centre, half = random.uniform(-60, 60, 3) * (1, 0.6, 1), random.uniform(10, 26, 3)
        array[_inside(points, centre, half)] = random.uniform(-60, 200)
    mask = np.zeros(shape, bool)
    for centre, radius in lesions:
        mask |= _inside(points, centre, (radius,) * 3)
    array[mask] = 70
    array += np.random.default_rng(len(lesions)).normal(0, noise, shape)
    return Volume(array.astype(np.float32), affine, modality), mask


def _inside(points: np.ndarray, centre: Sequence[float] | np.ndarray, half: Sequence[float] | np.ndarray) -> np.ndarray:
    return (((points - np.asarray(centre)) / np.asarray(half)) ** 2).sum(-1) <= 1
