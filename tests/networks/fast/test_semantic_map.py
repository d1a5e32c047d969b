"""The semantic map read without being built equals the one that is, with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.networks.fast import semantic_map
from boltzformer_monai.networks.fast.semantic_map import SemanticMap, downsample


def make_map(
    size: tuple[int, int] = (16, 24), *, batch: int = 2, queries: int = 3, dim: int = 6
) -> tuple[SemanticMap, Tensor]:
    """A map of d channels made of 5, and vectors of queries, in double precision."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return SemanticMap(draw(batch, 5, *size), draw(dim, 5, 3, 3), draw(dim)), draw(batch, queries, dim)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("queries", "dim"), [(3, 6), (25, 30), (7, 6)])  # few; many; more than S has channels
def test_masks_of_a_map_that_is_not_built(batch: int, channels_last: bool, queries: int, dim: int):
    lazy, mu = make_map(batch=batch, queries=queries, dim=dim)
    if channels_last:
        lazy = SemanticMap(lazy.fine.contiguous(memory_format=torch.channels_last), lazy.weight, lazy.bias)
    assert lazy.shape == (batch, dim, 16, 24)
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


@pytest.mark.parametrize(("queries", "uses"), [(3, 1), (25, 0), (25, 1)])  # few; many; and S built at the level
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
def test_levels_equal_interpolated_masks(full: tuple[int, int], size: tuple[int, int], queries: int, uses: int):
    lazy, mu = make_map(full, queries=queries)
    logits = lazy.build().logits(mu)
    expected = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).flatten(2)
    for form in (lazy, lazy.build()):
        found = form.at_levels({size: uses}, queries=queries)[size].logits(mu.detach())
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(
        downsample(lazy.fine.detach(), size), F.interpolate(lazy.fine, size=size, mode="bilinear", align_corners=False)
    )


@pytest.mark.parametrize("queries", [3, 25])
@pytest.mark.parametrize(("full", "size"), [((16, 24), (4, 6)), ((16, 24), (2, 3)), ((17, 23), (5, 6))])
@pytest.mark.parametrize("held", [1, 2 * 16 * 24 * 2, 1 << 22])  # one query at a time, two, all
def test_the_largest_logits_of_levels(
    full: tuple[int, int], size: tuple[int, int], queries: int, held: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(semantic_map, "_LOGITS", held)
    lazy, mu = make_map(full, queries=queries)
    expected = F.adaptive_max_pool2d(lazy.build().logits(mu), size).flatten(2).detach()
    for form in (lazy, lazy.build()):
        found = form.largest_at_levels([size])[size].logits(mu.detach())
        assert not found.requires_grad
        torch.testing.assert_close(found, expected)


def test_the_cheaper_form_is_chosen():
    generator = torch.Generator().manual_seed(0)
    lazy = SemanticMap(torch.randn(1, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3), torch.randn(64))
    levels = {(4, 4): 3, (8, 8): 3, (16, 16): 3}
    assert lazy.suited(10, levels).weight is not None
    assert lazy.suited(64, levels).weight is None
    assert lazy.suited(10, {(5, 5): 1}).weight is None  # no even ratio: nothing to fold at that level
    built = lazy.build()
    assert built.suited(10, levels).fine is built.fine
    for queries, ready in ((10, False), (21, False), (22, True)):  # 3 times 22 queries are more than S's 64 channels
        assert all((level.ready is not None) == ready for level in lazy.at_levels(levels, queries=queries).values())


def test_channels_are_last_where_no_gradient_flows():
    lazy, _ = make_map()
    levels = {(8, 12): 1}
    assert lazy.suited(1, levels).fine is lazy.fine
    with torch.no_grad():
        assert lazy.suited(1, levels).fine.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(lazy.detach().suited(1, levels).fine, lazy.fine.detach())
