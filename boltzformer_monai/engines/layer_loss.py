"""Dice + cross-entropy of many masks of the same targets, with a hand-written backward pass.

Autograd would keep half a dozen maps of the size of all these logits, 250 MB each for one image of 1024 pixels and four
prompts. This keeps the logits alone, and works on one image at a time, in the cache of a CPU.
``tests/engines/test_loss.py`` compares with the formula for single masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["layer_losses"]

_SMALLEST = 1e-6  # in the denominator of Dice, as of single masks


def layer_losses(logits: Tensor, target: Tensor, factor: Tensor) -> Tensor:
    """Loss of every mask.

    Args:
        logits: ``(B, P, K, h, w)``.
        target: ``(B, P, h, w)``, 0–1.
        factor: weight of the object's pixels in the cross-entropy, ``(B, P)``; 1 weights all alike.

    Returns:
        ``(B, P, K)``.
    """
    return _LayerLosses.apply(logits.flatten(3), target.flatten(2), factor)


class _LayerLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target, factor)
        return torch.stack([_losses(*each) for each in zip(logits, target, factor, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, factor = ctx.saved_tensors
        result = torch.empty_like(logits)
        for z, y, f, out, gradient in zip(logits, target, factor, result, gradients[0], strict=True):
            _gradient(z, y, f, gradient, out)
        return result, None, None


def _losses(z: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """Logits ``(P, K, n)``, targets ``(P, n)`` and factors ``(P,)`` of one image → ``(P, K)``."""
    p = torch.sigmoid(z)
    w = 1 + (factor[:, None] - 1) * y
    shared, total = _overlap(p, y)
    entropy = torch.matmul(F.softplus(z), w[..., None]) - torch.matmul(z, (w * y)[..., None])
    return 1 - 2 * shared / total + entropy[..., 0] / w.sum(1)[:, None]


def _overlap(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Σ p y and Σ p² + Σ y², ``(P, K)``."""
    shared = torch.matmul(p, y[..., None])[..., 0]
    return shared, torch.linalg.vector_norm(p, dim=2).square() + y.square().sum(1)[:, None] + _SMALLEST


def _gradient(z: Tensor, y: Tensor, factor: Tensor, gradient: Tensor, out: Tensor) -> None:
    """The gradient of :func:`_losses` by z, times ``gradient`` ``(P, K)``, into ``out``."""
    p = torch.sigmoid(z)
    w = 1 + (factor[:, None] - 1) * y
    shared, total = _overlap(p, y)
    # Dice: ∂/∂p = 4 p Σpy/T² − 2 y/T, and ∂p/∂z = p (1 − p).
    torch.mul(p, (4 * shared / total.square() * gradient)[..., None], out=out)
    out -= (2 / total * gradient)[..., None] * y[:, None]
    out *= p
    out -= out * p
    # Cross-entropy: w (p − y)/Σw.
    scale = (gradient / w.sum(1)[:, None])[..., None] * w[:, None]
    out += p.sub_(y[:, None]).mul_(scale)
