"""Whether exported graphs find what the network finds, on made-up images and real prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.interfaces import Decoded, TextFeatures
from boltzformer_monai.networks.sampling import CounterNoise

__all__ = ["Case", "Parity", "compare", "made_up_image", "reference"]

LEAST_EQUAL = 0.9999
"""Share of pixels; a rounding difference may move a sampled patch, and with it pixels on a mask's border."""
MOST_PRESENCE = 1e-4
MOST_SPREAD = 1e-3
"""Rounding makes 10⁻⁶ of it, other draws some thousandths; of empty masks nothing else tells."""


@dataclass(frozen=True)
class Case:
    """Images ``(B, C, S, S)``, tokens ``(P, N_T)``, a seed, and what the network finds."""

    image: Tensor
    tokens: Tensor
    seed: int
    expected: Decoded

    def inputs(self) -> dict[str, Tensor]:
        """What the graphs are given."""
        return {"image": self.image, "tokens": self.tokens, "seed": torch.tensor(self.seed)}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Of graphs with their network.

    Attributes:
        equal_pixels: share of pixels that are on the same side of the threshold ½, the lowest of the cases.
        presence: largest difference of presence probabilities; ``None`` without presence head.
        logits: largest difference of a mask's logits, by root mean square, as a share of their standard deviation.
    """

    equal_pixels: float
    presence: float | None
    logits: float

    @property
    def holds(self) -> bool:
        """Whether the graphs may be used in place of the network."""
        alike = (self.presence or 0.0) <= MOST_PRESENCE and self.logits <= MOST_SPREAD
        return self.equal_pixels >= LEAST_EQUAL and alike

    def as_dict(self) -> dict[str, float | None]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        presence = "" if self.presence is None else f"presence differs by {self.presence:.1e}, "
        logits = f"logits by {self.logits:.1e} of their spread"
        return f"{100 * self.equal_pixels:.4f} % of the pixels are equal; {presence}{logits} at most"


def made_up_image(batch: int, channels: int, size: int, *, seed: int = 0) -> Tensor:
    """Soft shapes and noise, ``(B, C, S, S)`` in 0–1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = F.interpolate(torch.rand(batch, channels, 8, 8, generator=generator), size=(size, size), mode="bicubic")
    return (shapes + 0.1 * torch.randn(batch, channels, size, size, generator=generator)).clamp(0, 1)


@torch.no_grad()
def reference(network: BoltzFormer, image: Tensor, tokens: Tensor, *, seed: int) -> Case:
    """What the network finds, all images with the same prompts."""
    text = network.encode_text(tokens[None])
    repeated = TextFeatures(*(part.expand(len(image), *part.shape[1:]) for part in text))
    found = network.decode(network.encode_image(image), repeated, generator=CounterNoise(seed))
    return Case(image, tokens, seed, found)


def compare(cases: Sequence[Case], found: Sequence[Mapping[str, Tensor]]) -> Parity:
    """Compare what graphs found, by the names of their outputs."""
    equal, logits, presence = [], [], []
    for case, outputs in zip(cases, found, strict=True):
        ours, theirs = case.expected.logits, outputs["logits"]
        equal.append(float(((ours > 0) == (theirs > 0)).double().mean()))
        difference = (ours - theirs).flatten(2).pow(2).mean(-1).sqrt()  # (B, P)
        logits.append(float((difference / ours.flatten(2).std(-1).clamp_min(1e-6)).amax()))
        if case.expected.presence is not None:
            difference = torch.sigmoid(case.expected.presence) - torch.sigmoid(outputs["presence"])
            presence.append(float(difference.abs().amax()))
    return Parity(equal_pixels=min(equal), presence=max(presence, default=None), logits=max(logits))
