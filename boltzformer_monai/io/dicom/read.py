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

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.files import SliceHeader
from boltzformer_monai.io.dicom.grid import ordered
from boltzformer_monai.io.dicom.padding import fill_padding
from boltzformer_monai.io.dicom.pixels import decode_slices
from boltzformer_monai.io.dicom.series import check_slices, choose_series, with_modality
from boltzformer_monai.io.volume import Volume

# Photometric interpretation → the shape of the presentation table that says the same.
_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}


def read_dicom_series(
    place: str | os.PathLike[str], *, series: str | None = None, files: Sequence[Path] = (), modality: str | None = None
) -> Volume:
    """Read one series of a DICOM folder (subfolders included), or one multi-frame file, as a volume.

    Files that are not DICOM, and DICOM objects that are not slices (DICOMDIR, SEG, RTSTRUCT, reports), are skipped.

    Arguments are those of :func:`~boltzformer_monai.io.read.read_volume`; each of the ``files`` must be a slice of the
    series.

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
    _check_display(slices)
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
    caveats = () if padding is None else fill_padding(stack, padding, str(place), inverted=_is_turned_over(first))
    return Volume(
        stack.transpose(2, 1, 0),
        affine,
        modality=first.modality or "unknown",
        source=str(place),
        frame_of_reference=first.frame_of_reference,
        caveats=(*caveats, *_as_displayed(stack, first)),
    )


def _check_display(slices: Sequence[SliceHeader]) -> None:
    """Refuse slices without units of which some are shown inverted, or whose header says both."""
    first = slices[0]
    if first.modality == "CT":
        return
    for header in slices:
        if header.photometric != first.photometric:
            both = f"{first.name} is {first.photometric}, {header.name} is {header.photometric}"
            raise VolumeError(f"{first.path.parent}: {both}; they are not one scan, separate them", reason="display")
        # Other shapes (LIN OD, of printers) do not say which end is bright.
        if header.lut_shape in _SHAPES.values() and header.lut_shape != _SHAPES.get(header.photometric):
            msg = (
                f"{header.path}: is {header.photometric} with PresentationLUTShape {header.lut_shape}, which "
                "contradict each other: whether low values are bright is unknown; export it again"
            )
            raise VolumeError(msg, reason="display")


def _is_turned_over(header: SliceHeader) -> bool:
    """Whether values without units are shown inverted, so that their highest is the darkest."""
    return header.photometric == "MONOCHROME1" and header.modality != "CT"


def _as_displayed(stack: np.ndarray, first: SliceHeader) -> tuple[Caveat, ...]:
    """Turn values without units over, in place, where viewers show them inverted; Hounsfield units stay.

    MONOCHROME1 asks viewers to show low values bright. Hounsfield units do not depend on that; values without units
    have only their looks, and a network that learned from images as radiologists see them must be given this one so.
    """
    if first.photometric != "MONOCHROME1":
        return ()
    text = "viewers show this scan inverted (MONOCHROME1); its Hounsfield units were taken as they are"
    if _is_turned_over(first):
        np.subtract(stack.min() + stack.max(), stack, out=stack)
        text = "viewers show this scan inverted (MONOCHROME1), and so its values were turned over: the lowest is the "
        text += "highest"
    return (Caveat("inverted display", text),)
