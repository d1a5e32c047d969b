"""Our attention is PyTorch's with an attend set instead of a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.attention import FeedForwardBlock, MultiHeadAttention, SelfAttentionBlock
from tests.networks.cases import randomise

B, Q, N, D = 3, 5, 11, 12


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def attend_set(*shape: int) -> Tensor:
    attend = torch.rand(shape) < 0.4
    attend[..., 0] = True
    return attend


def torch_mask(attend: Tensor | None, heads: int) -> Tensor | None:
    """``(B·h, Q, N)``, ``True`` = not attended."""
    if attend is None:
        return None
    if attend.dim() == 2:
        attend = attend[:, None].expand(-1, Q, -1)
    if attend.dim() == 3:
        attend = attend[:, None].expand(-1, heads, -1, -1)
    return ~attend.reshape(B * heads, Q, N)


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("kind", ["all", "per key", "per query", "per head"])
def test_equals_torch_multihead_attention(heads: int, kind: str):
    shapes = {"per key": (B, N), "per query": (B, Q, N), "per head": (B, heads, Q, N)}
    attend = None if kind == "all" else attend_set(*shapes[kind])
    reference = randomise(nn.MultiheadAttention(D, heads, batch_first=True))
    ours = MultiHeadAttention(dim=D, heads=heads)
    ours.load_state_dict(reference.state_dict())
    inputs = [torch.randn(B, n, D) for n in (Q, N, N)]
    ours_in, reference_in = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    mixed = ours(*ours_in, attend)
    expected, _ = reference(*reference_in, attn_mask=torch_mask(attend, heads), need_weights=False)
    torch.testing.assert_close(mixed, expected)
    weight = torch.randn_like(mixed)
    (mixed * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours_in, reference_in, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_what_is_not_attended_has_no_influence():
    attention = MultiHeadAttention(dim=D, heads=2)
    query, key, value = (torch.randn(1, n, D) for n in (Q, N, N))
    attend = attend_set(1, N)
    before = attention(query, key, value, attend)
    key[~attend], value[~attend] = 100.0, -100.0
    torch.testing.assert_close(attention(query, key, value, attend), before)


def test_blocks_are_post_norm_residuals():
    x, position = (torch.randn(2, Q, D) for _ in range(2))
    inter = randomise(SelfAttentionBlock(dim=D, heads=2))
    valid = attend_set(2, Q)
    located = x + position
    torch.testing.assert_close(inter(x, position, valid), inter.norm(x + inter.self_attn(located, located, x, valid)))
    ffn = randomise(FeedForwardBlock(dim=D, hidden=7))
    torch.testing.assert_close(ffn(x), ffn.norm(x + ffn.linear2(ffn.linear1(x).clamp_min(0))))


def test_heads_must_divide_the_dimension():
    with pytest.raises(ConfigError, match="dim 12 is not divisible by heads 5"):
        MultiHeadAttention(dim=D, heads=5)
