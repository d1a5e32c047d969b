"""Dot products of every pixel's d channels with Q vectors of its image, the main operation of decoding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_PIXELS = 512  # per product with a contiguous map: all at once takes up to twice as long (docs/explanation/decoder.md)


def pixel_products(maps: Tensor, vectors: Tensor) -> Tensor:
    """vᵀx of every pixel x and vector v: ``(B, d, h, w)``, ``(B, Q, d)`` → ``(B, Q, h, w)``."""
    maps = in_autocast(maps)
    vectors = vectors.to(maps.dtype)
    if is_traced(maps, vectors):
        return _PixelProducts.apply(maps, vectors)
    return _products(maps, vectors)


class _PixelProducts(torch.autograd.Function):
    """One backward pass for all portions, which autograd would treat one by one."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, vectors: Tensor) -> Tensor:
        ctx.save_for_backward(maps, vectors)
        return _products(maps, vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, vectors = ctx.saved_tensors
        gradient = gradients[0].to(maps.dtype).flatten(2)  # (B, Q, N)
        of_maps = spread(vectors, gradient, maps) if ctx.needs_input_grad[0] else None
        return of_maps, torch.bmm(gradient, maps.flatten(2).transpose(1, 2)) if ctx.needs_input_grad[1] else None


def spread(vectors: Tensor, weights: Tensor, like: Tensor, onto: Tensor | None = None) -> Tensor:
    """Σ weight · vector at every pixel: ``(B, Q, d)``, ``(B, Q, N)`` → ``(B, d, h, w)``, in the layout of ``like``.

    For backward passes. With ``onto``, an earlier result, the sum is accumulated in place. No result is a view, so
    autograd can accumulate in place, too.
    """
    batch, dim, height, width = like.shape
    last = is_channels_last(like)
    layout = torch.channels_last if last else torch.contiguous_format
    result = torch.empty_like(like, memory_format=layout) if onto is None else onto
    if last:
        flat, factors = result.permute(0, 2, 3, 1).view(batch, height * width, dim), (weights.transpose(1, 2), vectors)
    else:
        flat, factors = result.view(batch, dim, height * width), (vectors.transpose(1, 2), weights)
    if onto is None:
        torch.bmm(*factors, out=flat)
    else:
        flat.baddbmm_(*factors)
    return result


def convolve_each(maps: Tensor, kernels: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """Convolution with kernels per image: ``(B, d, h, w)``, ``(B, Q, d, k, k)`` → ``(B, Q, h', w')``, contiguous."""
    pairs = zip(maps.split(1), kernels, strict=True)
    found = [F.conv2d(image, kernel, stride=stride, padding=padding) for image, kernel in pairs]
    return (found[0] if len(found) == 1 else torch.cat(found)).contiguous()


def is_traced(*tensors: Tensor) -> bool:
    """Whether autograd records operations on any of the tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def is_channels_last(maps: Tensor) -> bool:
    """Whether the memory format is channels last, and not contiguous as well."""
    return not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last)


def channels_last(maps: Tensor) -> Tensor:
    """Convert ``(B, d, h, w)`` to channels last."""
    if is_traced(maps) or maps.device.type != "cpu" or maps.is_contiguous(memory_format=torch.channels_last):
        return maps.contiguous(memory_format=torch.channels_last)
    result = torch.empty_like(maps, memory_format=torch.channels_last)
    # Eight maps at a time, the associativity of the cache: equal pixels of power-of-two maps share a cache set.
    for source, target in zip(maps.split(8, dim=1), result.split(8, dim=1), strict=True):
        target.copy_(source)
    return result


def in_autocast(x: Tensor) -> Tensor:
    """Cast to the active autocast dtype, if any."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Disable autocast, for code that chooses its own precision."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _products(maps: Tensor, vectors: Tensor) -> Tensor:
    """On CPUs the memory format decides.

    For channels last, convolution is fastest. It would copy contiguous maps, so those are multiplied in portions.
    """
    size = maps.shape[-2:]
    if maps.device.type != "cpu":
        return torch.bmm(vectors, maps.flatten(2)).unflatten(2, size)
    if is_channels_last(maps):
        return convolve_each(maps, vectors[..., None, None])
    portion = _PIXELS if size.numel() % _PIXELS == 0 else size.numel()
    result = maps.new_empty(*vectors.shape[:2], *size)
    for image, kernel, target in zip(maps, vectors, result, strict=True):
        portions, targets = (x.flatten(1).unflatten(1, (-1, portion)).transpose(0, 1) for x in (image, target))  # views
        targets.copy_(torch.bmm(kernel.expand(len(portions), -1, -1), portions))
    return result
