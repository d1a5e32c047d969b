"""Attention over unprojected patches, with a hand-written backward pass.

Autograd would save scores, mask and weights of every layer, and would allocate two feature gradients, hundreds of
megabytes. This saves only the weights and accumulates both gradients in place.
``tests/networks/fast/test_absorbed_attention.py`` compares with the plain form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from boltzformer_monai.networks.fast.pixel_products import in_autocast, pixel_products, spread, without_autocast


def attend_to_raw(absorbed: Tensor, feature: Tensor, rows: Tensor, columns: Tensor, attend: Tensor) -> Tensor:
    """``softmax(u·x + u·p) x`` over the attended patches x.

    Args:
        absorbed: u ``(B, h, Q, d)``, one vector per head and query.
        feature: patches ``(B, d, h_l, w_l)``.
        rows: position encoding p of the rows, first half of the channels ``(d/2, h_l)``; no gradient.
        columns: position encoding of the columns, second half ``(d/2, w_l)``; no gradient.
        attend: boolean, ``True`` = attended, ``(B, h or 1, Q, N)``.

    Returns:
        ``(B, h, Q, d)``.
    """
    feature = in_autocast(feature)
    with without_autocast(feature):  # products in the feature's dtype, positions and softmax in float32
        return _AttendToRaw.apply(absorbed, feature, rows, columns, attend)


class _AttendToRaw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, absorbed: Tensor, feature: Tensor, rows: Tensor, columns: Tensor, attend: Tensor) -> Tensor:
        heads, count = absorbed.shape[1:3]
        vectors = absorbed.flatten(1, 2).to(feature.dtype)
        scores = pixel_products(feature, vectors).to(rows.dtype).unflatten(1, (heads, count))  # (B, h, Q, h_l, w_l)
        half, single = len(rows), absorbed.to(rows.dtype)
        scores += torch.matmul(single[..., :half], rows)[..., :, None]
        scores += torch.matmul(single[..., half:], columns)[..., None, :]
        # Adding −∞ once for all heads is faster than masked_fill with a mask repeated per head.
        scores = scores.flatten(3).add_(torch.zeros_like(attend, dtype=rows.dtype).masked_fill_(~attend, float("-inf")))
        weights = torch.softmax(scores, dim=-1).to(feature.dtype).flatten(1, 2)  # (B, h·Q, N)
        ctx.save_for_backward(vectors, feature, rows, columns, weights)
        ctx.shape, ctx.dtype = absorbed.shape, absorbed.dtype
        return torch.bmm(weights, feature.flatten(2).transpose(1, 2)).view(absorbed.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        vectors, feature, rows, columns, weights = ctx.saved_tensors
        of_sum = gradients[0].flatten(1, 2).to(feature.dtype)  # (B, h·Q, d)
        of_scores = pixel_products(feature, of_sum).flatten(2).to(rows.dtype).mul_(weights)
        of_scores.addcmul_(weights.to(rows.dtype), of_scores.sum(-1, keepdim=True), value=-1)
        half_precision = of_scores.to(feature.dtype)
        of_vectors = torch.bmm(half_precision, feature.flatten(2).transpose(1, 2)).to(rows.dtype)
        grid = of_scores.unflatten(2, feature.shape[-2:])
        by_row, by_column = grid.sum(3), grid.sum(2)
        of_vectors += torch.cat((torch.matmul(by_row, rows.T), torch.matmul(by_column, columns.T)), dim=-1)
        of_feature = None
        if ctx.needs_input_grad[1]:
            of_feature = spread(vectors, half_precision, feature)
            of_feature = spread(of_sum, weights, feature, onto=of_feature)
        return of_vectors.view(ctx.shape).to(ctx.dtype), of_feature, None, None, None
