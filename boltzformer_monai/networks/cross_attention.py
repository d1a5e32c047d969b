"""Sparse cross-attention from queries to the patches of a level, without projecting the patches where that is dearer.

With x a patch, e the level's embedding, p the patch's position and W_K = (W_K^1 … W_K^h) for h heads::

    q · W_K (x + e + p)  =  (W_Kᵀ q) · x  +  (W_Kᵀ q) · p  +  a constant, which the softmax over patches cancels
    Σ a_n W_V (x_n + e)  =  W_V Σ a_n x_n  +  W_V e,          because the attention weights a_n sum to 1

So keys and values of N patches need not be made: W_K goes into the query, W_V follows the sum. That costs 4·h·Q·d·N
products instead of 4·(d + Q)·d·N, which pays while (h − 1)·Q < d. The position of a patch is a row part in its first
d/2 channels and a column part in the others, so its product needs only the rows and columns, never N positions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.networks.attention import MultiHeadAttention
from boltzformer_monai.networks.position import sine_row_and_column
from boltzformer_monai.networks.semantic_map import per_image


class LevelFeatures(NamedTuple):
    """One level of visual features, as queries see it."""

    feature: Tensor
    """``(B, d, h, w)``."""
    embedding: Tensor
    """The level's embedding ``(d,)``."""
    rows: Tensor
    """The position encoding of the rows ``(d/2, h)``, the first half of the channels."""
    columns: Tensor
    """That of the columns ``(d/2, w)``, the second half."""

    @classmethod
    def of(cls, feature: Tensor, embedding: Tensor) -> LevelFeatures:
        """Make it from a feature map ``(B, d, h, w)``."""
        height, width = feature.shape[-2:]
        rows, columns = sine_row_and_column(height, width, feature.shape[1], device=feature.device)
        return cls(feature, embedding, rows, columns)


class CrossAttention(MultiHeadAttention):
    """``softmax(QKᵀ/√(d/h)) V`` of queries over a level's attended patches; weights as in the base class."""

    def attend_to(self, query: Tensor, level: LevelFeatures, attend: Tensor) -> Tensor:
        """Attend.

        Args:
            query: ``(B, Q, d)`` with its position.
            level: what is attended to.
            attend: boolean, ``True`` = attended: ``(B, Q, N)`` per query or ``(B, h, Q, N)`` per head; every row must
                attend to something.

        Returns:
            ``(B, Q, d)``.
        """
        count, dim = query.shape[1:]
        of_query, of_key, of_value = (part.unflatten(0, (self.heads, -1)) for part in self.in_proj_weight.chunk(3))
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)  # the key's bias is constant over the patches
        scaled = F.linear(query, of_query.flatten(0, 1), query_bias) * (1 / math.sqrt(dim // self.heads))
        scaled = self._split_heads(scaled)  # (B, h, Q, d/h)
        absorbed = torch.matmul(scaled, of_key.to(scaled.dtype))  # (B, h, Q, d) = W_Kᵀ q
        project = (self.heads - 1) * count >= dim
        patches = level.feature.flatten(2)
        if project:
            keys = _project(of_key, level.feature).unflatten(1, (self.heads, -1))
            scores = torch.matmul(scaled, keys)
        else:
            scores = per_image(level.feature, absorbed.flatten(1, 2)[..., None, None])
            scores = scores.flatten(2).unflatten(1, (self.heads, count))
        scores = _add_position(_at_least_single(scores), _at_least_single(absorbed), level)
        blocked = ~(attend if attend.dim() == 4 else attend[:, None])
        weights = torch.softmax(scores.masked_fill_(blocked, float("-inf")), dim=-1).to(patches.dtype)
        if project:
            values = _project(of_value, level.feature).unflatten(1, (self.heads, -1))
            mixed = torch.matmul(weights, values.transpose(2, 3))
        else:
            summed = torch.bmm(weights.flatten(1, 2), patches.transpose(1, 2)).unflatten(1, (self.heads, count))
            mixed = torch.matmul(summed, of_value.transpose(1, 2).to(summed.dtype))
        # What every patch adds alike: W_V e + b_V.
        constant = F.linear(level.embedding, of_value.flatten(0, 1), value_bias)
        return self.out_proj(mixed.transpose(1, 2).flatten(2) + constant)


class CrossAttentionBlock(nn.Module):
    """Step 2 of a BoltzFormer layer: ``LayerNorm(q + MHA(q, V_A))``."""

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = CrossAttention(dim=dim, heads=heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, query_position: Tensor, level: LevelFeatures, attend: Tensor) -> Tensor:
        """Queries, position ``(B, Q, d)``; a level of N patches; set ``(B, [h,] Q, N)`` → ``(B, Q, d)``."""
        return self.norm(queries + self.multihead_attn.attend_to(queries + query_position, level, attend))


def _project(weight: Tensor, feature: Tensor) -> Tensor:
    """``(h, d/h, d)``, ``(B, d, h_l, w_l)`` → ``(B, d, N)``."""
    return F.conv2d(feature, weight.flatten(0, 1)[..., None, None]).flatten(2)


def _at_least_single(x: Tensor) -> Tensor:
    """float32 of half precision: scores over thousands of patches want it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _add_position(scores: Tensor, absorbed: Tensor, level: LevelFeatures) -> Tensor:
    """Add ``absorbed · p`` to the scores ``(B, h, Q, N)``, in place."""
    half = len(level.rows)
    rows = torch.matmul(absorbed[..., :half], level.rows)
    columns = torch.matmul(absorbed[..., half:], level.columns)
    grid = scores.unflatten(-1, (rows.shape[-1], columns.shape[-1]))
    return grid.add_(rows[..., :, None]).add_(columns[..., None, :]).flatten(3)
