"""Slices as input of the network, and their encoder."""

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
"""Images ``(B, C, H, W)`` float 0–1 → their features."""


@dataclass(frozen=True)
class Pictures:
    """Slices with their neighbours; converted to the network's input on demand.

    Attributes:
        pixels: ``(B, C, H, W)`` uint8.
        device: of the network.
    """

    pixels: np.ndarray
    device: torch.device

    @functools.cached_property
    def digest(self) -> tuple[bytes, tuple[int, ...]]:
        """Hash of all pixels, and their shape."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels).data).digest(), self.pixels.shape

    def tensor(self) -> Tensor:
        """``(B, C, H, W)`` float32 0–1."""
        channels = [image_tensor(self.pixels[:, channel]) for channel in range(self.pixels.shape[1])]
        return torch.cat(channels, dim=1).to(self.device)


class Encoder:
    """Encodes images; subclasses may cache.

    Args:
        encode: the network's encoder.
    """

    def __init__(self, encode: Encode) -> None:
        self.encode = encode

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Features of the network's input."""
        return self.encode(images)

    def fitted(self, pictures: Pictures, fit: Callable[[Tensor], Tensor], name: object) -> ImageFeatures:
        """Features of slices after fitting.

        Args:
            pictures: the slices.
            fit: slices → the network's input.
            name: hashable; equal only for equal ``fit``.
        """
        return self(fit(pictures.tensor()))
