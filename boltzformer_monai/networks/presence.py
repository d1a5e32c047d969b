"""Presence head: is the prompted object in this slice at all? (Not in the paper, whose slices all contain it.)"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PresenceHead(nn.Module):
    """Classify pooled queries and masked features: one presence logit per prompt.

    Inputs are the mean of the queries after the last layer, the visual features averaged over the predicted mask, and
    the mask's largest logit and size. No gradient flows into the mask.

    Args:
        dim: d.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.found_norm = nn.LayerNorm(dim)
        self.layers = nn.Sequential(nn.Linear(2 * dim + 2, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, queries: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        """``(B, P, m, d)``, mask logits ``(B, P, H, W)`` and visual features ``(B, d, h, w)`` → logits ``(B, P)``."""
        logits = logits.detach().float()
        masks = torch.sigmoid(logits)
        share = F.adaptive_avg_pool2d(masks, (features.shape[-2], features.shape[-1])).flatten(2)
        size = share.sum(2, keepdim=True)
        # An empty mask averages over the whole slice.
        weight = ((share + 1e-6) / (size + 1e-6 * share.shape[-1])).to(features.dtype)
        found = weight @ features.flatten(2).transpose(1, 2)
        certainty = torch.stack((logits.flatten(2).amax(2) / 4, torch.log1p(masks.flatten(2).sum(2)) / 4), dim=-1)
        parts = (self.norm(queries).mean(2), self.found_norm(found), certainty.to(found.dtype))
        return self.layers(torch.cat(parts, dim=-1))[..., 0]
