"""Bring an earlier scan of a patient to the place of a later one: rigid registration by mutual information."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.volume import Volume

__all__ = ["LEAST_DETAIL", "LEAST_OVERLAP", "LEAST_SIMILARITY", "Registration", "register"]

LEAST_SIMILARITY = {True: 0.6, False: 0.06}
"""For scans of one modality: correlation of their intensities; else the shared part of their information, both 0–1.
Below it a registration is refused."""
LEAST_OVERLAP = 0.1
"""Share of the smaller scan's box that both scans must show."""
LEAST_DETAIL = 0.9
"""Correlation of the intensities within neighbourhoods of a few voxels, where nothing says that two scans of one
modality are of one patient: bodies are alike as a whole, and differ in detail."""
_GRID = 72  # voxels along the longest side of what is registered
_FINEST_MM = 1.5
_BINS = 32
_NEARBY = 7  # voxels along each axis
_TISSUE = 0.25  # of the range of intensities, above air
_WINDOW = {True: 0.2, False: 0.5}  # least width in CT and elsewhere: in a narrower one noise is detail


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the earlier scan's points lie in the later one, and how well the two then agree.

    Attributes:
        matrix: (4, 4), RAS+ mm of the earlier scan → RAS+ mm of the later one.
        method: ``"same frame of reference"`` or ``"rigid, mutual information"``.
        similarity: correlation of the intensities of both scans, or for two modalities the share of their information
            that they have in common; ``None`` where nothing was registered.
        overlap: share of the smaller scan's box that both show; ``None`` likewise.
        detail: for two scans of one modality, the correlation of their intensities within neighbourhoods of a few
            voxels; ``None`` likewise.
        rotation_degrees: of the matrix.
        shift_mm: of the middle of the later scan.
    """

    matrix: np.ndarray
    method: str
    similarity: float | None = None
    overlap: float | None = None
    detail: float | None = None
    rotation_degrees: float = 0.0
    shift_mm: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        numbers = {"rotation_degrees": self.rotation_degrees, "shift_mm": self.shift_mm}
        return {
            "method": self.method,
            "similarity": None if self.similarity is None else round(self.similarity, 4),
            "overlap": None if self.overlap is None else round(self.overlap, 4),
            "detail": None if self.detail is None else round(self.detail, 4),
            **{name: round(value, 3) for name, value in numbers.items()},
            "matrix": [[float(f"{value:.9g}") for value in row] for row in self.matrix],
        }


def register(earlier: Volume, later: Volume, *, same_patient: bool = False) -> Registration:
    """Register two scans rigidly; nothing is done where both state the same frame of reference.

    Args:
        earlier: the one that is moved.
        later: the one that stays.
        same_patient: their headers or the user say that they are of one patient; else they must agree in detail, too.

    Raises:
        VolumeError: the scans do not agree after registration: they show other parts of the body, or other patients.
    """
    if earlier.frame_of_reference and earlier.frame_of_reference == later.frame_of_reference:
        return Registration(np.eye(4), "same frame of reference")
    fixed, moving = _even(later), _even(earlier)
    same = earlier.modality == later.modality
    found, _ = max(
        (_rigid(fixed, moving, start) for start in (_centred(fixed, moving), np.eye(4))), key=lambda each: each[1]
    )
    # Body and air decide that; organs differ by less than one bin of all intensities.
    tissue = [Volume(_tissue(each), each.affine) for each in (fixed, moving)]
    finer, _ = _rigid(tissue[0], tissue[1], found)
    # The optimizer may leave the best place, so the scans where they are compete with what it found.
    candidates = []
    for matrix in (finer, found, np.eye(4)):
        similarity, overlap = _agreement(fixed, moving, matrix, correlated=same)
        detail = _detail(fixed, moving, matrix) if same else None
        candidates.append((overlap >= LEAST_OVERLAP, similarity + (detail or 0.0), similarity, overlap, detail, matrix))
    _, _, similarity, overlap, detail, to_earlier = max(candidates, key=lambda each: each[:2])
    if overlap < LEAST_OVERLAP or similarity < LEAST_SIMILARITY[same]:
        msg = (
            f"the scans do not agree after registration ({'correlation' if same else 'shared information'} "
            f"{similarity:.2f}, at least {LEAST_SIMILARITY[same]:g} is needed; overlap {overlap:.2f} of "
            f"{LEAST_OVERLAP:g}): other parts of the body or other patients? nothing can be matched"
        )
        raise VolumeError(msg, reason="grid")
    if detail is not None and detail < LEAST_DETAIL and not same_patient:
        msg = (
            "the scans look like two patients: after registration they agree as a whole (correlation "
            f"{similarity:.2f}) but not in detail ({detail:.2f}, at least {LEAST_DETAIL:g} is needed), and nothing in "
            "the files states that they are of one; if they are, say --same-patient"
        )
        raise VolumeError(msg, reason="grid")
    matrix = np.linalg.inv(to_earlier)
    middle = np.append(fixed.affine[:3, :3] @ (np.array(fixed.shape) - 1) / 2 + fixed.affine[:3, 3], 1)
    angle = np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))
    return Registration(
        matrix,
        "rigid, mutual information",
        similarity=similarity,
        overlap=overlap,
        detail=detail,
        rotation_degrees=float(np.degrees(angle)),
        shift_mm=float(np.linalg.norm((to_earlier @ middle - middle)[:3])),
    )


def _even(volume: Volume) -> Volume:
    """A scan on a coarse grid of cubes along the patient's axes, its intensities from 0 to 1."""
    from scipy import ndimage

    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in volume.shape], indexing="ij"), -1).reshape(-1, 3)
    corners = corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    step = max(_FINEST_MM, float((high - low).max()) / _GRID)
    shape = np.maximum(1, np.ceil((high - low) / step)).astype(int)
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = low + step / 2
    to_voxel = np.linalg.inv(volume.affine) @ affine
    array = np.asarray(volume.array, np.float32)
    limits = (-1000.0, 1000.0) if volume.modality == "CT" else tuple(np.percentile(array[::2, ::2, ::2], (1, 99.5)))
    array = np.clip((array - limits[0]) / max(limits[1] - limits[0], 1e-6), 0, 1)
    # Against aliasing
    array = ndimage.gaussian_filter(array, [0.5 * max(0.0, step / mm - 1) for mm in volume.spacing])
    even = ndimage.affine_transform(
        array, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=tuple(shape), order=1, mode="constant", cval=0.0
    )
    return Volume(even, affine, volume.modality)


def _itk(volume: Volume) -> Any:
    """As an image of SimpleITK, whose millimetres are those of RAS+ here."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.affine[:3, 3].tolist())
    return image


def _centred(fixed: Volume, moving: Volume) -> np.ndarray:
    """The shift that brings the centres of mass on each other."""
    from scipy import ndimage

    matrix = np.eye(4)
    centres = [
        each.affine[:3, :3] @ np.array(ndimage.center_of_mass(each.array)) + each.affine[:3, 3]
        for each in (fixed, moving)
        if each.array.any()
    ]
    if len(centres) == 2:
        matrix[:3, 3] = centres[1] - centres[0]
    return matrix


def _rigid(fixed: Volume, moving: Volume, start: np.ndarray) -> tuple[np.ndarray, float]:
    """The matrix from points of ``fixed`` to points of ``moving``, and their mutual information.

    Args:
        fixed: of :func:`_even`.
        moving: of :func:`_even`.
        start: the matrix to begin with.
    """
    import SimpleITK as sitk

    images = _itk(fixed), _itk(moving)
    centre = fixed.affine[:3, :3] @ (np.array(fixed.shape) - 1) / 2 + fixed.affine[:3, 3]
    transform = sitk.Euler3DTransform()
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(start[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation((start[:3, :3] @ centre + start[:3, 3] - centre).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.5)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 150, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([3, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
    method.SetInitialTransform(transform, inPlace=True)
    method.SetNumberOfThreads(1)  # several add up in any order, and the same scans must give the same result
    try:
        method.Execute(*images)
    except RuntimeError:  # ITK: no sample of one lies in the other
        return np.eye(4), -np.inf
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = centre + np.array(transform.GetTranslation()) - matrix[:3, :3] @ centre
    return matrix, -float(method.GetMetricValue())


def _agreement(fixed: Volume, moving: Volume, matrix: np.ndarray, *, correlated: bool) -> tuple[float, float]:
    """(similarity, overlap) where both scans show something."""
    from scipy import ndimage

    to_voxel = np.linalg.inv(moving.affine) @ matrix @ fixed.affine
    moved = ndimage.affine_transform(
        moving.array, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=fixed.shape, order=1, mode="constant", cval=-1.0
    )
    both = moved >= 0
    overlap = float(both.sum()) / min(both.size, moving.array.size * moving.spacing[0] ** 3 / fixed.spacing[0] ** 3)
    one, other = fixed.array[both], moved[both]
    if len(one) < _BINS or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0, overlap
    if correlated:
        return float(np.corrcoef(one, other)[0, 1]), overlap
    joint = np.histogram2d(one, other, _BINS)[0] / len(one)
    entropies = [-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (joint, joint.sum(axis=0), joint.sum(axis=1))]
    shared = entropies[1] + entropies[2] - entropies[0]
    return 2 * shared / max(entropies[1] + entropies[2], 1e-9), overlap


def _detail(fixed: Volume, moving: Volume, matrix: np.ndarray) -> float:
    """Covariance of the intensities of both scans in the neighbourhood of each voxel, by their variances there."""
    from scipy import ndimage

    to_voxel = np.linalg.inv(moving.affine) @ matrix @ fixed.affine
    moved, shown = (
        ndimage.affine_transform(
            array, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=fixed.shape, order=1, mode="constant", cval=0.0
        )
        for array in (_tissue(moving), np.ones(moving.shape, np.float32))
    )
    both = ndimage.binary_erosion(shown > 0.99)

    def nearby(values: np.ndarray) -> np.ndarray:
        total = ndimage.uniform_filter(np.where(both, values, 0), _NEARBY, output=np.float64, mode="constant")
        return np.asarray(total)[both]

    one, other = _tissue(fixed).astype(np.float64), moved.astype(np.float64)
    share = nearby(np.ones(fixed.shape))
    means = nearby(one) / share, nearby(other) / share
    common, own, others = (
        float((nearby(product) / share - mean).sum())
        for product, mean in (
            (one * other, means[0] * means[1]),
            (one * one, means[0] ** 2),
            (other * other, means[1] ** 2),
        )
    )
    return common / math.sqrt(own * others) if own > 0 and others > 0 else 0.0


def _tissue(volume: Volume) -> np.ndarray:
    """Intensities of a scan of :func:`_even` in a window of what is no air, 0 to 1, without the finest noise."""
    from scipy import ndimage

    tissue = volume.array[volume.array > _TISSUE]
    low, high = np.percentile(tissue, (2, 98)) if tissue.size else (0.0, 1.0)
    width = max(high - low, _WINDOW[volume.modality == "CT"])
    return ndimage.gaussian_filter(np.clip((volume.array - (low + high) / 2) / width + 0.5, 0, 1), 1.0)
