"""Slices as input of the network, whole or in tiles, and logits back onto the slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.inferers.encoder import Encoder, Pictures
from boltzformer_monai.inferers.point import Region
from boltzformer_monai.networks import Decoded, ImageFeatures
from boltzformer_monai.transforms import SquareFit
from boltzformer_monai.transforms.poses import POSES, Pose
from boltzformer_monai.transforms.square import resized_logits

OVERLAP = 0.25
Decode = Callable[[ImageFeatures], Decoded]
DecodeSlices = Callable[[Decode], Decoded]
"""Decodes encoded slices, any number of times: what ``decode`` predicts, with logits ``(B, P, H, W)`` on the slices'
pixels and presence logits ``(B, P)``."""


class SliceView(Protocol):
    """How slices become input of the network."""

    def slices(self, batch: int) -> int:
        """Slices per pass for a batch of so many images."""
        ...

    def encode(self, pictures: Pictures, encoder: Encoder, *, batch: int) -> DecodeSlices:
        """Encode slices; returns what decodes them."""
        ...


def slice_views(
    shape: tuple[int, int], spacing: tuple[float, float], size: int, *, tiles: bool, poses: Sequence[Pose] = POSES[:1]
) -> list[SliceView]:
    """Whole slices in each pose, or tiles for slices larger than the network's square; their answers are averaged.

    Args:
        shape: ``(H, W)`` of the slices.
        spacing: mm from row to row and from column to column.
        size: edge of the network's square in pixels.
        tiles: use tiles if the slice is larger; they have no poses.
        poses: of whole slices.
    """
    finest = min(spacing)
    grid = (round(shape[0] * spacing[0] / finest), round(shape[1] * spacing[1] / finest))
    if tiles and max(grid) > size:
        return [TiledSlices(shape, grid, size)]
    return [WholeSlices(SquareFit(shape, spacing, size), pose) for pose in poses]


class WholeSlices:
    """A slice scaled into the square as a whole, as in training.

    Args:
        fit: into the square.
        pose: in which the square is shown.
    """

    def __init__(self, fit: SquareFit, pose: Pose = POSES[0]) -> None:
        self.fit = fit
        self.pose = pose

    def slices(self, batch: int) -> int:
        """All of the batch."""
        return batch

    def encode(self, pictures: Pictures, encoder: Encoder, *, batch: int) -> DecodeSlices:
        """Encode them in one pass."""
        features = encoder.fitted(pictures, self._input, (self.fit, self.pose))

        def decode_slices(decode: Decode) -> Decoded:
            decoded = decode(features)
            logits = self.pose.restore(decoded.logits, self.fit.size)
            return Decoded(self.fit.restore(logits), decoded.presence)

        return decode_slices

    def _input(self, images: Tensor) -> Tensor:
        return self.pose.image(self.fit.image(images))


class RegionOfSlices:
    """A part of a slice, scaled into the square; logits are those of the part alone.

    Args:
        region: the part.
        spacing: mm from row to row and from column to column.
        size: edge of the network's square in pixels.
    """

    def __init__(self, region: Region, spacing: tuple[float, float], size: int) -> None:
        self.region = region
        self.fit = SquareFit(region.shape, spacing, size)

    def slices(self, batch: int) -> int:
        """All of the batch."""
        return batch

    def encode(self, pictures: Pictures, encoder: Encoder, *, batch: int) -> DecodeSlices:
        """Encode them in one pass."""
        features = encoder.fitted(pictures, self._input, (self.fit, self.region))

        def decode_slices(decode: Decode) -> Decoded:
            decoded = decode(features)
            return Decoded(self.fit.restore(decoded.logits), decoded.presence)

        return decode_slices

    def _input(self, images: Tensor) -> Tensor:
        rows, columns = self.region.box
        return self.fit.image(images[..., rows, columns])


class TiledSlices:
    """A slice covered by overlapping squares at its own resolution, pixels made square by their spacing.

    Logits are averaged with Gaussian weights where tiles overlap; an object present in a tile is in the slice.

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

    def encode(self, pictures: Pictures, encoder: Encoder, *, batch: int) -> DecodeSlices:
        """Tiles are encoded when they are first decoded, and kept."""
        images = pictures.tensor()
        if self.grid != self.shape:
            images = F.interpolate(images, size=self.grid, mode="bilinear", align_corners=False, antialias=True)
        tile = (self.size, self.size)
        kept: list[ImageFeatures] = []

        def decode_slices(decode: Decode) -> Decoded:
            encoded, presence = iter(tuple(kept)), []

            def tile_logits(tiles: Tensor) -> Tensor:
                features = next(encoded, None)
                if features is None:
                    features = encoder(tiles)
                    kept.append(features)
                decoded = decode(features)
                if decoded.presence is not None:
                    presence.append(decoded.presence)
                return resized_logits(decoded.logits.float(), tile).contiguous()  # MONAI weights it in place

            blended = sliding_window_inference(images, tile, batch, tile_logits, overlap=OVERLAP, mode="gaussian")
            logits = torch.as_tensor(blended)
            if self.grid != self.shape:
                logits = F.interpolate(logits, size=self.shape, mode="bilinear", align_corners=False)
            return Decoded(logits, torch.cat(presence).amax(0, keepdim=True) if presence else None)

        return decode_slices
