"""An attention policy: each query attends to the share of patches that it finds most probable."""

from __future__ import annotations

import torch
from torch import Tensor

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks import Randomness, register_policy


@register_policy("top")
class TopPatches:
    per_head = False  # one set for all heads

    def __init__(self, *, share: float = 0.1) -> None:
        if not 0 < share <= 1:
            msg = f"share must be in (0, 1], got {share}"
            raise ConfigError(msg)
        self.share = share

    @torch.no_grad()
    def __call__(self, logits: Tensor, layer: int, generator: Randomness = None) -> Tensor:
        count = max(1, int(self.share * logits.shape[-1]))
        return logits >= logits.topk(count, dim=-1).values[..., -1:]
