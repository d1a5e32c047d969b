"""The steps of BiomedParse v2, against what is worked out by hand or by another way; recordings: tests/golden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from boltzformer_monai.inferers.protocols.biomedparse_steps import (
    PixelSquare,
    channel_indices,
    enlarged,
    in_our_order,
    kept_prompts,
    merged,
    quantised,
    slicing_axis,
)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((5, 60, 84), 0),
        ((300, 300, 300), 0),
        ((90, 60, 99), 0),  # they differ by 39, half of their mean is 39.75
        ((90, 60, 100), 1),  # by 40, half of the mean
        ((90, 100, 60), 2),
        ((50, 60, 100), 0),
        ((60, 60, 100), 0),  # of equal ones the first
        ((512, 512, 40), 2),
    ],
)
def test_the_shape_chooses_the_axis(shape: tuple[int, int, int], axis: int) -> None:
    assert slicing_axis(shape) == axis


def test_slice_before_after_and_mirrored_ends() -> None:
    assert channel_indices(5, 0, 5, 1).tolist() == [[0, 1, 1], [1, 0, 2], [2, 1, 3], [3, 2, 4], [4, 3, 3]]
    assert channel_indices(5, 3, 4, 1).tolist() == [[3, 2, 4]]
    assert channel_indices(2, 0, 2, 1).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert channel_indices(1, 0, 1, 1).tolist() == [[0, 0, 0]]
    assert channel_indices(3, 0, 3, 0).tolist() == [[0], [1], [2]]
    assert in_our_order(channel_indices(5, 0, 5, 1)).tolist() == [[1, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 3]]
    assert in_our_order(channel_indices(9, 4, 5, 2)).tolist() == [[2, 3, 4, 5, 6]]
    assert in_our_order(channel_indices(3, 0, 3, 0)).tolist() == [[0], [1], [2]]
    assert channel_indices(3, 0, 1, 2).tolist() == [[0, 1, 1, 2, 2]]


def test_padding_is_zero_and_its_smaller_half_comes_first() -> None:
    pixels = torch.arange(1, 11, dtype=torch.uint8).view(1, 1, 2, 5)
    square = PixelSquare((2, 5), 5).image(pixels)  # of the square's size: nothing is resized
    assert square.dtype == torch.uint8
    assert square[0, 0].tolist() == [[0] * 5, [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [0] * 5, [0] * 5]
    wide = PixelSquare((3, 2), 3).image(torch.ones(1, 1, 3, 2))
    assert wide[0, 0].tolist() == [[1, 1, 0]] * 3


def cubic(distance: float, a: float = -0.75) -> float:
    x = abs(distance)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resized(line: np.ndarray, size: int) -> np.ndarray:
    """Bicubic along the last axis, number by number."""
    count, out = line.shape[-1], []
    for place in range(size):
        centre = (place + 0.5) * count / size - 0.5
        near = range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3)
        out.append(sum(cubic(centre - each) * line[..., min(max(each, 0), count - 1)] for each in near))
    return np.stack(out, axis=-1)


@pytest.mark.parametrize("size", [23, 40])
def test_bicubic_resizing_is_that_of_the_definition(size: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (1, 2, 31, 31)).astype(np.float64)
    wanted = resized(np.swapaxes(resized(np.swapaxes(values, -1, -2), size), -1, -2), size)
    found = PixelSquare((31, 31), size).image(torch.from_numpy(values).float())
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-3)
    assert wanted.min() < 0 or wanted.max() > 255  # float is not clamped
    across = np.clip(np.rint(resized(values, size)), 0, 255)  # rounded and clamped after each axis
    wanted = np.clip(np.rint(np.swapaxes(resized(np.swapaxes(across, -1, -2), size), -1, -2)), 0, 255)
    grey = PixelSquare((31, 31), size).image(torch.from_numpy(values).to(torch.uint8)).numpy().astype(float)
    assert np.abs(grey - wanted).max() <= 1
    assert (grey != wanted).mean() < 0.01  # halves


@pytest.mark.parametrize(("shape", "size"), [((41, 60), 64), ((100, 37), 64), ((64, 64), 64), ((7, 9), 128)])
def test_restoring_takes_the_nearest_pixel_rounded_down(shape: tuple[int, int], size: int) -> None:
    square = PixelSquare(shape, size)
    values = torch.randint(0, 1000, (3, size, size))
    found = square.restore(values)
    assert found.shape == (3, *shape)
    top, left = square.before
    for row, column in ((0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 3)):
        place = ((row + top) * size // square.edge, (column + left) * size // square.edge)
        assert found[:, row, column].tolist() == values[(slice(None), *place)].tolist()


def test_enlarging_keeps_what_has_the_size_already() -> None:
    logits = torch.randn(1, 2, 8, 8)
    assert enlarged(logits, 8) is logits
    assert enlarged(logits, 32).shape == (1, 2, 32, 32)
    torch.testing.assert_close(enlarged(torch.full((1, 1, 8, 8), 3.0), 32), torch.full((1, 1, 32, 32), 3.0))


def masks(*boxes: tuple[int, int]) -> torch.Tensor:
    """One line of ten pixels for each (first, last + 1)."""
    found = torch.zeros(len(boxes), 1, 10, dtype=torch.bool)
    for mask, (start, stop) in zip(found, boxes, strict=True):
        mask[0, start:stop] = True
    return found


def test_the_more_certain_of_two_overlapping_prompts_is_kept() -> None:
    assert kept_prompts(masks((0, 6), (2, 8)), [0.6, 0.9]) == [True, True]  # 4 of 8 is not above one half
    assert kept_prompts(masks((0, 6), (1, 7)), [0.6, 0.9]) == [False, True]  # 5 of 7
    assert kept_prompts(masks((0, 6), (1, 7)), [0.9, 0.9]) == [True, False]  # of equal ones the first
    assert kept_prompts(masks((0, 6), (1, 7)), [0.6, 0.9], suppress=False) == [True, True]
    assert kept_prompts(masks((0, 6), (1, 7)), [0.4, 0.9], suppress=False) == [False, True]
    # What was dropped drops nothing: the third overlaps the second alone.
    assert kept_prompts(masks((0, 6), (1, 7), (3, 8)), [0.9, 0.8, 0.7]) == [True, False, True]
    # Nested: the lesion in its organ stays as long as it is no more than half of it.
    assert kept_prompts(masks((0, 8), (0, 4)), [0.9, 0.8]) == [True, True]
    assert kept_prompts(masks((0, 8), (0, 5)), [0.9, 0.8]) == [True, False]


def test_what_is_absent_or_empty_keeps_nothing() -> None:
    assert kept_prompts(masks((0, 3), (5, 8), (8, 9)), [0.5, 0.499, 0.9]) == [True, False, True]
    assert kept_prompts(masks((0, 3), (5, 8)), [0.1, 0.2], presence=False) == [True, True]
    assert kept_prompts(masks((0, 0), (5, 8)), [0.9, 0.8]) == [False, True]
    assert kept_prompts(masks((0, 3)), [0.5]) == [False]  # one prompt alone must be above one half
    assert kept_prompts(masks((0, 3)), [0.51]) == [True]
    assert kept_prompts(masks((0, 3)), [0.1], presence=False) == [True]
    assert kept_prompts(masks((0, 3), (0, 3)), None) == [True, True]


def test_ties_go_to_the_background_and_then_to_the_first() -> None:
    p = torch.tensor([[0.5, 0.6, 0.7, 0.9], [0.5, 0.6, 0.8, 0.4]])[:, None]
    assert merged(p, [True, True]).tolist() == [[0, 1, 2, 1]]
    assert merged(p, [False, True]).tolist() == [[0, 2, 2, 0]]
    assert merged(p, [False, False]).tolist() == [[0, 0, 0, 0]]
    assert merged(p, [True, True], 0.75).tolist() == [[0, 0, 2, 1]]


def test_128_begins_above_one_half() -> None:
    half = torch.tensor(0.5)
    above, below = (torch.nextafter(half, torch.tensor(end)) for end in (1.0, 0.0))
    values = torch.stack([torch.tensor(0.0), torch.tensor(1e-9), below, half, above, torch.tensor(1.0)])
    assert quantised(values.clone()).tolist() == [0, 0, 127, 127, 128, 255]
