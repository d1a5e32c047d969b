"""Fit slices of any shape and spacing into the network's square, and restore masks to the slice."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError


@dataclass(frozen=True)
class SquareFit:
    """Scale a slice isotropically in mm into a square, centred and zero-padded.

    Pixels become square by their spacing, so a coronal slice of thick-slice CT gets the patient's proportions.

    Args:
        shape: ``(H, W)`` of the slice.
        spacing: mm from row to row and from column to column.
        size: edge of the square in pixels.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float]
    size: int

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or min(self.spacing) <= 0 or self.size < 1:
            msg = f"cannot fit a slice of shape {self.shape} and spacing {self.spacing} mm into {self.size} pixels"
            raise ConfigError(msg)

    @property
    def content(self) -> tuple[int, int]:
        """Size ``(h, w)`` of the slice inside the square."""
        extent = [n * mm for n, mm in zip(self.shape, self.spacing, strict=True)]
        scale = self.size / max(extent)
        height, width = (min(self.size, max(1, round(e * scale))) for e in extent)
        return height, width

    @property
    def offset(self) -> tuple[int, int]:
        """Row and column of its first pixel."""
        height, width = self.content
        return (self.size - height) // 2, (self.size - width) // 2

    def image(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` float → ``(B, C, size, size)``, bilinear with antialiasing."""
        return self._pad(_resize(x, self.content))

    def label(self, x: Tensor) -> Tensor:
        """Label maps ``(B, C, H, W)`` float → ``(B, C, size, size)``, nearest neighbour."""
        if x.shape[-2:] != self.content:
            x = F.interpolate(x, size=self.content, mode="nearest-exact")
        return self._pad(x)

    def restore(self, x: Tensor) -> Tensor:
        """Mask logits ``(B, P, s, s)`` of any square size → ``(B, P, H, W)`` on the slice.

        Enlarged by :func:`resized_logits`; reduced bilinearly without antialiasing, so that one-pixel objects of
        enlarged slices survive.
        """
        height, width = self.content
        top, left = self.offset
        x = resized_logits(x, (self.size, self.size))
        x = x[..., top : top + height, left : left + width]
        larger = max(height, self.shape[0]), max(width, self.shape[1])
        return _resize(resized_logits(x, larger), self.shape, antialias=False)

    def _pad(self, x: Tensor) -> Tensor:
        height, width = self.content
        top, left = self.offset
        return F.pad(x, (left, self.size - width - left, top, self.size - height - top))


def resized_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits ``(B, P, h, w)`` → ``(B, P, *size)``: bicubic with antialiasing, as in the published code.

    The loss and all that shows masks use this one: a mask of a few pixels that was trained with one interpolation is
    smaller with a smoother one, as logits beside it are far below zero, or gone.
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bicubic", align_corners=False, antialias=True)


def _resize(x: Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=antialias)
