"""MONOCHROME1: a request to viewers to show low values bright, and what it means for voxels.

Hounsfield units are what they are, however they are shown. Values without units have only their looks: a network that
learned from images as radiologists see them must be given this one as they see it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.files import SliceHeader

_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}


def check_display(slices: Sequence[SliceHeader]) -> None:
    """Refuse slices without units of which some are shown inverted, or whose header says both.

    Raises:
        VolumeError: which slices.
    """
    first = slices[0]
    if first.modality == "CT":
        return
    for header in slices:
        if header.photometric != first.photometric:
            both = f"{first.name} is {first.photometric}, {header.name} is {header.photometric}"
            msg = f"{first.path.parent}: {both}; they are not one scan, separate them"
            raise VolumeError(msg, reason="display")
        # Other shapes (LIN OD, of printers) do not say which end is bright.
        if header.lut_shape in _SHAPES.values() and header.lut_shape != _SHAPES.get(header.photometric):
            msg = (
                f"{header.path}: is {header.photometric} with PresentationLUTShape {header.lut_shape}, which "
                "contradict each other: whether low values are bright is unknown; export it again"
            )
            raise VolumeError(msg, reason="display")


def is_turned_over(header: SliceHeader) -> bool:
    """Whether values without units are shown inverted, so that their highest is the darkest."""
    return header.photometric == "MONOCHROME1" and header.modality != "CT"


def as_displayed(stack: np.ndarray, first: SliceHeader) -> tuple[Caveat, ...]:
    """Turn values without units over, in place, where viewers show them inverted; Hounsfield units stay.

    Args:
        stack: the whole volume, rescaled, padding filled with the value that is shown darkest.
        first: the header of one of its slices.
    """
    if first.photometric != "MONOCHROME1":
        return ()
    text = "viewers show this scan inverted (MONOCHROME1); its Hounsfield units were taken as they are"
    if is_turned_over(first):
        np.subtract(stack.min() + stack.max(), stack, out=stack)
        text = "viewers show this scan inverted (MONOCHROME1), and so its values were turned over: the lowest is the "
        text += "highest"
    return (Caveat("inverted display", text),)
