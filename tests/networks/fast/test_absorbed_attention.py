"""Attention over raw patches equals its plain form, with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from boltzformer_monai.networks.fast.absorbed_attention import attend_to_raw
from boltzformer_monai.networks.fast.pixel_products import pixel_products, spread

B, HEADS, Q, D, H, W = 2, 3, 4, 8, 5, 6


def plain(absorbed: Tensor, feature: Tensor, rows: Tensor, columns: Tensor, attend: Tensor) -> Tensor:
    """As the equation says it."""
    position = torch.cat((rows[:, :, None].expand(-1, -1, W), columns[:, None].expand(-1, H, -1)))
    patches = feature.flatten(2).transpose(1, 2)  # (B, N, d)
    located = patches + position.flatten(1).T
    scores = torch.einsum("bhqd,bnd->bhqn", absorbed, located).masked_fill(~attend, float("-inf"))
    return torch.einsum("bhqn,bnd->bhqd", scores.softmax(-1), patches)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("heads_of_set", [1, HEADS])
@pytest.mark.parametrize("features_learn", [False, True])
def test_equals_the_plain_form(channels_last: bool, heads_of_set: int, features_learn: bool):
    absorbed, feature = draw(B, HEADS, Q, D).requires_grad_(), draw(B, D, H, W, seed=1)
    if channels_last:
        feature = feature.contiguous(memory_format=torch.channels_last)
    feature.requires_grad_(features_learn)
    attend = draw(B, heads_of_set, Q, H * W, seed=2) > 0.5
    attend[..., 3] = True
    arguments = (absorbed, feature, draw(D // 2, H, seed=3), draw(D // 2, W, seed=4), attend)
    found, expected = attend_to_raw(*arguments), plain(*arguments)
    torch.testing.assert_close(found, expected)
    weights = draw(*found.shape, seed=5)
    leaves = (absorbed, feature) if features_learn else (absorbed,)
    mine, theirs = (torch.autograd.grad((x * weights).sum(), leaves) for x in (found, expected))
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other)


def test_only_the_weights_are_kept_for_the_backward_pass():
    absorbed, feature = draw(B, HEADS, Q, D).requires_grad_(), draw(B, D, H, W, seed=1).requires_grad_()
    attend = torch.ones(B, 1, Q, H * W, dtype=torch.bool)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend_to_raw(absorbed, feature, draw(D // 2, H), draw(D // 2, W), attend)
    large = [x for x in kept if x.shape[-1] == H * W]
    assert [x.shape for x in large] == [(B, HEADS * Q, H * W)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(5, 6), (32, 32)])  # at once, and in portions
def test_products_of_pixels(channels_last: bool, size: tuple[int, int]):
    maps, vectors = draw(B, D, *size), draw(B, Q, D, seed=1).requires_grad_()
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    maps.requires_grad_()
    found, expected = pixel_products(maps, vectors), torch.einsum("bdhw,bqd->bqhw", maps, vectors)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pixel_products(maps.detach(), vectors.detach()), expected.detach())
    weights = draw(*found.shape, seed=2)
    mine, theirs = (torch.autograd.grad((x * weights).sum(), (maps, vectors)) for x in (found, expected))
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other)
    assert mine[0].stride() == maps.stride()


@pytest.mark.parametrize("channels_last", [False, True])
def test_sums_are_added_to_earlier_ones_in_place(channels_last: bool):
    like = draw(B, D, H, W)
    if channels_last:
        like = like.contiguous(memory_format=torch.channels_last)
    vectors, weights = draw(B, Q, D, seed=1), draw(B, Q, H * W, seed=2)
    expected = torch.einsum("bqd,bqn->bdn", vectors, weights).view(B, D, H, W)
    first = spread(vectors, weights, like)
    assert not first._is_view()  # autograd adds in place only to tensors that own their memory
    assert first.stride() == like.stride()
    torch.testing.assert_close(first, expected)
    assert spread(2 * vectors, weights, like, onto=first) is first
    torch.testing.assert_close(first, 3 * expected)


def test_features_with_other_strides_have_the_same_gradients():
    maps, vectors = draw(B, D, W, H).transpose(2, 3).requires_grad_(), draw(B, Q, D, seed=1)
    weights = draw(B, Q, H, W, seed=2)
    (found,) = torch.autograd.grad((pixel_products(maps, vectors) * weights).sum(), maps)
    (expected,) = torch.autograd.grad((torch.einsum("bdhw,bqd->bqhw", maps, vectors) * weights).sum(), maps)
    torch.testing.assert_close(found, expected)


def test_positions_and_softmax_are_float32_under_autocast():
    absorbed, rows, columns = 3 * draw(B, HEADS, Q, D).float(), draw(D // 2, H).float(), draw(D // 2, W).float()
    feature = torch.zeros(B, D, H, W)
    attend = torch.ones(B, 1, Q, H * W, dtype=torch.bool)
    kept: list[Tensor] = []
    absorbed.requires_grad_()
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
        attend_to_raw(absorbed, feature, rows, columns, attend)
    position = torch.cat((rows[:, :, None].expand(-1, -1, W), columns[:, None].expand(-1, H, -1))).flatten(1)
    exact = torch.softmax(torch.matmul(absorbed, position), dim=-1).flatten(1, 2)
    (weights,) = [x for x in kept if x.shape == exact.shape]
    torch.testing.assert_close(weights, exact.bfloat16())  # rounded once, at the end


def test_a_second_derivative_is_refused_instead_of_wrong():
    absorbed, feature = draw(B, HEADS, Q, D).requires_grad_(), draw(B, D, H, W, seed=1)
    attend = torch.ones(B, 1, Q, H * W, dtype=torch.bool)
    attended = attend_to_raw(absorbed, feature, draw(D // 2, H), draw(D // 2, W), attend)
    (first,) = torch.autograd.grad(attended.square().sum(), absorbed, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
