"""Stacks of slices: the same as without memory, bounded, and never those of another volume."""

from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.data.planes import extract_slices
from boltzformer_monai.data.windows import NAMED_WINDOWS
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.slice_stacks import SliceStacks
from boltzformer_monai.io.volume import Volume

ABDOMEN, BONE = NAMED_WINDOWS["abdomen"], NAMED_WINDOWS["bone"]


def volume(seed: int) -> Volume:
    array = np.random.default_rng(seed).normal(40, 100, (12, 10, 5)).astype(np.float32)
    return Volume(array, np.diag([2.0, 2.0, 5.0, 1.0]), modality="CT")


@pytest.mark.parametrize("limit", [0, 2**20])
def test_slices_of_each_window_and_plane(limit: int) -> None:
    stacks, scan = SliceStacks(limit), volume(0)
    for _ in range(2):
        for window in (ABDOMEN, BONE):
            grey = Volume(window.apply(scan.array), scan.affine, modality="CT")
            for plane in ("axial", "coronal"):
                np.testing.assert_array_equal(stacks.windowed(scan, window)(plane), extract_slices(grey, plane))
    assert stacks.bytes == (4 * 600 if limit else 0)
    stacks.clear()
    assert stacks.bytes == 0


def test_the_same_object_is_sliced_once_and_an_equal_one_again() -> None:
    stacks, scan = SliceStacks(2**20), volume(0)
    first = stacks.windowed(scan, ABDOMEN)("axial")
    assert stacks.windowed(scan, ABDOMEN)("axial") is first
    assert stacks.windowed(volume(0), ABDOMEN)("axial") is not first


def test_the_least_lately_used_goes() -> None:
    stacks, scans = SliceStacks(1300), [volume(seed) for seed in range(3)]
    first = stacks.windowed(scans[0], ABDOMEN)("axial")
    stacks.windowed(scans[1], ABDOMEN)("axial")
    assert stacks.windowed(scans[0], ABDOMEN)("axial") is first
    second = stacks.windowed(scans[2], ABDOMEN)("axial")
    assert stacks.bytes == 1200
    assert stacks.windowed(scans[0], ABDOMEN)("axial") is first
    assert stacks.windowed(scans[2], ABDOMEN)("axial") is second


def test_a_volume_that_is_gone_holds_no_memory_for_long() -> None:
    stacks, places, reused = SliceStacks(2**20), set(), 0
    for seed in range(50):
        scan = volume(seed)
        reused += id(scan) in places  # new ones take the places in memory of old ones
        places.add(id(scan))
        wanted = extract_slices(Volume(ABDOMEN.apply(scan.array), scan.affine, modality="CT"), "axial")
        np.testing.assert_array_equal(stacks.windowed(scan, ABDOMEN)("axial"), wanted)
        del scan  # the last reference: nothing waits for the garbage collector
    assert reused > 10
    assert stacks.bytes == 600


def test_a_stack_that_is_too_large_is_not_kept() -> None:
    stacks, scan = SliceStacks(500), volume(0)
    assert stacks.windowed(scan, ABDOMEN)("axial").shape == (5, 10, 12)
    assert stacks.bytes == 0
    with pytest.raises(ConfigError, match="0 or more"):
        SliceStacks(-1)
