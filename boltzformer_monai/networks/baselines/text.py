"""Text for decoders that were made for other prompts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.networks.interfaces import TextFeatures


def token_counts(valid: Tensor) -> Tensor:
    """Tokens of each prompt without the padding behind it: ``(B, P, N_T)`` boolean → ``(B, P)`` int64."""
    return (valid * torch.arange(1, valid.shape[-1] + 1, device=valid.device)).amax(-1)


def prompt_vectors(text: TextFeatures) -> Tensor:
    """The last token of each prompt, which a causal text encoder sums it up in: ``(B, P, d)``; zero for padding."""
    last = (token_counts(text.valid) - 1).clamp(min=0)[..., None, None]
    return text.tokens.gather(2, last.expand(-1, -1, 1, text.tokens.shape[-1]))[:, :, 0]


class PromptTokens(nn.Module):
    """Text tokens as sparse prompt of SAM's decoders, which cannot mask padding.

    Every prompt is padded with a learned "no token" vector, as SAM pads its points, to the least multiple of ``slots``
    that holds it: a number that depends on the prompt alone.

    Args:
        dim: d of the text.
        width: channels of the result.
        slots: tokens of most prompts, at least 1.
    """

    def __init__(self, *, dim: int, width: int, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.projection = nn.Linear(dim, width)
        self.no_token = nn.Parameter(torch.randn(width))

    def lengths(self, valid: Tensor) -> Tensor:
        """Tokens that each prompt is padded to: ``(B, P, N_T)`` boolean → ``(B, P)`` int64."""
        whole = (token_counts(valid).clamp(min=1) + self.slots - 1).div(self.slots, rounding_mode="floor")
        return whole * self.slots

    def forward(self, text: TextFeatures, length: int) -> Tensor:
        """Prompts of at most ``length`` tokens each → ``(B, P, length, width)``."""
        tokens, valid = text.tokens[:, :, :length], text.valid[:, :, :length]
        missing = length - tokens.shape[2]
        tokens = F.pad(self.projection(tokens), (0, 0, 0, missing))
        return torch.where(F.pad(valid, (0, missing))[..., None], tokens, self.no_token)
