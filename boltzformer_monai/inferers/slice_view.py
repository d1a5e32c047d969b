"""How a slice is shown to the network, whole or in tiles, and how logits come back onto the slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.inferers.encoder import Encoder, Pictures
from boltzformer_monai.networks import Decoded, ImageFeatures
from boltzformer_monai.transforms import SquareFit

OVERLAP = 0.25
Decode = Callable[[ImageFeatures], Decoded]


class EncodedSlices(Protocol):
    """Slices that have been shown to the network, to be decoded any number of times."""

    def decode(self, decode: Decode) -> Decoded:
        """What ``decode`` finds: logits ``(B, P, H, W)`` on the slices' pixels, presence logits ``(B, P)``."""
        ...


class SliceView(Protocol):
    """A way to show slices to a network."""

    def slices(self, batch: int) -> int:
        """Slices to show at a time for a batch of so many pictures."""
        ...

    def encode(self, pictures: Pictures, encoder: Encoder, *, batch: int) -> EncodedSlices:
        """Show slices."""
        ...


def slice_view(shape: tuple[int, int], spacing: tuple[float, float], size: int, *, tiles: bool) -> SliceView:
    """Choose the view: tiles only where wanted and where the slice is larger than the network's square.

    Args:
        shape: ``(H, W)`` of the slices.
        spacing: mm from row to row and from column to column.
        size: edge of the network's square in pixels.
        tiles: wanted?
    """
    finest = min(spacing)
    grid = (round(shape[0] * spacing[0] / finest), round(shape[1] * spacing[1] / finest))
    return (
        TiledSlices(shape, grid, size) if tiles and max(grid) > size else WholeSlices(SquareFit(shape, spacing, size))
    )


class WholeSlices:
    """A slice scaled into the square as a whole, the way the training shows it."""

    def __init__(self, fit: SquareFit) -> None:
        self.fit = fit

    def slices(self, batch: int) -> int:
        """All of the batch."""
        return batch

    def encode(self, pictures: Pictures, encoder: Encoder, *, batch: int) -> EncodedSlices:
        """Encode them in one pass."""
        return _EncodedWhole(self.fit, encoder.fitted(pictures, self.fit.image, self.fit))


class _EncodedWhole:
    def __init__(self, fit: SquareFit, features: ImageFeatures) -> None:
        self.fit = fit
        self.features = features

    def decode(self, decode: Decode) -> Decoded:
        decoded = decode(self.features)
        return Decoded(self.fit.restore(decoded.logits), decoded.presence)


class TiledSlices:
    """A slice covered by overlapping squares at its own resolution, pixels made square by their spacing.

    Args:
        shape: ``(H, W)`` of the slices.
        grid: ``(h, w)`` of the same with square pixels.
        size: edge of a tile.
    """

    def __init__(self, shape: tuple[int, int], grid: tuple[int, int], size: int) -> None:
        self.shape = shape
        self.grid = grid
        self.size = size

    def slices(self, batch: int) -> int:
        """One: the batch is of its tiles."""
        return 1

    def encode(self, pictures: Pictures, encoder: Encoder, *, batch: int) -> EncodedSlices:
        """Tiles are encoded when they are first decoded, and kept."""
        shown = images = pictures.tensor()
        if self.grid != self.shape:
            shown = F.interpolate(images, size=self.grid, mode="bilinear", align_corners=False, antialias=True)
        return _EncodedTiles(self, shown, encoder, batch)


class _EncodedTiles:
    def __init__(self, view: TiledSlices, images: Tensor, encoder: Encoder, batch: int) -> None:
        self.view = view
        self.images = images
        self.encoder = encoder
        self.batch = batch
        self.features: list[ImageFeatures] = []

    def decode(self, decode: Decode) -> Decoded:
        """Logits averaged with gaussian weights where tiles overlap; an object present in a tile is in the slice."""
        size, done, presence = self.view.size, iter(range(len(self.features))), []

        def tile_logits(tiles: Tensor) -> Tensor:
            index = next(done, None)
            if index is None:
                self.features.append(self.encoder(tiles))
                index = -1
            decoded = decode(self.features[index])
            if decoded.presence is not None:
                presence.append(decoded.presence)
            return F.interpolate(decoded.logits, size=(size, size), mode="bilinear", align_corners=False)

        blended = sliding_window_inference(
            self.images, (size, size), self.batch, tile_logits, overlap=OVERLAP, mode="gaussian"
        )
        logits = torch.as_tensor(blended)
        if self.view.grid != self.view.shape:
            logits = F.interpolate(logits, size=self.view.shape, mode="bilinear", align_corners=False)
        return Decoded(logits, torch.cat(presence).amax(0, keepdim=True) if presence else None)
