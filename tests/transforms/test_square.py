"""A slice into the square and back: content where it belongs, pixels square in mm, labels exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.transforms import SquareFit
from boltzformer_monai.transforms.square import resized_logits


def blobs(shape: tuple[int, int]) -> Tensor:
    """A label-like picture with structure at all borders, ``(1, 1, H, W)``."""
    rows, columns = (torch.linspace(0, 1, n) for n in shape)
    disc = (rows[:, None] - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.06
    corner = (rows[:, None] < 0.25) & (columns < 0.3)
    return (disc | corner).float()[None, None]


def dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(
    ("shape", "spacing", "size", "content", "offset"),
    [
        ((64, 64), (0.8, 0.8), 64, (64, 64), (0, 0)),
        ((32, 64), (1.0, 1.0), 64, (32, 64), (16, 0)),
        ((64, 32), (1.0, 1.0), 128, (128, 64), (0, 32)),
        ((10, 64), (5.0, 1.0), 64, (50, 64), (7, 0)),
        ((40, 512), (5.0, 0.7), 192, (107, 192), (42, 0)),
        ((100, 20), (0.5, 5.0), 64, (32, 64), (16, 0)),
        ((1, 512), (0.1, 1.0), 64, (1, 64), (31, 0)),
    ],
)
def test_pixels_become_square_in_mm(
    shape: tuple[int, int], spacing: tuple[float, float], size: int, content: tuple[int, int], offset: tuple[int, int]
):
    fit = SquareFit(shape, spacing, size)
    assert (fit.content, fit.offset) == (content, offset)
    image = fit.image(torch.ones(2, 1, *shape))
    assert image.shape == (2, 1, size, size)
    inside = torch.zeros(size, size)
    inside[offset[0] : offset[0] + content[0], offset[1] : offset[1] + content[1]] = 1
    torch.testing.assert_close(image[1, 0], inside)
    assert torch.equal(fit.label(torch.ones(1, 1, *shape))[0, 0], inside)


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [((32, 32), (1, 1), 64), ((24, 32), (1, 1), 96), ((16, 32), (2, 1), 64), ((32, 32), (1, 1), 32)],
)
def test_masks_come_back_exactly_where_the_scale_is_whole(
    shape: tuple[int, int], spacing: tuple[float, float], size: int
):
    fit = SquareFit(shape, spacing, size)
    mask = blobs(shape)
    assert torch.equal(fit.restore(fit.label(mask)) > 0.5, mask > 0.5)


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [((40, 101), (3.3, 0.9), 192), ((70, 50), (0.7, 1.1), 128), ((97, 64), (0.5, 2.5), 192)],
)
def test_masks_come_back_from_anisotropic_slices(shape: tuple[int, int], spacing: tuple[float, float], size: int):
    fit = SquareFit(shape, spacing, size)
    mask = blobs(shape)
    restored = fit.restore(fit.label(mask))
    assert restored.shape == mask.shape
    assert dice(restored > 0.5, mask > 0.5) > 0.97
    assert dice(restored.flip(-1) > 0.5, mask > 0.5) < 0.9


def test_logits_of_half_the_size_come_back_too():
    fit = SquareFit((48, 64), (1.0, 1.0), 64)
    mask = blobs((48, 64))
    logits = torch.nn.functional.avg_pool2d(fit.label(mask), 2) * 20 - 10
    assert dice(fit.restore(logits) > 0, mask > 0.5) > 0.95


def test_several_prompts_and_images_are_restored_alike():
    fit = SquareFit((20, 30), (2.0, 1.0), 64)
    logits = torch.randn(2, 3, 32, 32)
    together = fit.restore(logits)
    assert together.shape == (2, 3, 20, 30)
    torch.testing.assert_close(fit.restore(logits[1:, 2:])[0, 0], together[1, 2])


def test_labels_keep_their_values():
    label = torch.randint(0, 1000, (1, 1, 33, 57)).float()
    square = SquareFit((33, 57), (1.3, 0.8), 96).label(label)
    assert set(square.unique().tolist()) <= {0.0, *label.unique().tolist()}


def test_shrinking_an_image_averages():
    checkers = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float()[None, None]
    small = SquareFit((64, 64), (1, 1), 32).image(checkers)
    assert float((small[..., 2:-2, 2:-2] - 0.5).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [((0, 5), (1, 1), 64), ((5, 5), (0, 1), 64), ((5, 5), (1, -1), 64), ((5, 5), (1, 1), 0)],
)
def test_impossible_slices(shape: tuple[int, int], spacing: tuple[float, float], size: int):
    with pytest.raises(ConfigError, match="cannot fit a slice of shape"):
        SquareFit(shape, spacing, size)


def test_a_mask_of_one_cell_keeps_its_size_when_it_is_enlarged() -> None:
    """Beside a small object a trained network's logits are far below zero, which a linear interpolation spreads."""
    logits = torch.full((1, 1, 12, 12), -10.0)
    logits[0, 0, 5, 6] = 5
    for size in (48, 96):
        shown = SquareFit((size, size), (1.0, 1.0), 48).restore(logits) > 0
        trained = resized_logits(logits, (24, 24)) > 0  # as the loss sees it
        assert trained.sum() == 4
        assert 0.5 <= shown.sum() / (size / 24) ** 2 / trained.sum() <= 1
        assert shown[0, 0, size * 5 // 12 : size // 2, size // 2 : size * 7 // 12].sum() == shown.sum()
