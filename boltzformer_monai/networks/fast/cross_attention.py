"""Sparse cross-attention from queries to the patches of a level; patches are projected only where that is cheaper.

With x a patch, e the level's embedding, p the patch's position and W_K = (W_K^1 … W_K^h) for h heads::

    q · W_K (x + e + p)  =  (W_Kᵀ q) · x  +  (W_Kᵀ q) · p  +  a constant, which the softmax over patches cancels
    Σ a_n W_V (x_n + e)  =  W_V Σ a_n x_n  +  W_V e,          because the attention weights a_n sum to 1

So no keys and values of N patches are needed: W_K is absorbed into the query, and W_V is applied to the sum. This
takes 4·h·Q·d·N operations instead of 4·(d + Q)·d·N, fewer while (h − 1)·Q < d. A patch's position encoding depends on
its row in the first d/2 channels and on its column in the others, so u · p is computed per row and per column.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.networks.attention import MultiHeadAttention
from boltzformer_monai.networks.fast.absorbed_attention import attend_to_raw
from boltzformer_monai.networks.fast.pixel_products import channels_last, in_autocast
from boltzformer_monai.networks.position import sine_row_and_column


class LevelFeatures(NamedTuple):
    """One level of visual features with its position encoding."""

    feature: Tensor
    """``(B, d, h, w)``."""
    embedding: Tensor
    """The level's embedding ``(d,)``."""
    rows: Tensor
    """Position encoding of the rows ``(d/2, h)``, first half of the channels."""
    columns: Tensor
    """Position encoding of the columns ``(d/2, w)``, second half."""
    located: Tensor | None = None
    """Feature plus position, if patches are projected."""

    @classmethod
    def of(cls, feature: Tensor, embedding: Tensor) -> LevelFeatures:
        """From a feature map ``(B, d, h, w)``, cast to the active autocast dtype."""
        height, width = feature.shape[-2:]
        rows, columns = sine_row_and_column(height, width, feature.shape[1], device=feature.device)
        kind = torch.promote_types(feature.dtype, torch.float32)  # scores over thousands of patches need float32
        return cls(in_autocast(feature), embedding, rows.to(kind), columns.to(kind))

    def for_projection(self) -> LevelFeatures:
        """Prepare for projection: channels last, position added once for all layers."""
        feature = channels_last(self.feature)
        rows, columns = torch.zeros_like(self.rows), torch.zeros_like(self.columns)
        rows, columns = torch.cat((self.rows, rows)), torch.cat((columns, self.columns))  # (d, h), (d, w)
        located = (feature + rows[..., None]).add_(columns[:, None])
        return self._replace(feature=feature, located=located.to(feature.dtype))


class CrossAttention(MultiHeadAttention):
    """``softmax(QKᵀ/√(d/h)) V`` of queries over a level's attended patches; weights as in the base class."""

    def attend_to(self, query: Tensor, level: LevelFeatures, attend: Tensor) -> Tensor:
        """Attend.

        Args:
            query: ``(B, Q, d)`` with its position.
            level: the level's features; from :meth:`LevelFeatures.for_projection` to project them (:func:`projects`).
            attend: boolean, ``True`` = attended: ``(B, Q, N)`` per query or ``(B, h, Q, N)`` per head; every row needs
                at least one ``True``.

        Returns:
            ``(B, Q, d)``.
        """
        count, dim = query.shape[1:]
        of_query, of_key, of_value = (part.unflatten(0, (self.heads, -1)) for part in self.in_proj_weight.chunk(3))
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)  # the key's bias is constant over the patches
        q = self._split_heads(F.linear(query, of_query.flatten(0, 1), query_bias))  # (B, h, Q, d/h)
        attend = attend if attend.dim() == 4 else attend[:, None]
        if level.located is not None:
            key = self._project(of_key, level.located)
            value = self._project(of_value, level.feature)
            mixed = F.scaled_dot_product_attention(q.to(key.dtype), key, value, attn_mask=attend)
        else:
            scaled = q * (1 / math.sqrt(dim // self.heads))
            absorbed = _by_head(scaled, of_key)  # W_Kᵀ q, (B, h, Q, d)
            summed = attend_to_raw(absorbed, level.feature, level.rows, level.columns, attend)
            mixed = _by_head(summed, of_value.transpose(1, 2))
        # The same for every patch: W_V e + b_V.
        constant = F.linear(level.embedding, of_value.flatten(0, 1), value_bias)
        return self.out_proj(mixed.transpose(1, 2).flatten(2) + constant)

    @staticmethod
    def _project(weight: Tensor, feature: Tensor) -> Tensor:
        """``(h, d/h, d)``, ``(B, d, h_l, w_l)`` → ``(B, h, N, d/h)``."""
        projected = F.conv2d(feature, weight.flatten(0, 1)[..., None, None].to(feature.dtype))
        return projected.flatten(2).unflatten(1, weight.shape[:2]).transpose(2, 3)


class FastCrossAttentionBlock(nn.Module):
    """``LayerNorm(q + MHA(q, V_A))``, parameters as in ``CrossAttentionBlock``."""

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = CrossAttention(dim=dim, heads=heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, query_position: Tensor, level: LevelFeatures, attend: Tensor) -> Tensor:
        """Queries, position ``(B, Q, d)``; a level of N patches; set ``(B, [h,] Q, N)`` → ``(B, Q, d)``."""
        return self.norm(queries + self.multihead_attn.attend_to(queries + query_position, level, attend))


def projects(queries: int, *, dim: int, heads: int) -> bool:
    """Whether projecting all patches is cheaper than absorbing, for this number of queries per image."""
    return (heads - 1) * queries >= dim


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """``(B, h, Q, c)``, ``(h, c, k)`` → ``(B, h, Q, k)``; ``matmul`` would copy the weight for every image."""
    found = torch.bmm(x.transpose(0, 1).flatten(1, 2), weight.to(x.dtype))
    return found.unflatten(1, (len(x), -1)).transpose(0, 1)
