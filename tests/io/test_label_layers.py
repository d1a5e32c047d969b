"""Overlaps: every combination has its value, and each segment can be had back exactly."""

from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.io.label_layers import FlatSegments, Layer, flatten_layers

SHAPE = (6, 5, 4)


def masks_of(count: int, seed: int, share: float = 0.4) -> dict[int, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {number: generator.random(SHAPE) < share for number in range(1, count + 1)}


def flatten(masks: dict[int, np.ndarray]) -> FlatSegments:
    return flatten_layers(SHAPE, dict.fromkeys(masks, ""), [Layer(number, mask) for number, mask in masks.items()])


def voxels_of(flat: FlatSegments, number: int) -> np.ndarray:
    return np.isin(flat.array, [int(value) for value in flat.segments[str(number)].split("+")])


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_every_segment_comes_back(count: int) -> None:
    masks = masks_of(count, seed=count)
    flat = flatten(masks)
    for number, mask in masks.items():
        assert np.array_equal(voxels_of(flat, number), mask)
    occurring = {tuple(mask[voxel] for mask in masks.values()) for voxel in np.ndindex(SHAPE)}
    assert len(np.unique(flat.array)) == len(occurring)
    assert len(set(flat.segments.values())) == count


def test_segments_apart_keep_their_numbers() -> None:
    labels = np.random.default_rng(0).integers(0, 4, SHAPE)
    labels[labels == 2] = 300
    flat = flatten({number: labels == number for number in (300, 3, 1)})
    assert np.array_equal(flat.array, labels)
    assert flat.array.dtype == np.uint16
    assert flat.segments == {"300": "300", "3": "3", "1": "1"}


def test_only_combinations_that_are_left_get_values() -> None:
    inner, outer = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    outer[1:5] = True
    inner[2:4] = True
    flat = flatten({1: outer, 2: inner, 3: inner, 4: np.zeros(SHAPE, bool)})
    assert set(np.unique(flat.array)) == {0, 1, 5}  # never 1+2, which was there only for a moment
    assert flat.array.dtype == np.uint8
    assert flat.segments["1"] == "1+5"
    assert flat.segments["2"] == "5"
    assert flat.segments["3"] == "3+5"  # the same voxels, another text
    assert flat.segments["4"] == "4"


def test_parts_of_one_segment_are_united_at_their_corners() -> None:
    part = np.ones((2, 1, 3), bool)
    flat = flatten_layers(SHAPE, {7: "a"}, [Layer(7, part, (1, 2, 0)), Layer(7, part, (2, 2, 1))])
    expected = np.zeros(SHAPE, np.uint8)
    expected[1:3, 2, :3] = expected[2:4, 2, 1:] = 7
    assert np.array_equal(flat.array, expected)


def test_numbers_that_are_no_label_values_are_replaced() -> None:
    first, second = masks_of(2, seed=5, share=0.2).values()
    flat = flatten({0: first, 70000: second, 2: ~(first | second)})
    assert flat.array.dtype == np.uint8
    for number, mask in {0: first, 70000: second, 2: ~(first | second)}.items():
        assert np.array_equal(voxels_of(flat, number), mask)


def test_more_than_255_combinations() -> None:
    generator = np.random.default_rng(3)
    bits = generator.integers(0, 2, (10, 12, 12, 12)).astype(bool)
    titles = dict.fromkeys(range(1, 11), "")
    flat = flatten_layers((12, 12, 12), titles, (Layer(number + 1, mask) for number, mask in enumerate(bits)))
    assert flat.array.dtype == np.uint16
    for number, mask in enumerate(bits, 1):
        assert np.array_equal(voxels_of(flat, number), mask)


def test_names_are_per_target() -> None:
    masks = masks_of(3, seed=1, share=0.2)
    titles = {1: "tumor", 2: "liver", 3: "tumor"}
    flat = flatten_layers(SHAPE, titles, [Layer(number, mask) for number, mask in masks.items()])
    assert flat.names is not None
    by_name = {name: np.isin(flat.array, [int(v) for v in text.split("+")]) for text, name in flat.names.items()}
    assert np.array_equal(by_name["tumor"], masks[1] | masks[3])
    assert np.array_equal(by_name["liver"], masks[2])
    assert flatten(masks).names is None


def test_the_same_voxels_under_two_names_stay_two_targets() -> None:
    mask = masks_of(1, seed=2)[1]
    flat = flatten_layers(SHAPE, {1: "ptv", 2: "gtv"}, [Layer(1, mask), Layer(2, mask)])
    assert flat.names is not None
    assert sorted(flat.names.values()) == ["gtv", "ptv"]
    for text in flat.names:
        assert np.array_equal(np.isin(flat.array, [int(value) for value in text.split("+")]), mask)
