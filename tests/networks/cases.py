"""A network small enough for a test, its inputs, and weights that let every part matter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from boltzformer_monai.networks import BoltzFormer, create_boltzformer

SMALL: dict[str, Any] = {
    "image_size": 64,
    "dim": 16,
    "heads": 2,
    "hidden": 24,
    "queries": 3,
    "layers": 4,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "presence": False,
}


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """Biases, norms and scalars that are not at their neutral start values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() < 2:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module


def small_network(seed: int = 0, **overrides: Any) -> BoltzFormer:
    """The tiny preset made smaller, in evaluation mode."""
    torch.manual_seed(seed)
    network = create_boltzformer("tiny", **{**SMALL, **overrides})
    randomise(network, seed)
    return network.eval()


def images(batch: int = 1, size: int = 64, channels: int = 1, seed: int = 0) -> Tensor:
    """``(B, C, S, S)`` in 0–1."""
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def prompts(*lengths: int, batch: int = 1, seed: int = 0, longest: int | None = None) -> Tensor:
    """Tokens ``(B, P, N_T)`` of the given lengths with −1 behind."""
    tokens = torch.full((batch, len(lengths), longest or max(lengths)), -1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for index, length in enumerate(lengths):
        tokens[:, index, :length] = torch.randint(1, 40000, (batch, length), generator=generator)
    return tokens
