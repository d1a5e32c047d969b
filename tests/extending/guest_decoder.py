"""A decoder: an object is where the semantic map resembles the prompt."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from boltzformer_monai.networks import (
    Decoded,
    ImageFeatures,
    NetworkConfig,
    Randomness,
    TextFeatures,
    register_decoder,
)


@register_decoder("dot")
class DotDecoder(nn.Module):
    def __init__(self, config: NetworkConfig, *, scale: float = 1.0) -> None:
        super().__init__()
        self.prompt = nn.Linear(config.dim, config.dim)
        self.bias = nn.Parameter(torch.tensor(-3.0))
        self.factor = scale / config.dim**0.5

    def forward(self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None) -> Decoded:
        valid = text.valid[..., None]  # (B, P, N_T, 1)
        prompts = self.prompt((text.tokens * valid).sum(2) / valid.sum(2).clamp(min=1))  # (B, P, d)
        logits = torch.einsum("bpd,bdhw->bphw", prompts, image.semantic_map)  # (B, P, H/4, W/4)
        logits = self.factor * logits + self.bias
        return Decoded(F.interpolate(logits, scale_factor=2.0, mode="bilinear"))
