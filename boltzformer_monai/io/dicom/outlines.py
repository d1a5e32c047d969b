"""Pixels to closed contours: the outlines of a mask, along the edges of its pixels.

Every rule of filling gives the mask back: even-odd, nonzero winding, the union or the exclusive or of contours. No
pixel centre is nearer to a contour than a quarter of a pixel, and areas are exact, also that of a single pixel.
"""

from __future__ import annotations

import numpy as np

# The sides of a pixel, clockwise from the top: where the neighbour is, and the corner that a side starts at. A side
# runs towards the neighbour of the next one.
_BESIDE = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
_START = np.array([(-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)])
_RIGHT, _LEFT = 1, 3
_CHANNEL = 0.25  # pixels below the centres of its row: no rule may have to decide on which side of it a centre lies


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outline of each part of a mask; pixels that touch at a corner only are parts of their own.

    The holes of a part belong to its outline by the keyhole technique (DICOM PS3.3 C.8.8.6.3): a channel of no width
    leads to each. Time and memory are proportional to the mask's pixels.

    Args:
        mask: (rows, columns), boolean.

    Returns:
        Polygons (N, 2), float64 in pixels, the centre of the first pixel being (0, 0); closed from last to first point.
    """
    from scipy import ndimage

    found = np.argwhere(mask)
    if not len(found):
        return []
    low, high = found.min(axis=0), found.max(axis=0) + 1
    inside = np.pad(mask[low[0] : high[0], low[1] : high[1]].astype(bool), 1)
    side, row, column, following = _sides(inside)
    points = np.stack([row, column], axis=1) + _START[side]
    part = ndimage.label(inside)[0][row, column]
    firsts = np.unique(part, return_index=True)[1]  # the top of a part's first pixel: on its outer border
    points, following = _with_channels(inside, side, row, column, points, following, firsts)
    return [polygon + (low - 1) for polygon in _polygons(points, following, firsts)]


def _sides(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the sides of pixels that have nothing beside them: side, row, column, and the number of the next one."""
    beside = np.stack([np.roll(inside, tuple(-step), axis=(0, 1)) for step in _BESIDE])
    side, row, column = np.nonzero(inside & ~beside)
    number = np.zeros(beside.shape, np.int64)
    number[side, row, column] = np.arange(len(side))
    ahead = np.stack([row, column], axis=1) + _BESIDE[(side + 1) % 4]
    across = ahead + _BESIDE[side]
    straight, inner = inside[tuple(ahead.T)], inside[tuple(across.T)]
    turned = straight & inner  # round an inner corner
    place = np.where(turned[:, None], across, ahead)
    place[~straight] = np.stack([row, column], axis=1)[~straight]  # round a corner of the same pixel
    turn = np.where(turned, -1, np.where(straight, 0, 1))
    return side, row, column, number[(side + turn) % 4, place[:, 0], place[:, 1]]


def _with_channels(
    inside: np.ndarray,
    side: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    points: np.ndarray,
    following: np.ndarray,
    firsts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Join every hole to the border on its left, by a channel through the part's pixels.

    It starts at the hole's leftmost side, so it ends at a border that reaches further to the left: the outer one in the
    end. A run of pixels in a row has one channel at most.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(side)
    graph = coo_array((np.ones(count, bool), (np.arange(count), following)), shape=(count, count))
    border = connected_components(graph, directed=False)[1]
    of_hole = np.flatnonzero((side == _RIGHT) & ~np.isin(border, border[firsts]))
    of_hole = of_hole[np.lexsort((row[of_hole], column[of_hole]))]
    start = of_hole[np.unique(border[of_hole], return_index=True)[1]]
    outside = np.where(inside, 0, np.arange(inside.shape[1]))
    end_column = np.maximum.accumulate(outside, axis=1)[row[start], column[start]] + 1
    number = np.zeros(inside.shape, np.int64)
    left = np.flatnonzero(side == _LEFT)
    number[row[left], column[left]] = left
    end = number[row[start], end_column]
    # From the border on the left into the channel, round the hole, and back.
    into, arrive, leave, back = count + np.arange(4 * len(start)).reshape(4, -1)
    height = row[start] + _CHANNEL
    at_end, at_start = (np.stack([height, each], axis=1) for each in (end_column - 0.5, column[start] + 0.5))
    following = np.concatenate([following, arrive, following[start], back, following[end]])
    following[end], following[start] = into, leave
    return np.concatenate([points, at_end, at_start, at_start, at_end]), following


def _polygons(points: np.ndarray, following: np.ndarray, firsts: np.ndarray) -> list[np.ndarray]:
    """Follow each border from its first point, without the points on a straight line."""
    polygons, after = [], following.tolist()
    for first in firsts.tolist():
        order, current = [first], after[first]
        while current != first:
            order.append(current)
            current = after[current]
        polygon = points[order]
        along = np.roll(polygon, -1, axis=0) - polygon
        before = np.roll(along, 1, axis=0)
        polygons.append(polygon[along[:, 0] * before[:, 1] != along[:, 1] * before[:, 0]])
    return polygons
