"""Stacks of slices: the same as without memory, bounded, and never those of another volume."""

from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.data.planes import extract_slices, radiological
from boltzformer_monai.data.windows import NAMED_WINDOWS, GreyScale
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.slice_stacks import SliceStacks
from boltzformer_monai.io.volume import Volume

ABDOMEN, BONE = NAMED_WINDOWS["abdomen"], NAMED_WINDOWS["bone"]


def volume(seed: int) -> Volume:
    array = np.random.default_rng(seed).normal(40, 100, (12, 10, 5)).astype(np.float32)
    return Volume(array, np.diag([2.0, 2.0, 5.0, 1.0]), modality="CT")


def cut(stacks: SliceStacks, scan: Volume, plane: str = "axial", window: GreyScale = ABDOMEN) -> np.ndarray:
    return stacks.windowed(scan, window)(radiological(scan, plane))


@pytest.mark.parametrize("limit", [0, 2**20])
def test_slices_of_each_window_and_plane(limit: int) -> None:
    stacks, scan = SliceStacks(limit), volume(0)
    for _ in range(2):
        for window in (ABDOMEN, BONE):
            grey = Volume(window.apply(scan.array), scan.affine, modality="CT")
            for plane in ("axial", "coronal"):
                np.testing.assert_array_equal(cut(stacks, scan, plane, window), extract_slices(grey, plane))
    assert stacks.bytes == (4 * 600 if limit else 0)
    stacks.clear()
    assert stacks.bytes == 0


def test_the_same_object_is_sliced_once_and_an_equal_one_again() -> None:
    stacks, scan = SliceStacks(2**20), volume(0)
    first = cut(stacks, scan)
    assert cut(stacks, scan) is first
    assert cut(stacks, volume(0)) is not first


def test_the_least_lately_used_goes() -> None:
    stacks, scans = SliceStacks(1300), [volume(seed) for seed in range(3)]
    first = cut(stacks, scans[0])
    cut(stacks, scans[1])
    assert cut(stacks, scans[0]) is first
    second = cut(stacks, scans[2])
    assert stacks.bytes == 1200
    assert cut(stacks, scans[0]) is first
    assert cut(stacks, scans[2]) is second


def test_a_volume_that_is_gone_holds_no_memory_for_long() -> None:
    stacks, places, reused = SliceStacks(2**20), set(), 0
    for seed in range(50):
        scan = volume(seed)
        reused += id(scan) in places  # new ones take the places in memory of old ones
        places.add(id(scan))
        wanted = extract_slices(Volume(ABDOMEN.apply(scan.array), scan.affine, modality="CT"), "axial")
        np.testing.assert_array_equal(cut(stacks, scan), wanted)
        del scan  # the last reference: nothing waits for the garbage collector
    assert reused > 10
    assert stacks.bytes == 600


def test_a_stack_that_is_too_large_is_not_kept() -> None:
    stacks, scan = SliceStacks(500), volume(0)
    assert cut(stacks, scan).shape == (5, 10, 12)
    assert stacks.bytes == 0
    with pytest.raises(ConfigError, match="0 or more"):
        SliceStacks(-1)
