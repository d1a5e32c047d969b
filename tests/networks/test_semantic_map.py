"""The semantic map read without being built equals the one that is, with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.networks.semantic_map import SemanticMap, _downsample


def make_map(size: tuple[int, int] = (16, 24), *, batch: int = 2) -> tuple[SemanticMap, Tensor]:
    """A map of 6 channels made of 5, and vectors of 3 queries, in double precision."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return SemanticMap(draw(batch, 5, *size), draw(6, 5, 3, 3), draw(6)), draw(batch, 3, 6)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_masks_of_a_map_that_is_not_built(batch: int, channels_last: bool):
    lazy, mu = make_map(batch=batch)
    if channels_last:
        lazy = SemanticMap(lazy.fine.contiguous(memory_format=torch.channels_last), lazy.weight, lazy.bias)
    assert lazy.shape == (batch, 6, 16, 24)
    built = lazy.build()
    assert built.weight is None
    expected = torch.einsum("bqd,bdhw->bqhw", mu, F.conv2d(lazy.fine, lazy.weight, lazy.bias, padding=1))
    weights = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(1))
    leaves = (mu, lazy.fine, lazy.weight, lazy.bias)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves, retain_graph=True)
    for form in (lazy, built):
        found = form.logits(mu)
        torch.testing.assert_close(found, expected)
        for mine, theirs in zip(torch.autograd.grad((found * weights).sum(), leaves), wanted, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("full", "size"),
    [
        ((16, 24), (8, 12)),
        ((16, 24), (4, 6)),
        ((16, 24), (2, 3)),
        ((32, 48), (2, 3)),
        ((18, 30), (6, 10)),
        ((16, 24), (16, 24)),
        ((17, 23), (5, 6)),
        ((16, 24), (8, 6)),
        ((8, 8), (16, 16)),
    ],
)
def test_levels_equal_interpolated_masks(full: tuple[int, int], size: tuple[int, int]):
    lazy, mu = make_map(full)
    logits = lazy.build().logits(mu)
    expected = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).flatten(2)
    for form in (lazy, lazy.build()):
        found = form.at_levels([size])[0].logits(mu.detach())
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(
        _downsample(lazy.fine, size), F.interpolate(lazy.fine, size=size, mode="bilinear", align_corners=False)
    )


def test_the_cheaper_form_is_chosen():
    generator = torch.Generator().manual_seed(0)
    lazy = SemanticMap(torch.randn(1, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3), torch.randn(64))
    levels = [(4, 4), (8, 8), (16, 16)] * 3
    assert lazy.suited(10, levels, training=True) is lazy
    assert lazy.suited(10, levels, training=False) is lazy
    assert lazy.suited(640, levels, training=False).weight is None
    assert lazy.suited(10, [(5, 5)], training=True).weight is None  # no even ratio: nothing to fold at that level
    built = lazy.build()
    assert built.suited(10, levels, training=True) is built
