"""Closed contours to pixels, by the even-odd rule and one clear convention for pixels on the contour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["fill_contours"]

_DECIMALS = 3  # of a pixel: contours drawn through pixel centres must not depend on how their file rounds


def fill_contours(contours: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels whose centres lie inside an odd number of contours: an inner contour is a hole.

    A centre on a contour belongs to the side of the smaller index only (half-open, as in ``range``), so that two areas
    that share an edge neither overlap nor leave a gap. What lies outside the picture is cut off.

    Args:
        contours: each (N, 2) in pixels, the centre of the first pixel being (0, 0); closed from last to first point.
        shape: of the picture.

    Returns:
        Boolean, of that shape.
    """
    rows, columns = shape
    starts = np.concatenate([np.round(contour, _DECIMALS) for contour in contours])
    ends = np.concatenate([np.round(np.roll(contour, -1, axis=0), _DECIMALS) for contour in contours])
    low, high = np.where(starts[:, :1] <= ends[:, :1], (starts, ends), (ends, starts))
    # Every edge crosses the rows low <= row < high; on each it inverts all pixels from the crossing on.
    first = np.clip(np.ceil(low[:, 0]), 0, rows).astype(np.int64)
    crossed = np.clip(np.ceil(high[:, 0]), 0, rows).astype(np.int64) - first
    edge = np.repeat(np.arange(len(starts)), crossed)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
    slope = (high[edge, 1] - low[edge, 1]) / (high[edge, 0] - low[edge, 0])
    crossing = np.round(low[edge, 1] + (row - low[edge, 0]) * slope, 2 * _DECIMALS)
    column = np.clip(np.ceil(crossing), 0, columns).astype(np.int64)
    inverted = np.bincount(row * (columns + 1) + column, minlength=rows * (columns + 1))
    return (inverted.reshape(rows, columns + 1).cumsum(axis=1)[:, :columns] % 2).astype(bool)
