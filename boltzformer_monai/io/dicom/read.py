"""DICOM series and multi-frame files as volumes; what is not one evenly spaced volume is refused.

A volume is a set of slices with positions, each a file of its own or a frame of an enhanced object. Nothing is guessed.
A series with a missing slice, two orientations or two images at one place is an error that names the files, because a
volume made of it would look right and measure wrong.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.display import as_displayed, check_display, is_turned_over
from boltzformer_monai.io.dicom.files import is_dicom_file
from boltzformer_monai.io.dicom.grid import ordered
from boltzformer_monai.io.dicom.padding import fill_padding
from boltzformer_monai.io.dicom.pixels import decode_slices
from boltzformer_monai.io.dicom.series import check_slices, choose_series, with_modality
from boltzformer_monai.io.volume import Volume

__all__ = ["is_dicom_file", "read_dicom_series"]


def read_dicom_series(
    place: str | os.PathLike[str],
    *,
    series: str | None = None,
    files: Sequence[Path] = (),
    modality: str | None = None,
) -> Volume:
    """Read one series of a DICOM folder (subfolders included), or one multi-frame file, as a volume.

    Files that are not DICOM, and DICOM objects that are not slices (DICOMDIR, SEG, RTSTRUCT, reports), are skipped.

    Args:
        place: the folder of the series, or of a study with ``series`` chosen; or a file of a whole scan (enhanced CT
            or MR, or any other object with functional groups).
        series: the SeriesInstanceUID to read; needed when there are several.
        files: all files of the series, where they are known already; then nothing else in ``place`` is looked at, and
            each of them must be a slice of the series.
        modality: ``"CT"`` or ``"MR"`` where the header states none; it may not contradict the header.

    Returns:
        float32 (columns, rows, slices), rescaled slice by slice (Hounsfield units for CT); slices in the direction of
        the slice normal; modality ``"CT"``, ``"MR"``, or ``"unknown"`` where nothing states it. Slices stacked at an
        angle (gantry tilt) give a sheared affine; :func:`~boltzformer_monai.io.read.read_volume` decides about that.

    Raises:
        VolumeError: nothing to read, several series and none chosen, another modality than CT, MR or the given one, or
            a series that is not one regular grayscale volume (missing, doubled or turned slices, frames without a
            place, colour, truncated files); it names the files.
    """
    path = Path(place)
    slices = with_modality(choose_series(path, series, files), modality)
    check_slices(slices)
    check_display(slices)
    if path.is_file() and slices[0].frame is None:
        msg = f"{path}: is one DICOM slice, not a scan; pass the folder that holds all slices of its series"
        raise VolumeError(msg, reason="dimensions")
    slices, affine = ordered(slices)
    first = slices[0]
    stack, padding = decode_slices(slices)
    bad = next((header for header, plane in zip(slices, stack, strict=True) if not np.isfinite(plane).all()), None)
    if bad is not None:
        msg = f"{bad.path.parent}: {bad.name} is not finite after rescaling; its pixels or RescaleSlope are damaged"
        raise VolumeError(msg, reason="not finite")
    caveats = () if padding is None else fill_padding(stack, padding, str(place), inverted=is_turned_over(first))
    return Volume(
        stack.transpose(2, 1, 0),
        affine,
        modality=first.modality or "unknown",
        source=str(place),
        frame_of_reference=first.frame_of_reference,
        caveats=(*caveats, *as_displayed(stack, first)),
    )
