"""BoltzFormer: image + text prompts → mask logits, composed of injected modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.decoder import BoltzFormerDecoder
from boltzformer_monai.networks.sampling import CounterNoise, Randomness
from boltzformer_monai.precision import autocast, resolve_precision

STRIDE = 32


class ImageFeatures(NamedTuple):
    """What an image is encoded to, once for all prompts."""

    levels: tuple[Tensor, ...]
    """Visual features V, coarse to fine, each ``(B, d, H/s, W/s)``."""
    semantic_map: Any
    """S, ``(B, d, H/4, W/4)``: a tensor, or for the fast decoder a ``SemanticMap``."""
    image: Tensor
    """The normalised image ``(B, C, H, W)``, which PiGMA grounds its correction on."""


class TextFeatures(NamedTuple):
    """What prompts are encoded to."""

    tokens: Tensor
    """T, ``(B, P, N_T, d)``."""
    valid: Tensor
    """``(B, P, N_T)`` boolean, ``False`` = padding."""


class Decoded(NamedTuple):
    """What comes out of the decoder."""

    logits: Tensor
    """Mask logits ``(B, P, H/2, W/2)``; sigmoid gives the probability of the prompted object."""
    presence: Tensor | None = None
    """Logits ``(B, P)`` that the object is in the slice at all; ``None`` for a network without presence head."""


class BoltzFormer(nn.Module):
    """The network of the paper (Fig. 1).

    Args:
        backbone: ``(B, C, H, W)`` → features of strides 4, 8, 16, 32, fine to coarse.
        pixel_decoder: features → (visual features coarse to fine, semantic map).
        text_encoder: tokens ``(B, P, N_T)`` → (embeddings, validity).
        decoder: visual features, semantic map, text → mask logits ``(B, P, m, H/4, W/4)``.
        aggregation: mask logits of m queries and the image → ``(B, P, H/2, W/2)``.
        mean: mean of the image's channels on the 0–1 scale, kept as a buffer.
        std: their standard deviation.
        presence: queries after the last layer ``(B, P, m, d)``, mask logits and the finest visual features → presence
            logits ``(B, P)``; ``None`` (paper) has none.
        default_tokens: ``(N_T,)`` the prompt used when none is given; empty = there is none.
        seed: seed of the sampling in evaluation mode, where the same input always gives the same mask.

    Attributes:
        precision: ``"fp32"`` (default) or ``"bf16"``, which computes under autocast; the logits are float32 always.
    """

    mean: Tensor
    std: Tensor
    default_tokens: Tensor

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        text_encoder: nn.Module,
        decoder: BoltzFormerDecoder,
        aggregation: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        default_tokens: Sequence[int],
        presence: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            msg = f"mean and std must have the same length and std be positive, got {list(mean)} and {list(std)}"
            raise ConfigError(msg)
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.text_encoder = text_encoder
        self.decoder = decoder
        self.aggregation = aggregation
        self.presence = presence
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("default_tokens", torch.tensor(default_tokens, dtype=torch.int64), persistent=False)
        self.seed = seed
        self.precision = "fp32"

    def set_precision(self, precision: str) -> BoltzFormer:
        """Compute in ``"fp32"``, ``"bf16"`` or whatever suits the device the weights are on (``"auto"``)."""
        self.precision = resolve_precision(precision, self.mean.device)
        return self

    @overload
    def forward(
        self,
        image: Tensor,
        tokens: Tensor | None = None,
        *,
        generator: Randomness = None,
        with_presence: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self, image: Tensor, tokens: Tensor | None = None, *, generator: Randomness = None, with_presence: Literal[True]
    ) -> Decoded: ...

    def forward(
        self,
        image: Tensor,
        tokens: Tensor | None = None,
        *,
        generator: Randomness = None,
        with_presence: bool = False,
    ) -> Tensor | Decoded:
        """Segment P prompts on each image.

        Args:
            image: ``(B, C, H, W)`` float on the 0–1 scale, H and W multiples of 32; one channel is shown to all
                channels of the backbone.
            tokens: ``(B, P, N_T)`` int64, −1 = padding; the default prompt where omitted.
            generator: source of the random draws; by default PyTorch's own in training and the seeded counter in
                evaluation.
            with_presence: return what the presence head says, too.

        Returns:
            Mask logits ``(B, P, H/2, W/2)``, the mask size of the paper (1024 → 512), or all that was decoded.

        Raises:
            ConfigError: the image's size or channels, or the tokens' shape, do not fit.
        """
        if tokens is None:
            if not len(self.default_tokens):
                msg = "this network's text model has no default prompt; pass tokens"
                raise ConfigError(msg)
            tokens = self.default_tokens.expand(len(image), 1, -1)
        decoded = self.decode(self.encode_image(image), self.encode_text(tokens), generator=generator)
        return decoded if with_presence else decoded.logits

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Encode ``(B, C, H, W)`` images on the 0–1 scale, once for all prompts."""
        channels = self.mean.shape[1]
        if image.dim() != 4 or image.shape[1] not in (1, channels):
            msg = f"image must be (B, {channels} or 1, H, W), got {tuple(image.shape)}"
            raise ConfigError(msg)
        if any(size % STRIDE for size in image.shape[-2:]):
            msg = f"image height and width must be multiples of {STRIDE}, got {tuple(image.shape[-2:])}"
            raise ConfigError(msg)
        normalised = (image - self.mean) / self.std
        with autocast(self.precision, image.device):
            levels, semantic_map = self.pixel_decoder(self.backbone(normalised))
        return ImageFeatures(tuple(levels), semantic_map, normalised)

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        """Encode prompts given as tokens ``(B, P, N_T)`` int64, −1 = padding."""
        if tokens.dim() != 3:
            msg = f"tokens must be (B, P, N_T), got {tuple(tokens.shape)}"
            raise ConfigError(msg)
        with autocast(self.precision, tokens.device):
            return TextFeatures(*self.text_encoder(tokens))

    def decode(self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None) -> Decoded:
        """Decode all prompts of ``text`` on ``image``; both have the same batch size."""
        if len(image.image) != len(text.tokens):
            msg = f"got {len(image.image)} images and tokens for {len(text.tokens)}; every image needs its own prompts"
            raise ConfigError(msg)
        if generator is None and not self.training:
            generator = CounterNoise(self.seed)
        with autocast(self.precision, image.image.device):
            masks, queries = self.decoder.decode(
                image.levels, image.semantic_map, text.tokens, text.valid, generator=generator
            )
            logits = self.aggregation(masks, image.image)
            presence = None
            if self.presence is not None:
                presence = self.presence(queries, logits, image.levels[-1]).float()
        return Decoded(logits.float(), presence)
