from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.data.neighbours import Offset, blend, channel_offsets, reach


def test_adjacent_slices_whatever_their_distance() -> None:
    expected = [Offset(-2, 0), Offset(-1, 0), Offset(0, 0), Offset(1, 0), Offset(2, 0)]
    assert channel_offsets(2, spacing_mm=5.0) == channel_offsets(2, spacing_mm=0.3) == expected
    assert channel_offsets(0, distance_mm=2.0, spacing_mm=5.0) == [Offset(0, 0)]


@pytest.mark.parametrize(
    ("mm", "spacing", "positions", "slices"),
    [
        (2.0, 5.0, (-0.4, 0, 0.4), 1),
        (2.0, 0.5, (-4, 0, 4), 4),
        (3.0, 3.0000002, (-1, 0, 1), 1),  # no blending for the rounding of a header
        (2.5, 1.0, (-2.5, 0, 2.5), 3),
    ],
)
def test_distances_in_millimetres(mm: float, spacing: float, positions: tuple[float, ...], slices: int) -> None:
    found = channel_offsets(1, distance_mm=mm, spacing_mm=spacing)
    assert [offset.whole + offset.share for offset in found] == pytest.approx(positions)
    assert all(0 <= offset.share < 1 for offset in found)
    assert reach(1, distance_mm=mm, spacing_mm=spacing) == slices


def test_a_blend_is_linear_and_rounded() -> None:
    lower, upper = np.array([[0, 10, 255]], np.uint8), np.array([[255, 20, 255]], np.uint8)
    assert blend(lower, upper, 0) is lower
    assert blend(lower, upper, 0.25).tolist() == [[64, 12, 255]]
    assert blend(lower, upper, 0.25).dtype == np.uint8
