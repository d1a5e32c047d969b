"""Packed masks give back what was put in, in any order, and stay small."""

from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.packed_masks import PackedMasks


def _packed(volume: np.ndarray, order: list[int]) -> PackedMasks:
    packed = PackedMasks(volume.shape)
    for index in order:
        packed.put(index, volume[index])
    return packed


def test_what_was_put_in_comes_out_in_any_order() -> None:
    volume = np.random.default_rng(0).random((5, 13, 11)) < 0.2
    volume[1] = False
    volume[4, 12, 10] = volume[0, 0, 0] = True
    packed = _packed(volume, [3, 0, 4, 1, 2])
    assert (packed.dense() == volume).all()


def test_a_second_mask_of_a_slice_replaces_the_first() -> None:
    volume = np.ones((5, 13, 11), bool)
    packed = _packed(volume, [0, 1])
    packed.put(1, np.zeros((13, 11), bool))
    assert packed.dense().any((1, 2)).tolist() == [True, False, False, False, False]


def test_slices_that_are_not_kept_are_empty() -> None:
    volume = np.ones((5, 13, 11), bool)
    packed = _packed(volume, [0, 1, 2, 3, 4])
    packed.keep(np.array([False, True, True, False, False]))
    assert packed.dense().any((1, 2)).tolist() == [False, True, True, False, False]


def test_memory_is_a_small_part_of_the_dense_volume() -> None:
    y, x = np.mgrid[:512, :512]
    packed = PackedMasks((20, 512, 512))
    for index in range(20):
        packed.put(index, (y - 256) ** 2 + (x - 200) ** 2 < 100**2)
    assert packed.nbytes < 20 * 512 * 512 / 100


@pytest.mark.parametrize(("index", "shape"), [(5, (13, 11)), (-1, (13, 11)), (0, (11, 13))])
def test_a_slice_of_another_volume_is_refused(index: int, shape: tuple[int, int]) -> None:
    with pytest.raises(DatasetError, match="none of a volume"):
        PackedMasks((5, 13, 11)).put(index, np.ones(shape, bool))
