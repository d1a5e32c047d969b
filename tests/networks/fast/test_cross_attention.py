"""Sparse cross-attention equals attention to projected keys and values, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from boltzformer_monai.networks.attention import MultiHeadAttention
from boltzformer_monai.networks.fast.cross_attention import (
    CrossAttention,
    FastCrossAttentionBlock,
    LevelFeatures,
    projects,
)
from boltzformer_monai.networks.position import sine_position_encoding
from tests.networks.cases import randomise

B, D, H, W = 2, 16, 3, 5


def make_inputs(queries: int, *, per_head: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, feature map, level embedding and set, in double precision."""
    generator = torch.Generator().manual_seed(queries)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    shape = (B, per_head, queries, H * W) if per_head else (B, queries, H * W)
    attend = torch.rand(shape, generator=generator) < 0.4
    attend[..., 0] = True
    return draw(B, queries, D), draw(B, D, H, W), draw(D), attend


# (heads - 1) * queries < 16 absorbs the projections into the queries, more projects the patches.
@pytest.mark.parametrize(("queries", "heads"), [(1, 1), (3, 2), (5, 4), (6, 4), (40, 2), (9, 8)])
@pytest.mark.parametrize("per_head", [False, True])
def test_both_ways_equal_attention_to_keys_and_values(queries: int, heads: int, per_head: bool):
    query, feature, embedding, attend = make_inputs(queries, per_head=heads if per_head else 0)
    attention = randomise(CrossAttention(dim=D, heads=heads)).double()
    plain = MultiHeadAttention(dim=D, heads=heads).double()
    plain.load_state_dict(attention.state_dict())

    level = LevelFeatures.of(feature, embedding)
    if projects(queries, dim=D, heads=heads):
        level = level.for_projection()
    found = attention.attend_to(query, level, attend)
    value = feature.flatten(2).transpose(1, 2) + embedding
    key = value + sine_position_encoding(H, W, D).double().flatten(1).T
    expected = plain(query, key, value, attend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # positions are float32

    weights = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(0))
    leaves = (query, feature, embedding, *attention.parameters())
    mine = torch.autograd.grad((found * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), (query, feature, embedding, *plain.parameters()))
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)


def test_the_block_is_a_post_norm_residual():
    query, feature, embedding, attend = (part.float() if part.is_floating_point() else part for part in make_inputs(4))
    block = randomise(FastCrossAttentionBlock(dim=D, heads=2))
    level = LevelFeatures.of(feature, embedding)
    position = torch.randn(4, D, generator=torch.Generator().manual_seed(0))
    mixed = block.multihead_attn.attend_to(query + position, level, attend)
    torch.testing.assert_close(block(query, position, level, attend), block.norm(query + mixed))


def test_half_precision_features_keep_a_float32_softmax():
    query, feature, embedding, attend = (part.float() if part.is_floating_point() else part for part in make_inputs(4))
    attention = randomise(CrossAttention(dim=D, heads=2))
    with torch.no_grad():
        exact = attention.attend_to(query, LevelFeatures.of(feature, embedding), attend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = attention.attend_to(query, LevelFeatures.of(feature.bfloat16(), embedding), attend)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
