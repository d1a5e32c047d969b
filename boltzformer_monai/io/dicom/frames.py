"""Where each frame of a DICOM object lies, and how its stored values become real ones.

Enhanced multi-frame objects keep this in functional groups: what all frames share once, what differs once per frame.
A classic object keeps the same attributes at its top level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from boltzformer_monai.errors import VolumeError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True)
class FrameGeometry:
    """Place and scale of one frame; None for what the header does not say in a usable way.

    Attributes:
        position: ImagePositionPatient, the centre of the first pixel, mm, LPS.
        cosines: ImageOrientationPatient, the directions of a row and of a column, LPS.
        pixel_spacing: (between rows, between columns), mm.
        stated_spacing: SpacingBetweenSlices, else SliceThickness, mm.
        slope: value = slope * stored + intercept.
        intercept: see ``slope``.
        rescaled: whether the header states both; they are 1 and 0 otherwise.
        rescale_type: the unit of the values, ``"HU"`` or ``""`` for CT.
    """

    position: tuple[float, ...] | None = None
    cosines: tuple[float, ...] | None = None
    pixel_spacing: tuple[float, ...] | None = None
    stated_spacing: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    rescaled: bool = False
    rescale_type: str = ""

    @property
    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of a row and of a column, LPS; the stated cosines are none when they have few decimals."""
        row, column = np.array(self.cosines, dtype=np.float64).reshape(2, 3)
        return row / (np.linalg.norm(row) or 1.0), column / (np.linalg.norm(column) or 1.0)


def frame_geometries(dataset: Dataset) -> list[FrameGeometry]:
    """Return the geometry of every frame of an object with functional groups, in the order of the frames.

    Raises:
        VolumeError: the number of frames and of per-frame groups differ, or a slope or intercept is unusable.
    """
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    count = int(dataset.get("NumberOfFrames") or 1)
    if not groups and count == 1:
        groups = [shared]
    if len(groups) != count:
        msg = f"{_where(dataset)}: has {count} frames but the places of {len(groups)}; the header is damaged"
        raise VolumeError(msg, reason="damaged")
    return [_from_groups(group, shared, _where(dataset)) for group in groups]


def classic_geometry(dataset: Dataset) -> FrameGeometry:
    """Return the geometry of a single-frame object.

    Raises:
        VolumeError: its slope or intercept is unusable.
    """
    return _geometry(dataset, dataset, dataset, dataset, _where(dataset))


def _where(dataset: Dataset) -> str:
    """Return the path that a dataset was read from, for messages."""
    return str(getattr(dataset, "filename", None) or "a DICOM object")


def _from_groups(group: Dataset, shared: Dataset, place: str) -> FrameGeometry:
    def macro(name: str) -> Dataset:
        own = _first(group, name)
        return own if len(own) else _first(shared, name)

    return _geometry(
        macro("PlanePositionSequence"),
        macro("PlaneOrientationSequence"),
        macro("PixelMeasuresSequence"),
        macro("PixelValueTransformationSequence"),
        place,
    )


def _geometry(plane: Dataset, turn: Dataset, measures: Dataset, scale: Dataset, place: str) -> FrameGeometry:
    pixel_spacing = stated_numbers(measures, "PixelSpacing", 2)
    spacings = [stated_numbers(measures, name, 1) for name in ("SpacingBetweenSlices", "SliceThickness")]
    slope, intercept = (stated_numbers(scale, name, 1) for name in ("RescaleSlope", "RescaleIntercept"))
    for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        stated = scale.get(name)
        if (value is None and stated is not None) or (name == "RescaleSlope" and value == (0.0,)):
            msg = f"{place}: its {name} {str(stated)[:40]!r} is unusable; the header is damaged"
            raise VolumeError(msg, reason="no rescale")
    return FrameGeometry(
        position=stated_numbers(plane, "ImagePositionPatient", 3),
        cosines=stated_numbers(turn, "ImageOrientationPatient", 6),
        pixel_spacing=pixel_spacing if pixel_spacing and min(pixel_spacing) > 0 else None,
        stated_spacing=next((value[0] for value in spacings if value and value[0] > 0), None),
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        rescaled=slope is not None and intercept is not None,
        rescale_type=str(scale.get("RescaleType") or "").strip(),
    )


def stated_numbers(dataset: Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """Return exactly ``count`` finite numbers of an attribute; None where it is missing or unusable."""
    try:
        value = dataset.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        array = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (ValueError, TypeError, OverflowError):
        return None  # as good as missing: whether it is needed is another question
    return tuple(array.tolist()) if array.shape == (count,) and np.isfinite(array).all() else None


def _first(dataset: Dataset, name: str) -> Dataset:
    """Return the first item of a sequence; an empty dataset where there is none."""
    from pydicom.dataset import Dataset as Empty

    items = dataset.get(name)
    return items[0] if items else Empty()
