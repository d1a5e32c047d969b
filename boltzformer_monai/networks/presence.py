"""Presence head: is the prompted object in this slice at all? (Not in the paper, whose slices all contain it.)"""

from __future__ import annotations

from torch import Tensor, nn


class PresenceHead(nn.Module):
    """Mean of the queries after the last layer → one logit per prompt.

    By then the queries have seen the patches they sampled and the text, and know what their masks are made of.

    Args:
        dim: d.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, queries: Tensor) -> Tensor:
        """``(B, P, m, d)`` → logits ``(B, P)``."""
        return self.layers(self.norm(queries).mean(2))[..., 0]
