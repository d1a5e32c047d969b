"""Overlapping segments as one label map: every combination of segments that occurs gets its own value."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from boltzformer_monai.caveats import Caveat

logger = logging.getLogger(__name__)

_LARGEST_NUMBER = np.iinfo(np.uint16).max  # segment numbers up to here are values as they stand


@dataclass(frozen=True)
class Layer:
    """Where one segment lies, or a part of it.

    Attributes:
        number: of the segment; several layers of one number are united.
        mask: boolean (i, j, k), a box of the image's grid.
        corner: the image's voxel at which the box begins; the box lies inside the image.
    """

    number: int
    mask: np.ndarray
    corner: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class FlatSegments:
    """Segments on the grid of an image.

    Attributes:
        array: (I, J, K), the smallest of uint8, uint16 and uint32 that holds its values; 0 is no segment.
        segments: segment number → its value text, ``"2"`` or ``"2+5"``; every segment has another one.
        names: value text → name, for the segments that have one; None when no segment has.
        titles: segment number → its own name, ``""`` for none.
        caveats: what the reader repaired or warns of.
    """

    array: np.ndarray
    segments: Mapping[str, str]
    names: Mapping[str, str] | None
    titles: Mapping[str, str] = field(default_factory=dict)
    caveats: tuple[Caveat, ...] = ()


def flatten_layers(shape: tuple[int, int, int], titles: Mapping[int, str], layers: Iterable[Layer]) -> FlatSegments:
    """Draw layers, one after the other, into one label map.

    A voxel of segment 2 alone has the value 2; the combinations that occur get the values after the largest segment
    number, in the order of their segments. A segment without voxels keeps its number, which then does not occur.
    One layer at a time is in memory besides the label map.

    Args:
        shape: of the image, (I, J, K).
        titles: number → name (``""`` for none) of every segment, also of those without voxels.
        layers: what is drawn; their numbers are in ``titles``.
    """
    drawn = np.zeros(shape, dtype=np.uint8, order="F")  # whole slices are contiguous, as in most files
    combinations: list[frozenset[int]] = [frozenset()]
    codes = {combinations[0]: 0}
    for layer in layers:
        box = tuple(slice(start, start + size) for start, size in zip(layer.corner, layer.mask.shape, strict=True))
        before = drawn[box][layer.mask]
        if not before.size:
            continue
        present = np.flatnonzero(np.bincount(before))
        after = np.zeros(present[-1] + 1, dtype=np.uint32)
        for code in present:
            combination = combinations[code] | {layer.number}
            if combination not in codes:
                codes[combination] = len(combinations)
                combinations.append(combination)
            after[code] = codes[combination]
        drawn = drawn.astype(_dtype_for(len(combinations) - 1), copy=False)
        drawn[box][layer.mask] = after[before]
    occurring = [combinations[code] for code in _occurring(drawn, len(combinations))]
    values = _values(titles, occurring)
    table = np.array([values.get(combination, 0) for combination in combinations], dtype=np.int64)
    array = table.astype(_dtype_for(max(values.values(), default=0)))[drawn]
    segments = _segment_texts(titles, values, occurring)
    return FlatSegments(
        array,
        {str(number): text for number, text in segments.items()},
        _names_by_value(segments, titles),
        {str(number): title for number, title in titles.items()},
    )


def _names_by_value(segments: Mapping[int, str], titles: Mapping[int, str]) -> dict[str, str] | None:
    """Return value text → name; segments of one name are one target, None when none has a name."""
    values: dict[str, set[int]] = {}
    for number, text in segments.items():
        if titles[number]:
            values.setdefault(titles[number], set()).update(map(int, text.split("+")))
    names: dict[str, str] = {}
    for title, own in values.items():
        kept = names.setdefault("+".join(map(str, sorted(own))), title)
        if kept != title:
            logger.warning('"%s" covers exactly the voxels of "%s"; only the latter is kept', title, kept)
    return names or None


def _occurring(drawn: np.ndarray, codes: int) -> list[int]:
    occurs = np.zeros(codes, dtype=bool)
    for plane in np.moveaxis(drawn, 2, 0):  # plane by plane: indices are eight times as large as labels
        occurs[plane] = True
    return [int(code) for code in np.flatnonzero(occurs)]


def _values(titles: Mapping[int, str], occurring: Sequence[frozenset[int]]) -> dict[frozenset[int], int]:
    """Give every occurring combination, and every segment alone, its value."""
    usable = {number for number in titles if 0 < number <= _LARGEST_NUMBER}
    free = count(max(usable, default=0) + 1)
    values = {frozenset({number}): number if number in usable else next(free) for number in titles}
    values |= {several: next(free) for several in sorted(occurring, key=sorted) if len(several) > 1}
    return values


def _segment_texts(
    titles: Mapping[int, str], values: Mapping[frozenset[int], int], occurring: Sequence[frozenset[int]]
) -> dict[int, str]:
    texts: dict[int, str] = {}
    for number in titles:
        own = values[frozenset({number})]
        drawn = {values[combination] for combination in occurring if number in combination} or {own}
        text = "+".join(map(str, sorted(drawn)))
        if text in texts.values():  # the same voxels as another segment; its own value, unused, tells them apart
            text = "+".join(map(str, sorted(drawn | {own})))
        texts[number] = text
    return texts


def _dtype_for(largest: int) -> type[np.unsignedinteger]:
    return np.uint8 if largest <= 255 else np.uint16 if largest <= 65535 else np.uint32
