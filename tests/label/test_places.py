"""Where a viewer should jump to: voxels and centre of each value of a label map."""

from __future__ import annotations

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.label.infer_task import label_places  # noqa: E402


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_voxels_and_centres(order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    labels = np.zeros((20, 30, 40), np.uint8).transpose(order)
    labels = labels[tuple(slice(None, None, step) for step in flips)]
    labels[5:12, 3:9, 10:15] = 7
    labels[2, 18, 1] = 200
    places = label_places(labels)
    assert set(places) == {7, 200}
    assert places[200] == (1, [2, 18, 1])
    voxels, centre = places[7]
    assert voxels == 7 * 6 * 5
    assert np.abs(np.array(centre) - [8, 5.5, 12]).max() <= 0.5


def test_a_large_object_and_none() -> None:
    labels = np.zeros((200, 10, 10), np.uint16)
    assert label_places(labels) == {}
    labels[20:181] = 3
    voxels, centre = label_places(labels)[3]
    assert voxels == 161 * 100
    assert np.abs(np.array(centre) - [100, 4.5, 4.5]).max() <= 4
