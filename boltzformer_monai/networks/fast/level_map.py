"""The semantic map at a coarser level, which only the sampling reads: without gradients, and cheap.

A bilinear down-sampling (align_corners=False) by an even ratio r is the mean of the central 2×2 pixels of each r×r
cell. It commutes with the dot product, and mean and 3×3 convolution are both linear, so μᵀS at the level comes from y
by one convolution with stride, folded into the query's kernel (docs/decoder.md).

- Ratio 4 or more: cells do not share pixels, and a 4×4 kernel with stride 4 over their central 4×4 pixels does it.
- Ratio 2: 4×4 kernels with stride 2 would overlap. The mean is taken over y first, which leaves 9 taps, in four planes,
  the even and odd rows and columns: over each the stride is 1, which convolution libraries are best at.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.networks.fast.pixel_products import convolve_each, pixel_products

if TYPE_CHECKING:
    from boltzformer_monai.networks.fast.semantic_map import SemanticMap

Size = tuple[int, int]
_CHANNELS = 16  # of S shrunk at a time, so that the sum of their rows stays in the cache


class LevelMap:
    """S at one level.

    Args:
        source: the map at full size, without gradients.
        size: ``(h_l, w_l)``.
        queries: Q, how many vectors it will be multiplied with at a time.
        uses: how many times. S is built at this level if that is cheaper.
    """

    def __init__(self, source: SemanticMap, size: Size, *, queries: int, uses: int) -> None:
        full: Size = (source.fine.shape[-2], source.fine.shape[-1])
        ratio = even_ratio(full, size)
        self.weight, self.bias = source.weight, source.bias
        self.ready: Tensor | None = None
        if self.weight is None or ratio is None:
            self.ready = downsample(source.build().fine, size)
            return
        self.planes = {(0, 0): _centres(source.fine, size)} if ratio > 2 else _means_by_parity(source.fine)
        self.stride = 4 if ratio > 2 else 1
        if uses * queries >= len(self.weight):
            everyone = self.weight.expand(len(source.fine), -1, -1, -1, -1)
            self.ready = self._convolved(everyone).add_(cast(Tensor, self.bias)[:, None, None])
            self.planes = {}

    def logits(self, mu: Tensor) -> Tensor:
        """μᵀS at the level: ``(B, Q, d)`` → ``(B, Q, N)``."""
        if self.ready is not None:
            return pixel_products(self.ready, mu).flatten(2)
        found = self._convolved(fold(mu, cast(Tensor, self.weight)))
        return found.add_(torch.matmul(mu, cast(Tensor, self.bias))[..., None, None]).flatten(2)

    def _convolved(self, kernels: Tensor) -> Tensor:
        """3×3 kernels ``(B, Q, d_y, 3, 3)`` → ``(B, Q, h_l, w_l)``."""
        if self.stride == 4:
            kernels = _with_mean(kernels)
        step = 1 if self.stride == 4 else 2  # the taps of a plane: the first and the last, or the middle one
        found = [
            convolve_each(plane, kernels[..., row::step, column::step], stride=self.stride)
            for (row, column), plane in self.planes.items()
        ]
        return reduce(Tensor.add_, found)


def even_ratio(full: Size, size: Size) -> int | None:
    """The even whole number by which a level is smaller than S, None where there is none."""
    ratio = full[0] // size[0]
    return ratio if ratio % 2 == 0 and full == (ratio * size[0], ratio * size[1]) else None


def downsample(semantic_map: Tensor, size: Size) -> Tensor:
    """S ``(B, d, h, w)`` at a level's size, bilinear (align_corners=False), without gradients.

    Once per level instead of once per query, layer and prompt. Rows are added before columns, and few channels at a
    time, so that the sum of rows stays in the cache: faster than ``interpolate`` (docs/decoder.md).
    """
    ratio = even_ratio((semantic_map.shape[-2], semantic_map.shape[-1]), size)
    if ratio is None:
        return F.interpolate(semantic_map, size=size, mode="bilinear", align_corners=False)
    first, second = slice(ratio // 2 - 1, None, ratio), slice(ratio // 2, None, ratio)
    result = semantic_map.new_empty(*semantic_map.shape[:2], *size)
    portion = _CHANNELS if semantic_map.device.type == "cpu" else semantic_map.shape[1]
    for image, level in zip(semantic_map, result, strict=True):
        for source, target in zip(image.split(portion), level.split(portion), strict=True):
            rows = source[:, first] + source[:, second]
            torch.add(rows[..., first], rows[..., second], out=target).div_(4)
    return result


def fold(mu: Tensor, weight: Tensor) -> Tensor:
    """κ = μᵀW: ``(B, Q, d)``, ``(d, d_y, 3, 3)`` → ``(B, Q, d_y, 3, 3)``."""
    return torch.matmul(mu, weight.flatten(1)).unflatten(2, weight.shape[1:])


def _centres(maps: Tensor, size: Size) -> Tensor:
    """The central 4×4 pixels of each cell: ``(B, d, h, w)`` → ``(B, d, 4 h_l, 4 w_l)``, no copy at ratio 4."""
    height, width = size
    cells = maps.unflatten(3, (width, -1)).unflatten(2, (height, -1))  # (B, d, h_l, r, w_l, r)
    start = cells.shape[3] // 2 - 2
    centres = cells.narrow(3, start, 4).narrow(5, start, 4).permute(0, 2, 3, 4, 5, 1)
    return centres.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _with_mean(kernels: Tensor) -> Tensor:
    """Move the mean of 2×2 pixels from the map into the kernels: ``(…, 3, 3)`` → ``(…, 4, 4)``."""
    corners = [F.pad(kernels, (v, 1 - v, u, 1 - u)) for u in (0, 1) for v in (0, 1)]
    return (corners[0] + corners[1]).add_(corners[2]).add_(corners[3]).div_(4)


def _means_by_parity(maps: Tensor) -> dict[tuple[int, int], Tensor]:
    """Means over 2×2 pixels that begin on odd (0) or even (1) rows and columns, for 0 from the border's zeros on."""
    return {(a, b): F.avg_pool2d(maps, 2, stride=2, padding=(1 - a, 1 - b)) for a in (0, 1) for b in (0, 1)}
