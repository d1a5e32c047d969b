"""Scans and label maps from and to disk, whatever their format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import challenge_npz, formats
from boltzformer_monai.io.dicom.files import is_dicom_file
from boltzformer_monai.io.dicom.gantry_tilt import check_tilt, settle_tilt
from boltzformer_monai.io.dicom.read import read_dicom_series
from boltzformer_monai.io.label_map import as_label_values, slabs
from boltzformer_monai.io.pictures import is_picture, read_picture
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.modality import OTHER, settled_modality, stored_modality


def read_volume(
    path: str | os.PathLike[str],
    *,
    modality: str | None = None,
    series: str | None = None,
    files: Sequence[Path] = (),
    channel: int | None = None,
    tilt: str = "refuse",
) -> Volume:
    """Read a scan: NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), DICOM, or a PNG or JPEG image.

    Args:
        path: the file, or the folder that holds the DICOM files (subfolders are searched too); a DICOM file of many
            frames that lie in the patient (enhanced CT, MR) is a whole scan.
        modality: CT or MR, in words that :func:`~boltzformer_monai.modality.parse_modality` knows, where the file
            does not say it; it may not contradict a DICOM header. ``"other"`` is for images.
        series: the SeriesInstanceUID to read when a DICOM folder holds several.
        files: the DICOM files of the series, where they are known already; the rest of the folder is left alone.
        channel: which one of a four-dimensional NIfTI file, counted from 0; None for an ordinary one.
        tilt: what to do with slices stacked at an angle to their normal (gantry tilt, a sheared affine) in a file of
            any format: ``"refuse"``, ``"resample"`` to a right-angled grid, or ``"keep"`` the sheared affine.

    Returns:
        The volume in the orientation in which it is stored, array float32 (I, J, K).

    Raises:
        VolumeError: the path is missing, broken, of another modality than CT and MR, not three-dimensional, or its
            geometry cannot be trusted.
        ConfigError: the modality or the treatment of tilt is not a known one.
    """
    check_tilt(tilt)
    wanted = None if modality is None else stored_modality(modality)
    wanted = None if wanted == "unknown" else wanted
    place = existing(path)
    if channel is None and not files and place.is_file() and is_picture(place):
        return _read_sizeless(place, wanted)
    if wanted == OTHER:
        msg = f"{place}: another modality than CT and MR is read of PNG and JPEG images only; give CT or MR"
        raise VolumeError(msg, reason="modality")
    if channel is None and (files or is_dicom(place)):
        volume = read_dicom_series(place, series=series, files=files, modality=wanted)
    else:
        if series is not None:
            msg = f"{place}: a series can be chosen only in a DICOM folder; leave the series out"
            raise VolumeError(msg, reason="unsupported format")
        settled = settled_modality(formats.stated_modality(place), wanted, source=f"{place}: its header says")
        array, affine = formats.read_scan_file(place, channel=channel)
        _check_finite(array, place)
        volume = Volume(array, affine, settled, source=str(path))
    return settle_tilt(volume, tilt)


def read_label_map(path: str | os.PathLike[str]) -> Volume:
    """Read a label map from NIfTI, NRRD or MetaImage.

    Returns:
        A volume whose array is the smallest of uint8, uint16 and uint32 that holds its values.

    Raises:
        VolumeError: the file is missing or broken, has layers (overlapping segments), or a voxel is not a whole
            number of at least 0.
    """
    place = existing(path)
    if place.is_dir():
        raise VolumeError(f"{place}: a label map is a NIfTI, NRRD or MetaImage file, not a folder")
    array, affine = formats.read_image_file(place)
    return Volume(as_label_values(array, str(place)), affine, source=str(path))


def write_label_map(array: np.ndarray, like: Volume, path: str | os.PathLike[str]) -> None:
    """Write a label map on the grid of ``like``, as uint8 or, for values above 255, uint16; atomically.

    Args:
        array: (I, J, K) booleans or integers from 0 to 65535, in the axes of ``like``.
        like: the volume whose shape and affine the file gets.
        path: ends in .nii, .nii.gz, .nrrd or .npz (:mod:`~boltzformer_monai.io.challenge_npz`); an existing file is
            replaced, its folder must exist.

    Raises:
        VolumeError: the array does not fit ``like`` or the range, or the file cannot be written.
    """
    if array.shape != like.shape:
        msg = f"{path}: a mask of shape {array.shape} does not fit the scan's shape {like.shape}"
        raise VolumeError(msg, reason="grid")
    if array.dtype.kind not in "biu":
        raise VolumeError(f"{path}: label values must be integers, not {array.dtype}", reason="labels")
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        msg = f"{path}: label values from {lowest} to {highest} do not fit into 0 to 65535"
        raise VolumeError(msg, reason="labels")
    labels = array.astype(np.uint8 if highest <= 255 else np.uint16)
    if challenge_npz.is_challenge_file(path):
        challenge_npz.write_segmentation(labels, like, Path(path))
    else:
        formats.write_image_file(labels, like.affine, Path(path))


def is_dicom(place: Path) -> bool:
    """Tell whether a scan is DICOM: a folder, or a file of that content whose name is of no other format."""
    return place.is_dir() or (not formats.is_image_file(place) and is_dicom_file(place))


def existing(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file or folder that exists.

    Raises:
        VolumeError: reason ``"missing"``.
    """
    place = Path(path)
    if not os.path.exists(place):  # unlike Path.exists, never raises where permission is missing
        raise VolumeError(f"{place}: no such file or folder, or no permission to see it", reason="missing")
    return place


def _read_sizeless(place: Path, modality: str | None) -> Volume:
    text = "the image states no size: a millimetre stands for every pixel, in all lengths and volumes of the result"
    return replace(read_picture(place, modality or "unknown"), caveats=(Caveat("no size", text),))


def _check_finite(array: np.ndarray, place: Path) -> None:
    bad = sum(int(slab.size - np.count_nonzero(np.isfinite(slab))) for slab in slabs(array))
    if bad:
        msg = f"{place}: {bad} voxels are NaN or infinite; replace them by the value of air or background first"
        raise VolumeError(msg, reason="not finite")
