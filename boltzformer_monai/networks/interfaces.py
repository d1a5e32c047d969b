"""What the parts of the network hand to each other, and what a backbone and a decoder must do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from boltzformer_monai.networks.sampling import Randomness

STRIDE = 32
"""Of the coarsest features; images have sizes that it divides."""


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What images are encoded to, once for all prompts. Only decoders look inside.

    Attributes:
        levels: visual features V, coarse to fine, each ``(B, d, H/s, W/s)`` for s = 32, 16, 8.
        semantic_map: S ``(B, d, H/4, W/4)``, a tensor; not built yet where the decoder is our fast one.
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
        """Join features of one network along the batch."""
        if len(parts) == 1:
            return parts[0]
        maps = [part.semantic_map for part in parts]
        return ImageFeatures(
            tuple(torch.cat(level) for level in zip(*(part.levels for part in parts), strict=True)),
            torch.cat(maps) if isinstance(maps[0], Tensor) else type(maps[0]).cat(maps),
            torch.cat([part.image for part in parts]),
        )

    def to(self, device: torch.device | str) -> ImageFeatures:
        """The same on another device."""
        return ImageFeatures(
            tuple(level.to(device) for level in self.levels), self.semantic_map.to(device), self.image.to(device)
        )

    @property
    def nbytes(self) -> int:
        """Bytes that keeping them holds: whole storages, and one that several tensors share counts once.

        Parameters do not count: the network holds them anyway.
        """
        parts = (*self.levels, self.image, self.semantic_map)
        values = [value for part in parts for value in ([part] if isinstance(part, Tensor) else vars(part).values())]
        tensors = [value for value in values if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        return sum(storages.values())


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
    """Logits ``(B, P)`` that the object is in the slice at all; ``None`` for a decoder without presence head."""


class Decoder(Protocol):
    """Prompts on images → masks: an ``nn.Module`` whose ``forward`` does this.

    It is registered with :func:`~boltzformer_monai.networks.registries.register_decoder` and made of the
    :class:`~boltzformer_monai.networks.config.NetworkConfig` and ``decoder_settings``. It may also have the attribute
    ``presence``, its presence head, and the method ``attention_sets``, see
    :meth:`~boltzformer_monai.networks.boltzformer.BoltzFormer.attention_sets`.
    """

    def __call__(self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None) -> Decoded:
        """Decode all prompts of ``text``, ``(B, P, …)``, on B images.

        Args:
            image: features of B images.
            text: features of P prompts on each.
            generator: source of random draws; ``None`` is PyTorch's own.

        Returns:
            Mask logits ``(B, P, H/2, W/2)``, and presence logits ``(B, P)`` where the decoder has a presence head.
        """
        ...


class Backbone(Protocol):
    """Images → features of strides 4, 8, 16 and 32: an ``nn.Module`` whose ``forward`` does this."""

    channels: list[int]
    """Channels of the four features, fine to coarse."""

    def __call__(self, image: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` → ``(B, C_i, H/s, W/s)`` for s = 4, 8, 16, 32."""
        ...
