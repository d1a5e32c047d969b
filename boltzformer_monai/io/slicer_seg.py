"""Label maps in image files: plain ones, layers of overlapping segments, and 3D Slicer's .seg.nrrd with names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.formats import read_layers
from boltzformer_monai.io.label_layers import FlatSegments, Layer, flatten_layers
from boltzformer_monai.io.lattice import find_place, voxels_inside
from boltzformer_monai.io.volume import Volume, as_label_values, reorient_label

logger = logging.getLogger(__name__)

_FIELD = re.compile(r"Segment(\d{1,9})_(Name|LabelValue|Layer)")


@dataclass(frozen=True)
class _SlicerSegment:
    """One segment of a .seg.nrrd: the voxels of one layer that have one value."""

    number: int
    name: str
    layer: int
    value: int


def read_image_segments(path: Path, image: Volume) -> Volume | FlatSegments:
    """Read an annotation from NIfTI, NRRD or MetaImage on the grid of an image.

    Args:
        path: a label map; binary layers along a fourth axis, which are the segments 1, 2, …; or a .seg.nrrd of 3D
            Slicer, whose segments have the numbers of their LabelValue or, where layers share values, of their order
            in the file (from 1). Only a .seg.nrrd may cover just a part of the image.
        image: the image; only its grid matters.

    Returns:
        The label map itself when its values are all that the file says, else the segments.

    Raises:
        VolumeError: damaged, no whole numbers or not binary, or not on the grid of the image.
    """
    array, affine, fields = read_layers(path)
    slicer = _slicer_segments(path, fields)
    if slicer:
        return _read_slicer(path, array, affine, slicer, image)
    if array.shape[3] == 1:
        return reorient_label(Volume(as_label_values(array[..., 0], str(path)), affine, source=str(path)), image)
    titles = dict.fromkeys(range(1, array.shape[3] + 1), "")
    return flatten_layers(image.shape, titles, _binary_layers(path, array, affine, image))


def _slicer_segments(path: Path, fields: Mapping[str, str]) -> list[_SlicerSegment]:
    """Return the segments that a header of 3D Slicer lists, none for other files."""
    listed: dict[int, dict[str, str]] = {}
    for key, text in fields.items():
        if match := _FIELD.fullmatch(key):
            listed.setdefault(int(match[1]), {})[match[2]] = text.strip()
    entries = [listed[index] for index in sorted(listed)]
    try:
        # Files of older versions have no LabelValue: each layer is binary and a segment of its own.
        places = [
            (int(entry.get("Layer", index)), int(entry.get("LabelValue", 1))) for index, entry in enumerate(entries)
        ]
    except ValueError:
        msg = f"{path}: the Layer or LabelValue of a segment is no number; save the segmentation again"
        raise VolumeError(msg, reason="labels") from None
    values = [value for _, value in places]
    if len(set(places)) < len(places) or min(values, default=1) < 1:
        msg = f"{path}: two segments share one label value, or have none; save the segmentation again"
        raise VolumeError(msg, reason="labels")
    numbers = values if len(set(values)) == len(values) else range(1, len(values) + 1)
    return [
        _SlicerSegment(number, entry.get("Name", ""), layer, value)
        for number, entry, (layer, value) in zip(numbers, entries, places, strict=True)
    ]


def _read_slicer(
    path: Path, array: np.ndarray, affine: np.ndarray, listed: list[_SlicerSegment], image: Volume
) -> FlatSegments:
    if not all(0 <= segment.layer < array.shape[3] for segment in listed):
        msg = f"{path}: its header lists segments outside the {array.shape[3]} layers that it holds; save it again"
        raise VolumeError(msg, reason="labels")
    titles = {segment.number: segment.name for segment in listed}
    return flatten_layers(image.shape, titles, _slicer_layers(path, array, affine, listed, image))


def _slicer_layers(
    path: Path, array: np.ndarray, affine: np.ndarray, listed: list[_SlicerSegment], image: Volume
) -> Iterator[Layer]:
    columns, rows, slices, layers = array.shape
    place = find_place(affine, (columns, rows, slices), image, what=str(path))
    box, corner = voxels_inside(place, image)
    for index in range(layers):
        whole = place.axes.apply(as_label_values(array[..., index], str(path)))
        values = whole[box]
        if np.count_nonzero(values) < np.count_nonzero(whole):
            msg = f"{path}: has voxels outside the image; pass the scan that it was drawn on, in full"
            raise VolumeError(msg, reason="grid")
        for segment in listed:
            if segment.layer == index:
                yield Layer(segment.number, values == segment.value, corner)
        unlisted = set(np.unique(values).tolist()) - {0} - {s.value for s in listed if s.layer == index}
        if unlisted:
            logger.warning("%s: the values %s have no segment and are left out", path, sorted(unlisted)[:9])


def _binary_layers(path: Path, array: np.ndarray, affine: np.ndarray, image: Volume) -> Iterator[Layer]:
    for index in range(array.shape[3]):
        values = as_label_values(array[..., index], str(path))
        if values.any() and values[values != 0].min() != values.max():
            msg = (
                f"{path}: its layer {index + 1} has several values; layers are binary, one for each segment "
                "(time frames, colours or vectors are no label map)"
            )
            raise VolumeError(msg, reason="labels")
        yield Layer(index + 1, reorient_label(Volume(values, affine, source=str(path)), image).array != 0)
