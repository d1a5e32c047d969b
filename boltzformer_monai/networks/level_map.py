"""The semantic map at a coarser level, which only the sampling reads: without gradients, and cheap.

A bilinear down-sampling (align_corners=False) by an even ratio r is the mean of the central 2×2 pixels of each r×r
cell. It commutes with the dot product, and mean and 3×3 convolution are both linear, so μᵀS at the level comes from y
by one convolution with stride, folded into the query's kernel. There are three forms of it (docs/decoder.md).

- Ratio 4 or more: cells do not share pixels, and a 4×4 kernel with stride 4 over their central 4×4 pixels does it.
- Ratio 2, few queries: the 4×4 kernels of neighbouring cells overlap; pixels of one parity lie under the same four
  taps, so they are multiplied with four times as many vectors, and the results shifted and added.
- Ratio 2, many queries: the mean is taken over y first, which leaves 9 of the 16 taps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.networks.products import one_batch, pixel_products

if TYPE_CHECKING:
    from boltzformer_monai.networks.semantic_map import SemanticMap

Size = tuple[int, int]
FULL_REGISTERS = 16
"""Output channels from which a 3×3 convolution beat 1×1 ones whose maps are shifted and added, on our CPUs."""
_CHANNELS = 16


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
        self.size = size
        self.bias = source.bias
        self.ready: Tensor | None = None
        self.by_parity = ratio == 2 and queries < FULL_REGISTERS
        if source.weight is None or ratio is None:
            self.ready = downsample(source.build().fine, size)
            return
        self.weight = source.weight
        self.maps, self.stride = source.fine, 2
        self.pooled = ratio == 2 and not self.by_parity
        if ratio > 2:
            self.maps, self.stride = _centres(source.fine, size), 4
        elif self.pooled:
            # Beyond its border y is zero for the convolution, and for the mean.
            self.maps = F.avg_pool2d(source.fine, 2, stride=1, padding=1)
            if uses * queries >= len(source.weight):
                self.ready = F.conv2d(self.maps, self.weight, self.bias, stride=2)

    def logits(self, mu: Tensor) -> Tensor:
        """μᵀS at the level: ``(B, Q, d)`` → ``(B, Q, N)``."""
        if self.ready is not None or self.bias is None:
            return pixel_products(self.maps if self.ready is None else self.ready, mu).flatten(2)
        kernels = fold(mu, self.weight)
        if not self.pooled:
            kernels = _with_mean(kernels)
        if self.by_parity:
            found = self._shifted_and_added(kernels.permute(0, 3, 4, 2, 1)).flatten(1, 2).transpose(1, 2)
        else:
            pairs = zip(self.maps.split(1), kernels, strict=True)
            found = one_batch([F.conv2d(image, kernel, stride=self.stride) for image, kernel in pairs])
            found = found.contiguous().flatten(2)
        return found + torch.matmul(mu, self.bias)[..., None]

    def _shifted_and_added(self, kernel: Tensor) -> Tensor:
        """``(B, 4, 4, d_y, Q)`` → ``(B, h_l, w_l, Q)``."""
        pixels = self.maps.permute(0, 2, 3, 1)
        total = kernel.new_zeros(len(kernel), self.size[0] + 2, self.size[1] + 2, kernel.shape[-1])
        for a in (0, 1):
            for b in (0, 1):
                # Row 2i + a of y is under tap 1 + a of cell i, and under tap 3 of cell i - 1 or tap 0 of cell i + 1.
                taps = [((1 + a, 1), (3 - 3 * a, 2 * a)), ((1 + b, 1), (3 - 3 * b, 2 * b))]
                pairs = [(u, v) for u in taps[0] for v in taps[1]]
                weights = torch.cat([kernel[:, u, v] for (u, _), (v, _) in pairs], dim=-1)
                given = _row_products(pixels[:, a::2, b::2], weights).chunk(4, dim=-1)
                for part, ((_, down), (_, right)) in zip(given, pairs, strict=True):
                    total[:, down : down + self.size[0], right : right + self.size[1]] += part
        return total[:, 1:-1, 1:-1]


def even_ratio(full: Size, size: Size) -> int | None:
    """The even whole number by which a level is smaller than S, None where there is none."""
    ratio = full[0] // size[0]
    return ratio if ratio % 2 == 0 and full == (ratio * size[0], ratio * size[1]) else None


def downsample(semantic_map: Tensor, size: Size) -> Tensor:
    """S ``(B, d, h, w)`` at a level's size, bilinear (align_corners=False), without gradients.

    Once per level instead of once per query, layer and prompt. Rows are added before columns, and few channels at a
    time, so that the sum of rows stays in the cache: much faster than ``interpolate``.
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


def _row_products(pixels: Tensor, weights: Tensor) -> Tensor:
    """``(B, h, w, c)``, ``(B, c, k)`` → ``(B, h, w, k)``; strided pixels and the weights of all rows are not copied."""
    height = pixels.shape[1]
    found = [torch.bmm(image, weight.expand(height, -1, -1)) for image, weight in zip(pixels, weights, strict=True)]
    return torch.stack(found)
