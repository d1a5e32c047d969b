"""Data types passed between the parts of the network, and the protocols of backbone and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from boltzformer_monai.networks.sampling import Randomness

STRIDE = 32
"""Stride of the coarsest features; image sizes are multiples of it."""


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of B images, computed once for all prompts. Only decoders access the fields.

    Attributes:
        levels: visual features V, coarse to fine, each ``(B, d, H/s, W/s)`` for s = 32, 16, 8.
        semantic_map: S ``(B, d, H/4, W/4)``: a tensor, or a lazy ``SemanticMap`` for the fast decoder.
        image: the normalised image ``(B, C, H, W)``.
    """

    levels: tuple[Tensor, ...]
    semantic_map: Any
    image: Tensor

    def __len__(self) -> int:
        """B."""
        return len(self.image)

    @staticmethod
    def cat(parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Concatenate features along the batch."""
        if len(parts) == 1:
            return parts[0]
        maps = [part.semantic_map for part in parts]
        return ImageFeatures(
            tuple(torch.cat(level) for level in zip(*(part.levels for part in parts), strict=True)),
            torch.cat(maps) if isinstance(maps[0], Tensor) else type(maps[0]).cat(maps),
            torch.cat([part.image for part in parts]),
        )

    def to(self, device: torch.device | str) -> ImageFeatures:
        """Move to a device."""
        return ImageFeatures(
            tuple(level.to(device) for level in self.levels), self.semantic_map.to(device), self.image.to(device)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory held: whole storages, shared ones counted once, without the network's parameters."""
        parts = (*self.levels, self.image, self.semantic_map)
        values = [value for part in parts for value in ([part] if isinstance(part, Tensor) else vars(part).values())]
        tensors = [value for value in values if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        return sum(storages.values())


class TextFeatures(NamedTuple):
    """Encoded prompts."""

    tokens: Tensor
    """T, ``(B, P, N_T, d)``."""
    valid: Tensor
    """``(B, P, N_T)`` boolean, ``False`` = padding."""


class Decoded(NamedTuple):
    """Output of a decoder."""

    logits: Tensor
    """Mask logits ``(B, P, H/2, W/2)``, of BiomedParse's decoder ``(B, P, H/4, W/4)``; sigmoid gives the probability of
    the prompted object."""
    presence: Tensor | None = None
    """Logits ``(B, P)`` that the object is in the slice at all; ``None`` for a decoder without presence head."""
    edges: Tensor | None = None
    """Logits of the object's outline, of the size of ``logits``; ``None`` for a decoder without edge queries."""
    layers: Tensor | None = None
    """Mask logits of K earlier predictions, ``(B, P, K, h, w)``, for :attr:`Decoder.layer_logits`; else ``None``."""


class Decoder(Protocol):
    """An ``nn.Module`` that decodes prompts on images to masks.

    Register its factory with :func:`~boltzformer_monai.networks.registries.register_decoder`; it is called with the
    :class:`~boltzformer_monai.networks.config.NetworkConfig` and ``decoder_settings``. Optional members: ``presence``,
    the presence head, ``attention_sets``, see
    :meth:`~boltzformer_monai.networks.boltzformer.BoltzFormer.attention_sets`, and, for a training that supervises
    layers (``TrainingSettings.layer_supervision``), which sets them:

    - ``layer_logits``, ``False`` at first: whether ``Decoded.layers`` is wanted, in training mode alone;
    - ``layer_stride``, 1 at first: each side of their maps is divided by it, by averages.
    """

    def __call__(self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None) -> Decoded:
        """Decode all prompts of ``text``, ``(B, P, …)``, on B images.

        Args:
            image: features of B images.
            text: features of P prompts per image.
            generator: source of the random draws; ``None`` is PyTorch's default generator.

        Returns:
            Mask logits ``(B, P, H/2, W/2)``, and presence logits ``(B, P)`` where the decoder has a presence head.
        """
        ...


class Backbone(Protocol):
    """An ``nn.Module`` that maps images to features of strides 4, 8, 16 and 32."""

    channels: list[int]
    """Channels of the four features, fine to coarse."""

    def __call__(self, image: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` → ``(B, C_i, H/s, W/s)`` for s = 4, 8, 16, 32."""
        ...
