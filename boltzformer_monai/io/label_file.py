"""Label maps in image files: plain ones, layers of overlapping segments, and 3D Slicer's .seg.nrrd with names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.formats import read_layers
from boltzformer_monai.io.grids import GRID_TOLERANCE, Place, find_place, voxels_inside
from boltzformer_monai.io.label_layers import FlatSegments, Layer, flatten_layers
from boltzformer_monai.io.label_map import as_label_values, reorient_label
from boltzformer_monai.io.volume import Volume

logger = logging.getLogger(__name__)

_FIELD = re.compile(r"Segment(\d{1,9})_(Name|LabelValue|Layer)")


@dataclass(frozen=True)
class _SlicerSegment:
    """One segment of a .seg.nrrd: the voxels of one layer that have one value."""

    number: int
    name: str
    layer: int
    value: int


def read_image_segments(path: Path, image: Volume, *, tolerance: float = GRID_TOLERANCE) -> Volume | FlatSegments:
    """Read an annotation from NIfTI, NRRD or MetaImage on the grid of an image.

    Args:
        path: a label map; binary layers along a fourth axis, which are the segments 1, 2, …; or a .seg.nrrd of 3D
            Slicer, whose segments have the numbers of their LabelValue or, where layers share values, of their order
            in the file (from 1). Only a .seg.nrrd may cover just a part of the image.
        image: the image; only its grid matters.
        tolerance: see :data:`.grids.GRID_TOLERANCE`.

    Returns:
        The label map itself when its values are all that the file says, else the segments.

    Raises:
        VolumeError: damaged, no whole numbers or not binary, or not on the grid of the image.
    """
    array, affine, fields = read_layers(path)
    slicer = _slicer_segments(path, fields, array.shape[3])
    if slicer:
        columns, rows, slices, _ = array.shape
        place = find_place(affine, (columns, rows, slices), image, what=str(path), tolerance=tolerance)
        titles = {segment.number: segment.name for segment in slicer}
        flat = flatten_layers(image.shape, titles, _slicer_layers(path, array, place, slicer, image))
        return replace(flat, caveats=place.off.caveat())
    if array.shape[3] == 1:
        label = Volume(as_label_values(array[..., 0], str(path)), affine, source=str(path))
        return reorient_label(label, image, tolerance=tolerance)
    titles = dict.fromkeys(range(1, array.shape[3] + 1), "")
    caveats: dict[Caveat, None] = {}  # all layers say the same
    flat = flatten_layers(image.shape, titles, _binary_layers(path, array, affine, image, tolerance, caveats))
    return replace(flat, caveats=tuple(caveats))


def _slicer_segments(path: Path, fields: Mapping[str, str], layers: int) -> list[_SlicerSegment]:
    """Return the segments that a header of 3D Slicer lists, none for other files."""
    listed: dict[int, dict[str, str]] = {}
    for key, text in fields.items():
        if match := _FIELD.fullmatch(key):
            listed.setdefault(int(match[1]), {})[match[2]] = text.strip()
    entries = [listed[index] for index in sorted(listed)]
    try:
        # Older versions state no Layer: one layer holds all segments by their values, or each segment has a binary
        # layer of its own, in the order of the header.
        places = [
            (int(entry.get("Layer", 0 if layers == 1 else index)), int(entry.get("LabelValue", 1)))
            for index, entry in enumerate(entries)
        ]
    except ValueError:
        msg = f"{path}: the Layer or LabelValue of a segment is no number; save the segmentation again"
        raise VolumeError(msg, reason="labels") from None
    values = [value for _, value in places]
    if len(set(places)) < len(places) or min(values, default=1) < 1:
        msg = (
            f"{path}: two of its {len(places)} segments share one layer and label value, or one has none; open it in "
            "3D Slicer and save it again"
        )
        raise VolumeError(msg, reason="labels")
    if not all(0 <= layer < layers for layer, _ in places):
        stated = "" if any("Layer" in entry for entry in entries) else " and does not say in which"
        msg = f"{path}: lists {len(places)} segments, not all of them in its {layers} layers{stated}; save it again"
        raise VolumeError(msg, reason="labels")
    numbers = values if len(set(values)) == len(values) else range(1, len(values) + 1)
    return [
        _SlicerSegment(number, entry.get("Name", ""), layer, value)
        for number, entry, (layer, value) in zip(numbers, entries, places, strict=True)
    ]


def _slicer_layers(
    path: Path, array: np.ndarray, place: Place, listed: list[_SlicerSegment], image: Volume
) -> Iterator[Layer]:
    box, corner = voxels_inside(place, image)
    for index in range(array.shape[3]):
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


def _binary_layers(
    path: Path, array: np.ndarray, affine: np.ndarray, image: Volume, tolerance: float, caveats: dict[Caveat, None]
) -> Iterator[Layer]:
    for index in range(array.shape[3]):
        values = as_label_values(array[..., index], str(path))
        if values.any() and values[values != 0].min() != values.max():
            msg = (
                f"{path}: its layer {index + 1} has several values; layers are binary, one for each segment "
                "(time frames, colours or vectors are no label map)"
            )
            raise VolumeError(msg, reason="labels")
        layer = reorient_label(Volume(values, affine, source=str(path)), image, tolerance=tolerance)
        caveats.update(dict.fromkeys(layer.caveats))
        yield Layer(index + 1, layer.array != 0)
