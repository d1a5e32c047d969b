"""BoltzFormer: image + text prompts → mask logits, composed of injected modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.interfaces import STRIDE, Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.networks.sampling import CounterNoise, Randomness
from boltzformer_monai.precision import autocast, resolve_precision


class BoltzFormer(nn.Module):
    """The network of the paper (Fig. 1).

    Args:
        backbone: ``(B, C, H, W)`` → features of strides 4, 8, 16, 32, fine to coarse.
        pixel_decoder: features → (visual features coarse to fine, semantic map).
        text_encoder: tokens ``(B, P, N_T)`` → (embeddings, validity).
        decoder: features of images and text → :class:`~boltzformer_monai.networks.interfaces.Decoded`.
        mean: mean of the image's channels on the 0–1 scale, kept as a buffer.
        std: their standard deviation, above 0.
        default_tokens: ``(N_T,)``, the prompt used when ``forward`` gets none; empty = no default.
        seed: seed of the sampling in evaluation mode, which makes masks reproducible.

    Attributes:
        precision: ``"fp32"`` (default) or ``"bf16"``, which computes under autocast; the logits are float32 always.
        frozen: parts that training leaves as they are, see :meth:`freeze`.
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
        decoder: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        default_tokens: Sequence[int],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.text_encoder = text_encoder
        self.decoder = decoder
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("default_tokens", torch.tensor(default_tokens, dtype=torch.int64), persistent=False)
        self.seed = seed
        self.precision = "fp32"
        self.frozen: tuple[str, ...] = ()

    def set_precision(self, precision: str) -> BoltzFormer:
        """Compute in ``"fp32"`` or ``"bf16"``; ``"auto"`` chooses by the device of the weights."""
        self.precision = resolve_precision(precision, self.mean.device)
        return self

    def freeze(self, parts: Sequence[str]) -> BoltzFormer:
        """Train no weight of these parts, and keep them in evaluation mode, or their norms' statistics would change.

        Args:
            parts: of ``"backbone"``, ``"pixel_decoder"``, ``"text_encoder"``, ``"decoder"``.
        """
        self.frozen = tuple(parts)
        for part in parts:
            getattr(self, part).requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> BoltzFormer:
        """As in PyTorch; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self.frozen:
            getattr(self, part).eval()
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
            image: ``(B, C, H, W)`` float on the 0–1 scale, H and W multiples of 32; a single channel is repeated for
                every input channel of the backbone.
            tokens: ``(B, P, N_T)`` int64, −1 = padding; the default prompt where omitted.
            generator: source of the random draws; by default PyTorch's own in training mode and the seeded counter in
                evaluation.
            with_presence: also return the presence logits.

        Returns:
            Mask logits ``(B, P, H/2, W/2)``, the mask size of the paper (1024 → 512); with presence, a ``Decoded``.

        Raises:
            ConfigError: the image's size or channels, or the tokens' shape, do not fit.
        """
        if tokens is None:
            if not len(self.default_tokens):
                raise ConfigError("this network's text model has no default prompt; pass tokens")
            tokens = self.default_tokens.expand(len(image), 1, -1)
        decoded = self.decode(self.encode_image(image), self.encode_text(tokens), generator=generator)
        return decoded if with_presence else decoded.logits

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Encode ``(B, C, H, W)`` images on the 0–1 scale, once for all prompts."""
        channels = self.mean.shape[1]
        if image.dim() != 4 or image.shape[1] not in (1, channels):
            raise ConfigError(f"image must be (B, {channels} or 1, H, W), got {tuple(image.shape)}")
        if any(size % STRIDE for size in image.shape[-2:]):
            raise ConfigError(f"image height and width must be multiples of {STRIDE}, got {tuple(image.shape[-2:])}")
        normalised = (image - self.mean) / self.std
        with autocast(self.precision, image.device):
            levels, semantic_map = self.pixel_decoder(self.backbone(normalised))
        return ImageFeatures(tuple(levels), semantic_map, normalised)

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        """Encode prompts given as tokens ``(B, P, N_T)`` int64, −1 = padding."""
        if tokens.dim() != 3:
            raise ConfigError(f"tokens must be (B, P, N_T), got {tuple(tokens.shape)}")
        with autocast(self.precision, tokens.device):
            return TextFeatures(*self.text_encoder(tokens))

    @property
    def presence(self) -> nn.Module | None:
        """The decoder's presence head, ``None`` where it has none."""
        return getattr(self.decoder, "presence", None)

    def decode(self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None) -> Decoded:
        """Decode all prompts of ``text`` on ``image``; both have the same batch size.

        Raises:
            ConfigError: the batch sizes differ.
        """
        if len(image) != len(text.tokens):
            msg = f"got {len(image)} images and tokens for {len(text.tokens)}; every image needs its own prompts"
            raise ConfigError(msg)
        with autocast(self.precision, text.tokens.device):
            decoded = self.decoder(image, text, generator=self._noise(generator))
        presence = None if decoded.presence is None else decoded.presence.float()
        edges = None if decoded.edges is None else decoded.edges.float()
        layers = None if decoded.layers is None else decoded.layers.float()
        return Decoded(decoded.logits.float(), presence, edges, layers)

    def attention_sets(
        self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None, drawn: bool = False
    ) -> list[Tensor]:
        """The patches that each query attends to, for figures.

        Args:
            image: features of B images.
            text: features of P prompts per image.
            generator: as for :meth:`decode`.
            drawn: the sets as the policy drew them; those that are empty are attended to as everything.

        Returns:
            For each layer ``(B, P, [h,] m, h_l, w_l)`` boolean; an empty list for decoders without attention sets.
        """
        decoder: Any = self.decoder
        if not hasattr(decoder, "attention_sets"):
            return []
        with autocast(self.precision, text.tokens.device):
            return decoder.attention_sets(  # type: ignore[no-any-return]
                image, text, generator=self._noise(generator), **({"drawn": True} if drawn else {})
            )

    def _noise(self, generator: Randomness) -> Randomness:
        return CounterNoise(self.seed) if generator is None and not self.training else generator
