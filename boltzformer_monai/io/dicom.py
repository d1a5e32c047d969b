"""DICOM folders: find the files, choose ONE series, and refuse what is not one evenly spaced volume.

Nothing is guessed. A series with a missing slice, two orientations or two images at one place is an error that names
the files, because a volume made of it would look right and measure wrong.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom_files import SliceHeader, find_slices, is_dicom_file
from boltzformer_monai.io.dicom_pixels import decode_slice
from boltzformer_monai.io.volume import Volume

__all__ = ["is_dicom_file", "read_dicom_series", "read_patient_id"]

logger = logging.getLogger(__name__)

_GAP_TOLERANCE = 0.01  # of the slice spacing, for one gap
_DRIFT_TOLERANCE = 0.1  # of the slice spacing, for one slice against the evenly spaced line through all
_COSINE_TOLERANCE = 1e-4
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_dicom_series(folder: str | os.PathLike[str], *, series: str | None = None) -> Volume:
    """Read one series of a DICOM folder (subfolders included) as a volume.

    Files that are not DICOM, and DICOM objects that are not slices (DICOMDIR, SEG, RTSTRUCT, reports), are skipped.

    Args:
        folder: the folder of the series, or of a study with ``series`` chosen.
        series: the SeriesInstanceUID to read; needed when there are several.

    Returns:
        float32 (columns, rows, slices), rescaled slice by slice (Hounsfield units for CT); slices in the direction of
        the slice normal; modality ``"CT"``, ``"MR"`` or ``"unknown"`` from the header.

    Raises:
        VolumeError: nothing to read, several series and none chosen, or a series that is not one regular grayscale
            volume (missing, doubled or turned slices, multi-frame, colour, truncated files); it names the files.
    """
    slices = _one_series(Path(folder), series)
    for check in (_check_supported, _check_one_geometry):
        check(slices)
    slices, affine = _ordered(slices)
    first = slices[0]
    # Slice by slice in memory, so that each decoded picture is one contiguous write.
    stack = np.empty((len(slices), first.rows, first.columns), dtype=np.float32)
    for index, header in enumerate(slices):
        stack[index] = decode_slice(header)
    if not np.isfinite(stack).all():
        msg = f"{first.path.parent}: the rescaled voxels are not finite; a RescaleSlope or RescaleIntercept is damaged"
        raise VolumeError(msg)
    modality = first.modality if first.modality in ("CT", "MR") else "unknown"
    return Volume(stack.transpose(2, 1, 0), affine, modality=modality, source=str(folder))


def read_patient_id(folder: str | os.PathLike[str], *, series: str | None = None) -> str:
    """Return the PatientID of one series, "" when it has none; meant only for making a pseudonym, never for output.

    Raises:
        VolumeError: as :func:`read_dicom_series` for the choice of the series, or the series names several patients.
    """
    return _one_series(Path(folder), series)[0].patient_id


def _one_series(folder: Path, series: str | None) -> list[SliceHeader]:
    """Return the slices of the chosen or only series."""
    if folder.is_file():
        raise VolumeError(_single_file_message(folder))
    if not folder.is_dir():
        msg = f"{folder}: no such folder"
        raise VolumeError(msg)
    groups: dict[str, list[SliceHeader]] = {}
    for header in find_slices(folder):
        groups.setdefault(header.series, []).append(header)
    if not groups:
        msg = f"{folder}: holds no DICOM slices; pass the folder with the image files of one series"
        raise VolumeError(msg)
    found = ", ".join(f"{uid} ({len(group)} {group[0].modality} slices)" for uid, group in sorted(groups.items()))
    if series is not None and series not in groups:
        msg = f"{folder}: has no series {series}; it has {found}"
        raise VolumeError(msg)
    if series is None and len(groups) > 1:
        msg = f"{folder}: holds {len(groups)} series, choose one by its UID: {found}"
        raise VolumeError(msg)
    slices = groups[series] if series is not None else next(iter(groups.values()))
    for name in ("patient_id", "frame_of_reference", "modality"):
        other = next((header for header in slices if getattr(header, name) != getattr(slices[0], name)), None)
        if other is not None:
            what = name.replace("_", " ")
            msg = f"{folder}: {slices[0].path.name} and {other.path.name} differ in {what}; they are not one scan"
            raise VolumeError(msg)
    return slices


def _single_file_message(path: Path) -> str:
    if not is_dicom_file(path):
        return f"{path}: is not a DICOM file"
    headers = find_slices(path)
    if headers and headers[0].frames > 1:
        return _multi_frame_message(headers[0])
    return f"{path}: is one DICOM file, not a scan; pass the folder that holds all slices of its series"


def _multi_frame_message(header: SliceHeader) -> str:
    return (
        f"{header.path}: is a multi-frame object ({header.frames} frames), which this version does not read; "
        "convert it to a classic series or to NIfTI"
    )


def _check_supported(slices: list[SliceHeader]) -> None:
    for header in slices:
        if header.frames > 1 or header.enhanced:
            raise VolumeError(_multi_frame_message(header))
        if header.samples != 1 or not header.photometric.startswith("MONOCHROME"):
            msg = f"{header.path}: is a colour picture ({header.photometric}), not a grayscale slice"
            raise VolumeError(msg)
        if header.lookup_table:
            msg = f"{header.path}: maps its voxels by a Modality LUT table, which is not read; convert it to NIfTI"
            raise VolumeError(msg)
        if header.modality == "CT" and not header.rescaled:
            msg = f"{header.path}: a CT slice without RescaleSlope and RescaleIntercept has no Hounsfield units"
            raise VolumeError(msg)
        if header.position is None or header.cosines is None or header.pixel_spacing is None:
            msg = (
                f"{header.path}: lacks a usable ImagePositionPatient, ImageOrientationPatient or PixelSpacing, "
                "so its place in the patient is unknown"
            )
            raise VolumeError(msg)
    if slices[0].modality == "CT" and any(header.rescale_type not in ("", "HU") for header in slices):
        logger.warning("%s: RescaleType is not HU; windows may not fit", slices[0].path.parent)


def _check_one_geometry(slices: list[SliceHeader]) -> None:
    first = slices[0]
    row, column = np.array(first.cosines).reshape(2, 3)
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3):
        msg = f"{first.path}: ImageOrientationPatient is not two unit vectors at a right angle; the header is damaged"
        raise VolumeError(msg)
    for header in slices[1:]:
        if not np.allclose(np.array(header.cosines), np.array(first.cosines), atol=_COSINE_TOLERANCE):
            what = "have different orientations (a localizer, or several planes in one series)"
        elif (header.rows, header.columns) != (first.rows, first.columns):
            what = f"have {first.rows}x{first.columns} and {header.rows}x{header.columns} pixels"
        elif not np.allclose(np.array(header.pixel_spacing), np.array(first.pixel_spacing), rtol=1e-4):
            what = "have different pixel spacings"
        else:
            continue
        msg = f"{first.path.parent}: {first.path.name} and {header.path.name} {what}; they are not one volume"
        raise VolumeError(msg)


def _ordered(slices: list[SliceHeader]) -> tuple[list[SliceHeader], np.ndarray]:
    """Sort by the position along the normal and return the affine; raise unless the spacing is even."""
    row, column = np.array(slices[0].cosines).reshape(2, 3)
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    # The path decides between equal positions, so that the message about them is always the same.
    slices = sorted(slices, key=lambda header: (float(np.array(header.position) @ normal), str(header.path)))
    positions = np.array([header.position for header in slices], dtype=np.float64)
    step = _even_step(slices, positions, normal) if len(slices) > 1 else normal * _stated_spacing(slices[0])
    spacing = np.array(slices[0].pixel_spacing)  # (between rows, between columns)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[1], column * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return slices, _LPS_TO_RAS @ affine


def _stated_spacing(header: SliceHeader) -> float:
    if header.stated_spacing is None:
        msg = f"{header.path}: is the only slice of its series and states no SpacingBetweenSlices or SliceThickness"
        raise VolumeError(msg)
    return header.stated_spacing


def _even_step(slices: list[SliceHeader], positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return the vector (mm, LPS) from one slice to the next."""
    folder = slices[0].path.parent
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    doubled = int(np.argmin(gaps))
    if gaps[doubled] <= max(1e-4, 0.01 * typical):
        msg = (
            f"{folder}: {slices[doubled].path.name} and {slices[doubled + 1].path.name} lie at the same position; "
            "the series holds copies or several images per slice (time points, echoes)"
        )
        raise VolumeError(msg)
    worst = int(np.argmax(np.abs(gaps - typical)))
    if abs(gaps[worst] - typical) > _GAP_TOLERANCE * typical:
        msg = (
            f"{folder}: uneven slices: {gaps[worst]:.4g} mm between {slices[worst].path.name} and "
            f"{slices[worst + 1].path.name}, {typical:.4g} mm elsewhere; is a slice missing? export the series again"
        )
        raise VolumeError(msg)
    # Only now, with every gap alike, does the mean step describe them all (and drift over many slices is bounded).
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    drift = np.linalg.norm(positions - (positions[0] + np.arange(len(slices))[:, None] * step), axis=1)
    if drift.max() > _DRIFT_TOLERANCE * typical:
        off = slices[int(np.argmax(drift))].path.name
        msg = f"{folder}: {off} lies {drift.max():.3g} mm off the line of the other slices; not one volume"
        raise VolumeError(msg)
    if np.linalg.norm(np.cross(step, normal)) > 1e-3 * np.linalg.norm(step):
        logger.warning("%s: the slices are stacked obliquely (gantry tilt); the affine keeps the tilt", folder)
    return step
