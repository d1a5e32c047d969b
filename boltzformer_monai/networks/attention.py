"""Multi-head attention, and the transformer blocks of decoder and pixel decoder.

Plain matrix products, softmax in at least float32: faster on CPUs at these small shapes than
``scaled_dot_product_attention``, and masks may differ per query and head. Parameters have the names and layout of
``torch.nn.MultiheadAttention``, so published weights load by renaming.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError


class MultiHeadAttention(nn.Module):
    """``softmax(QKᵀ/√(d/h)) V`` over the attended keys, h heads, with output projection.

    Args:
        dim: d, divisible by ``heads``.
        heads: number of heads h.
    """

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"dim {dim} is not divisible by heads {heads}")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: ``(B, Q, d)``.
            key: ``(B, N, d)``.
            value: ``(B, N, d)``.
            attend: boolean, ``True`` = attended: ``(B, N)`` per key, ``(B, Q, N)`` per query or ``(B, h, Q, N)`` per
                head; every row needs at least one ``True``. ``None`` attends to everything.

        Returns:
            ``(B, Q, d)``.
        """
        dim = query.shape[-1]
        if key is query:  # one product instead of two
            q, k = F.linear(query, self.in_proj_weight[: 2 * dim], self.in_proj_bias[: 2 * dim]).chunk(2, dim=-1)
        else:
            q = F.linear(query, self.in_proj_weight[:dim], self.in_proj_bias[:dim])
            k = F.linear(key, self.in_proj_weight[dim : 2 * dim], self.in_proj_bias[dim : 2 * dim])
        v = F.linear(value, self.in_proj_weight[2 * dim :], self.in_proj_bias[2 * dim :])
        q, k, v = (self._split_heads(x) for x in (q, k, v))
        scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(-2, -1))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if attend is not None:
            if attend.dim() == 2:
                attend = attend[:, None, None, :]
            elif attend.dim() == 3:
                attend = attend[:, None]
            scores = scores.masked_fill(~attend, float("-inf"))
        mixed = torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """``(B, L, d)`` → ``(B, h, L, d/h)``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SelfAttentionBlock(nn.Module):
    """Inter-query attention (Eq. 4 and 6): ``LayerNorm([Q, T] + SelfAttn[Q, T])``."""

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim=dim, heads=heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, valid: Tensor) -> Tensor:
        """Tokens and their position ``(B, L, d)``, valid ones ``(B, L)`` boolean → ``(B, L, d)``."""
        located = x + position
        return self.norm(x + self.self_attn(located, located, x, valid))


class CrossAttentionBlock(nn.Module):
    """Attention of queries to sampled patches (Sec. 3.2.2): ``LayerNorm(q + MHA(q, V_A))``."""

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = MultiHeadAttention(dim=dim, heads=heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, queries: Tensor, query_position: Tensor, patches: tuple[Tensor, Tensor], attend: Tensor
    ) -> Tensor:
        """Queries and position ``(B, Q, d)``, keys and values ``(B, N, d)``, set ``(B, [h,] Q, N)`` → ``(B, Q, d)``."""
        key, value = patches
        return self.norm(queries + self.multihead_attn(queries + query_position, key, value, attend))


class FeedForwardBlock(nn.Module):
    """``LayerNorm(x + W2 ReLU(W1 x))``."""

    def __init__(self, *, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, d)`` → ``(…, d)``."""
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))
