"""Presence head: is the prompted object in this slice at all? (Not in the paper, whose slices all contain it.)"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PresenceHead(nn.Module):
    """Queries after the last layer, and what lies under the mask that they made → one logit per prompt.

    The queries know what they looked for; the features under the mask show what was found; the mask's highest logit
    and its size say how certain that is. An answer that does not look like the object is no object.

    The mask passes no gradient: it is judged here, not made.

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
        # Without any mask this is the mean over the slice.
        weight = ((share + 1e-6) / (size + 1e-6 * share.shape[-1])).to(features.dtype)
        found = weight @ features.flatten(2).transpose(1, 2)
        certainty = torch.stack((logits.flatten(2).amax(2) / 4, torch.log1p(masks.flatten(2).sum(2)) / 4), dim=-1)
        parts = (self.norm(queries).mean(2), self.found_norm(found), certainty.to(found.dtype))
        return self.layers(torch.cat(parts, dim=-1))[..., 0]
