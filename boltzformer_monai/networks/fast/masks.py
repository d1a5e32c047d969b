"""The masks of all queries, before they are computed: Eq. 1 is linear, so what follows can often do with fewer."""

from __future__ import annotations

import torch
from torch import Tensor

from boltzformer_monai.networks.fast.semantic_map import SemanticMap

MOST_COMBINED = 17
"""Sums of masks that the aggregation needs, however many queries there are (see PiGMA)."""


class Masks:
    """m mask logits ``μᵀS + bias`` of P prompts on each image, not computed yet.

    Args:
        mu: mask vectors ``(B, P, m, d)`` (Eq. 3).
        semantic: S of the images.
        queries: the queries after the last layer ``(B, P, m, d)``, which the vectors were made of.
        bias: a scalar added to every logit, or ``None``.
    """

    def __init__(self, mu: Tensor, semantic: SemanticMap, *, queries: Tensor, bias: Tensor | None = None) -> None:
        self.mu = mu
        self.semantic = semantic
        self.queries = queries
        self.bias = bias

    @property
    def count(self) -> int:
        """The number m."""
        return self.mu.shape[2]

    def logits(self) -> Tensor:
        """All of them, ``(B, P, m, h, w)``."""
        logits = self.semantic.logits(self.mu.flatten(1, 2)).unflatten(1, self.mu.shape[1:3])
        return logits if self.bias is None else logits + self.bias

    def combined(self, weights: Tensor) -> Tensor:
        """Sums of the m masks with weights ``(k, m)``, ``(B, P, k, h, w)``: Σ wₘ(μₘᵀS) = (Σ wₘμₘ)ᵀS, so k products."""
        bias = None if self.bias is None else self.bias * weights.sum(1)[:, None, None]
        mu = torch.matmul(weights.to(self.mu.dtype), self.mu)
        return Masks(mu, self.semantic, queries=self.queries, bias=bias).logits()
