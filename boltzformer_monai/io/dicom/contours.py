"""Closed contours to pixels: which of them are holes, copies or overlap, and one clear convention for pixels on a line.

A contour inside another is a hole, one inside a hole an island. A copy of a contour counts once, and contours that
overlap in part are united: only then is nothing lost of what somebody has drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from boltzformer_monai.errors import VolumeError

if TYPE_CHECKING:
    from matplotlib.path import Path as Polygon

_DECIMALS = 3  # of a pixel: contours drawn through pixel centres must not depend on how their file rounds
_APART = 0.25  # pixels: two lines nearer to each other than this are one, rounded or drawn again
_BESIDE = _APART / 2  # pixels from a line to the points that stand for its sides
_STEP = 0.5  # pixels between the places where two contours are compared
_AT_ONCE = 256  # points whose distances are in memory together
_CROSSINGS = 1 << 20  # of lines with rows of pixels that are in memory together
# What comparing the contours of one slice may cost, in looks at one point beside one line (some nanoseconds each). A
# thousand outlines inside one of thousands of points take a tenth of it.
_MOST_WORK = 5e9
_PER_PAIR, _PER_PLACE, _PER_DISTANCE, _PER_BOX = 100_000, 2000, 10, 5


@dataclass(frozen=True)
class FilledRegion:
    """What the contours of one region on one slice enclose.

    Attributes:
        mask: boolean, the pixels.
        repeated: how many contours are copies of another and were left out.
        crossing: how many contours overlap another in part.
    """

    mask: np.ndarray
    repeated: int = 0
    crossing: int = 0


def fill_region(contours: Sequence[np.ndarray], shape: tuple[int, int], *, where: str = "a region") -> FilledRegion:
    """Return the pixels whose centres lie in a region: holes are left out, copies ignored, overlapping parts united.

    Two contours are copies when they run less than a quarter of a pixel beside each other, whatever their first point
    and direction. One contour by itself is filled by the even-odd rule, so a keyhole is a hole.

    Args:
        contours: each (N, 2) in pixels, the centre of the first pixel being (0, 0); closed from last to first point.
        shape: of the image, (rows, columns).
        where: whose contours they are, for the message.

    Raises:
        VolumeError: they are so many or so long, that comparing them would take minutes.
    """
    work = _Work(where)
    outlines = [_Outline(_once(contour), work) for contour in contours]
    related = _relations(outlines, work)
    dropped = {second for (_, second), how in related.items() if how == "same"}
    related = {pair: how for pair, how in related.items() if not dropped & {*pair}}
    kept = [index for index in range(len(outlines)) if index not in dropped]
    crossing = {index for pair, how in related.items() if how == "crossing" for index in pair}
    if not crossing:  # then all of them lie apart or inside one another, which is what even-odd means
        mask = fill_contours([outlines[index].points for index in kept], shape)
        return FilledRegion(mask, len(dropped))
    around: dict[int, list[int]] = {index: [] for index in kept}
    within: dict[int, list[int]] = {index: [] for index in kept}
    for (first, second), how in related.items():
        if how in ("inside", "around"):
            inner, outer = (first, second) if how == "inside" else (second, first)
            around[inner].append(outer)
            within[outer].append(inner)
    depth: dict[int, int] = {}
    for index in sorted(kept, key=lambda each: len(around[each])):
        depth[index] = 1 + max((depth.get(outer, 0) for outer in around[index]), default=-1)
    mask = np.zeros(shape, dtype=bool)
    for index in kept:
        if depth[index] % 2 == 0:
            holes = [inner for inner in within[index] if depth[inner] % 2]
            _add(mask, outlines[index].points, [outlines[hole].points for hole in holes])
    return FilledRegion(mask, len(dropped), len(crossing))


def copies(contours: Sequence[np.ndarray], *, where: str = "a region") -> int:
    """Return how many of the contours are copies of another one; see :func:`fill_region`."""
    work = _Work(where)
    related = _relations([_Outline(contour, work) for contour in contours], work)
    return len({second for (_, second), how in related.items() if how == "same"})


def fill_contours(contours: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels whose centres lie inside an odd number of contours: an inner contour is a hole.

    A centre on a contour belongs to the side of the smaller index only (half-open, as in ``range``), so that two areas
    that share an edge neither overlap nor leave a gap. What lies outside the image is cut off. Contours and shape are
    those of :func:`fill_region`.
    """
    rows, columns = shape
    starts = np.concatenate([np.round(contour, _DECIMALS) for contour in contours])
    ends = np.concatenate([np.round(np.roll(contour, -1, axis=0), _DECIMALS) for contour in contours])
    low, high = np.where(starts[:, :1] <= ends[:, :1], (starts, ends), (ends, starts))
    # Every edge crosses the rows low <= row < high; on each it inverts all pixels from the crossing on.
    first = np.clip(np.ceil(low[:, 0]), 0, rows).astype(np.int64)
    crossed = np.clip(np.ceil(high[:, 0]), 0, rows).astype(np.int64) - first
    inverted = np.zeros(rows * (columns + 1), dtype=np.int64)
    together = np.cumsum(crossed) // _CROSSINGS
    for edges in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(together)) + 1):
        edge = np.repeat(edges, crossed[edges])
        before = np.cumsum(crossed[edges]) - crossed[edges]
        row = np.arange(len(edge)) - np.repeat(before, crossed[edges]) + first[edge]
        slope = (high[edge, 1] - low[edge, 1]) / (high[edge, 0] - low[edge, 0])
        crossing = np.round(low[edge, 1] + (row - low[edge, 0]) * slope, 2 * _DECIMALS)
        column = np.clip(np.ceil(crossing), 0, columns).astype(np.int64)
        inverted += np.bincount(row * (columns + 1) + column, minlength=len(inverted))
    return (inverted.reshape(rows, columns + 1).cumsum(axis=1)[:, :columns] % 2).astype(bool)


class _Work:
    """What comparing contours has cost; no small file may keep a reader busy for hours."""

    def __init__(self, where: str) -> None:
        self._where, self._left = where, _MOST_WORK

    def spend(self, amount: float) -> None:
        """Called before the work is done and its memory taken."""
        self._left -= amount
        if not self._left >= 0:
            msg = f"{self._where}: its contours on one slice are too many or too long to be outlines of anything in a "
            msg += "scan; the file is damaged, export it again"
            raise VolumeError(msg, reason="damaged")


class _Outline:
    """One contour, and points close beside it on either side."""

    def __init__(self, points: np.ndarray, work: _Work) -> None:
        self.points, self._work = points, work
        self.low, self.high = points.min(axis=0), points.max(axis=0)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Even-odd; (N,) boolean."""
        inside = np.zeros(len(points), dtype=bool)
        near = ((points > self.low) & (points < self.high)).all(axis=1)
        self._work.spend(_PER_BOX * len(points) + np.count_nonzero(near) * len(self.points))
        if near.any():
            inside[near] = self._path.contains_points(points[near])
        return inside

    def leaves(self, points: np.ndarray) -> bool:
        """Whether any point lies off the line by more than what rounding or a sharp corner makes."""
        start, along = self.points, np.roll(self.points, -1, axis=0) - self.points
        square = np.maximum((along**2).sum(axis=1), 1e-12)
        for chunk in np.array_split(points, -(-len(points) // _AT_ONCE) or 1):
            self._work.spend(_PER_DISTANCE * len(chunk) * len(start))
            away = chunk[:, None] - start
            share = np.clip((away * along).sum(axis=2) / square, 0, 1)
            away -= share[:, :, None] * along
            if ((away**2).sum(axis=2).min(axis=1, initial=np.inf) > (_APART - _BESIDE) ** 2).any():
                return True
        return False

    @cached_property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, 2) just inside, and their partners just outside.

        Where both sides are inside or both are outside, as along the channel of a keyhole, there is no border.
        """
        along = np.roll(self.points, -1, axis=0) - self.points
        length = np.hypot(*along.T)
        self._work.spend(_PER_PLACE * float(np.ceil(length / _STEP).sum()))
        parts = np.ceil(length / _STEP).astype(np.int64)
        edge = np.repeat(np.arange(len(parts)), parts)
        part = np.arange(len(edge)) - np.repeat(np.cumsum(parts) - parts, parts)
        middle = self.points[edge] + along[edge] * ((part + 0.5) / parts[edge])[:, None]
        across = (along[:, ::-1] * (-_BESIDE, _BESIDE))[edge] / length[edge, None]
        here, there = middle + across, middle - across
        in_here, in_there = self.contains(here), self.contains(there)
        border = in_here != in_there
        inner, outer = np.where(in_here[:, None], (here, there), (there, here))
        return inner[border], outer[border]

    @cached_property
    def _path(self) -> Polygon:
        from matplotlib.path import Path as Polygon

        return Polygon(np.concatenate([self.points, self.points[:1]]))


def _relations(outlines: Sequence[_Outline], work: _Work) -> dict[tuple[int, int], str]:
    """How contours lie to each other, for the pairs (first < second) that share an area."""
    related = {}
    for first, second in _neighbours(outlines, work):
        work.spend(_PER_PAIR)
        how = _relation(outlines[first], outlines[second])
        if how:
            related[first, second] = how
    return related


def _neighbours(outlines: Sequence[_Outline], work: _Work) -> Iterator[tuple[int, int]]:
    """Yield the pairs (first < second) whose boxes overlap."""
    low = np.array([outline.low for outline in outlines])
    high = np.array([outline.high for outline in outlines])
    order = np.argsort(low[:, 0], kind="stable")
    low, high = low[order], high[order]
    ends = np.searchsorted(low[:, 0], high[:, 0] - _APART)  # only those before begin where this one has not ended
    for index, end in enumerate(ends):
        after = slice(index + 1, end)
        work.spend(_PER_BOX * max(0, int(end) - index))
        shared = np.minimum(high[after], high[index]) - np.maximum(low[after], low[index])
        for other in order[after][(shared > _APART).all(axis=1)]:
            yield min(int(order[index]), int(other)), max(int(order[index]), int(other))


def _relation(one: _Outline, other: _Outline) -> str:
    """``"same"``, ``"inside"`` or ``"around"`` the other, ``"crossing"``, or ``""`` for areas apart."""
    (one_in, one_out), (other_in, other_out) = one.sides, other.sides
    one_shared, other_shared = other.contains(one_in), one.contains(other_in)
    if not (one_shared.any() or other_shared.any()):
        return ""
    beyond = other.leaves(one_in[~one_shared]) or one.leaves(other_out[one.contains(other_out)])
    lacks = one.leaves(other_in[~other_shared]) or other.leaves(one_out[other.contains(one_out)])
    if beyond and lacks:
        touching = not (other.leaves(one_in[one_shared]) or one.leaves(other_in[other_shared]))
        return "" if touching else "crossing"
    return "around" if beyond else "inside" if lacks else "same"


def _once(points: np.ndarray) -> np.ndarray:
    """A contour that runs twice through the same points runs through them once."""
    half, rest = divmod(len(points), 2)
    if not rest and half > 2 and np.abs(points[:half] - points[half:]).max() < _APART:
        return _once(points[:half])
    return points


def _add(mask: np.ndarray, contour: np.ndarray, holes: Sequence[np.ndarray]) -> None:
    """Draw a contour without its holes into a mask."""
    low = np.clip(np.floor(contour.min(axis=0)), 0, mask.shape).astype(np.int64)
    high = np.clip(np.ceil(contour.max(axis=0)) + 1, low, mask.shape).astype(np.int64)
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    area, empty = fill_contours([contour - low], size), np.zeros(size, dtype=bool)
    for hole in holes:
        _add(empty, hole - low, ())
    mask[low[0] : high[0], low[1] : high[1]] |= area & ~empty
