"""From slices with positions to one grid: order, affine, and a refusal of all that is not one evenly spaced stack."""

from __future__ import annotations

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.files import SliceHeader
from boltzformer_monai.io.grids import SKEW
from boltzformer_monai.io.orientation import LPS_TO_RAS_AFFINE

_GAP_TOLERANCE = 0.01  # of the slice spacing, for one gap
_ROUNDING_MM = 0.01  # of one gap, always: some scanners write positions with two decimals
_DRIFT_TOLERANCE = 0.1  # of the slice spacing, for one slice against the evenly spaced line through all
_COSINE_TOLERANCE = 1e-4
_TILT_DEGREES = 0.1
_MISSING = 0.1  # a gap this near to whole steps looks like missing slices


def ordered(slices: list[SliceHeader]) -> tuple[list[SliceHeader], np.ndarray]:
    """Sort slices by their position along the normal.

    Args:
        slices: at least one; each with position, orientation and pixel spacing.

    Returns:
        The sorted slices, and the affine (4, 4) of the array (columns, rows, slices) → RAS+ mm. Slices stacked at an
        angle to their normal give a sheared affine.

    Raises:
        VolumeError: the slices differ in orientation, size or pixel spacing, lie at the same place, at uneven
            distances or off a line, or a single slice states no thickness.
    """
    _check_alike(slices)
    row, column = slices[0].geometry.directions
    normal = np.cross(row, column)
    # Path and frame decide between equal positions, so that the message about them is always the same.
    slices = sorted(slices, key=lambda s: (float(np.array(s.geometry.position) @ normal), str(s.path), s.frame or 0))
    positions = np.array([header.geometry.position for header in slices], dtype=np.float64)
    if len(slices) > 1:
        step = _even_step(slices, positions, normal)
    elif (thickness := slices[0].geometry.stated_spacing) is not None:
        step = normal * thickness
    else:
        msg = f"{slices[0].path}: is the only slice of its series and states no SpacingBetweenSlices or SliceThickness"
        raise VolumeError(msg, reason="no geometry")
    spacing = np.array(slices[0].geometry.pixel_spacing)  # (between rows, between columns)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[1], column * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return slices, LPS_TO_RAS_AFFINE @ affine


def _check_alike(slices: list[SliceHeader]) -> None:
    first = slices[0]
    cosines, spacing = np.array(first.geometry.cosines), np.array(first.geometry.pixel_spacing)
    row, column = cosines.reshape(2, 3)
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1.01 * SKEW):
        msg = f"{first.path}: ImageOrientationPatient is not two unit vectors at a right angle; the header is damaged"
        raise VolumeError(msg, reason="orientation")
    for header in slices[1:]:
        if not np.allclose(np.array(header.geometry.cosines), cosines, atol=_COSINE_TOLERANCE):
            what, reason = "have different orientations (a localizer, or several planes in one series)", "orientation"
        elif (header.rows, header.columns) != (first.rows, first.columns):
            what = f"have {first.rows}x{first.columns} and {header.rows}x{header.columns} pixels"
            reason = "sizes"
        elif not np.allclose(np.array(header.geometry.pixel_spacing), spacing, rtol=1e-4):
            what, reason = "have different pixel spacings", "pixel spacing"
        else:
            continue
        msg = f"{first.path.parent}: {first.name} and {header.name} {what}; they are not one volume, separate them"
        raise VolumeError(msg, reason=reason)
    if first.modality == "CT" and "LOCALIZER" in first.image_type:
        msg = f"{first.path}: is a CT localizer, a projection through the whole patient and no slice; leave it out"
        raise VolumeError(msg, reason="localizer")


def _even_step(slices: list[SliceHeader], positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return the vector (mm, LPS) from one slice to the next."""
    folder = slices[0].path.parent
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    doubled = int(np.argmin(gaps))
    if gaps[doubled] <= max(1e-4, 0.01 * typical):
        one, other = slices[doubled], slices[doubled + 1]
        several_stacks = one.frame is not None and other.frame is not None and one.path != other.path
        msg = (
            f"{folder}: {one.name} and {other.name} lie at the same position; the series holds copies or several "
            "images per slice (time points, echoes); "
            + ("pass one of its files" if several_stacks else "keep one image per position")
        )
        raise VolumeError(msg, reason="same position")
    worst = int(np.argmax(np.abs(gaps - typical)))
    uneven = np.abs(gaps - typical) > max(_GAP_TOLERANCE * typical, _ROUNDING_MM + 1e-6)
    if uneven[worst]:
        msg = (
            f"{folder}: uneven slices: {gaps[worst]:.4g} mm between {slices[worst].name} and "
            f"{slices[worst + 1].name}, {typical:.4g} mm at most places{_tilted(positions, normal)}; "
            f"{_advice(uneven, gaps / typical)}"
        )
        raise VolumeError(msg, reason="uneven spacing")
    # Only now, with every gap alike, does the mean step describe them all (and drift over many slices is bounded).
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    drift = np.linalg.norm(positions - (positions[0] + np.arange(len(slices))[:, None] * step), axis=1)
    if drift.max() > _DRIFT_TOLERANCE * typical:
        off = slices[int(np.argmax(drift))].name
        msg = f"{folder}: {off} lies {drift.max():.3g} mm off the line of the other slices; not one volume"
        raise VolumeError(msg, reason="off the line")
    return step


def _tilted(positions: np.ndarray, normal: np.ndarray) -> str:
    """Say how much the line of the slices leans, if it does; unevenness does not hide it."""
    line = positions[-1] - positions[0]
    degrees = float(np.degrees(np.arccos(min(1.0, line @ normal / np.linalg.norm(line)))))
    return f", and stacked {degrees:.2g} degrees off their normal (gantry tilt)" if degrees >= _TILT_DEGREES else ""


def _advice(uneven: np.ndarray, steps: np.ndarray) -> str:
    """Guess, from the gaps alone, what made them uneven, and say that it is a guess."""
    lost = np.rint(steps[uneven]) - 1
    if (lost >= 1).all() and (np.abs(steps[uneven] - 1 - lost) < _MISSING).all():
        slices = "a slice is" if lost.sum() == 1 else f"{lost.sum():.0f} slices are"
        return f"perhaps {slices} missing (a guess from the gaps); compare with the archive and export it again"
    return (
        f"{uneven.sum()} of {len(uneven)} gaps differ, and not by whole steps, so perhaps no slice is missing (a "
        "guess) and it was acquired like this; pass the part with even slices, or have it resampled to even ones"
    )
