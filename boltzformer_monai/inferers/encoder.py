"""Slices as the network is shown them, and how they become features: computed, or remembered."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from boltzformer_monai.networks import ImageFeatures
from boltzformer_monai.transforms.load import image_tensor

Encode = Callable[[Tensor], ImageFeatures]
"""Pictures ``(B, C, H, W)`` float 0–1 → their features."""


@dataclass(frozen=True)
class Pictures:
    """Slices with their neighbours; the network's input is made of them only when it is needed.

    Attributes:
        pixels: ``(B, C, H, W)`` uint8.
        device: of the network.
    """

    pixels: np.ndarray
    device: torch.device

    @functools.cached_property
    def digest(self) -> tuple[bytes, tuple[int, ...]]:
        """Of all pixels."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels).data).digest(), self.pixels.shape

    def tensor(self) -> Tensor:
        """``(B, C, H, W)`` float32 0–1."""
        channels = [image_tensor(self.pixels[:, channel]) for channel in range(self.pixels.shape[1])]
        return torch.cat(channels, dim=1).to(self.device)


class Encoder:
    """Encodes whatever it is shown.

    Args:
        encode: does the work.
    """

    def __init__(self, encode: Encode) -> None:
        self.encode = encode

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Features of the network's input."""
        return self.encode(images)

    def fitted(self, pictures: Pictures, fit: Callable[[Tensor], Tensor], name: object) -> ImageFeatures:
        """Features of pictures that are fitted first.

        Args:
            pictures: as they are.
            fit: → the network's input.
            name: hashable; equal only where ``fit`` does the same.
        """
        return self(fit(pictures.tensor()))
