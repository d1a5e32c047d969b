"""The semantic map S = W ∗ y + b, from which masks are read, without building it where that is dearer.

A mask is linear in S: with μ of a query, μᵀS = (μᵀW) ∗ y + μᵀb. So the query's vector can be folded into the 3×3
kernel, κ = μᵀW, and y convolved with κ: one output channel for each query instead of d of S (Eq. 1; docs/decoder.md).
The same holds for S at a coarser level, where a bilinear down-sampling by an even ratio r is the mean of the central
2×2 pixels of each r×r cell: mean and convolution together are one 4×4 kernel with stride r.

Convolutions with so few output channels are computed as matrix products, a pixel's channels side by side in memory:
first what every pixel gives to each tap of the kernel, then the taps' maps are shifted and added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]
_FULL_REGISTERS = 24  # output channels from which a 3×3 convolution beat nine 1×1 ones


class SemanticMap:
    """S of a batch of images, as the map y that it is convolved from, or ready.

    Args:
        fine: y ``(B, d_y, h, w)``, or S itself where no weight is given.
        weight: W ``(d, d_y, 3, 3)`` of the convolution with padding 1.
        bias: b ``(d,)``.
    """

    def __init__(self, fine: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.fine = fine
        self.weight = weight
        self.bias = bias

    @property
    def shape(self) -> torch.Size:
        """``(B, d, h, w)`` of S."""
        channels = self.fine.shape[1] if self.weight is None else self.weight.shape[0]
        return torch.Size((self.fine.shape[0], channels, *self.fine.shape[2:]))

    def build(self) -> SemanticMap:
        """Return the same map with S ready."""
        if self.weight is None:
            return self
        return SemanticMap(F.conv2d(self.fine, self.weight, self.bias, padding=1))

    def detach(self) -> SemanticMap:
        """Return the same map without gradients."""
        weight, bias = (None if part is None else part.detach() for part in (self.weight, self.bias))
        return SemanticMap(self.fine.detach(), weight, bias)

    def suited(self, queries: int, levels: Sequence[Size], *, training: bool) -> SemanticMap:
        """Return the cheaper form for masks of so many queries per image at full size once and at these levels.

        Args:
            queries: P·m, the queries of all prompts on an image.
            levels: the size of every layer's level, repetitions included.
            training: gradients flow through the masks at full size (never through those at the levels).
        """
        if self.weight is None:
            return self
        dim, inputs = self.weight.shape[:2]
        height, width = self.fine.shape[-2:]
        if any(_ratio((height, width), size) is None for size in levels):
            return self.build()
        passes = 3 if training else 1  # the backward pass has two products for each of the forward pass
        pixels, patches = height * width, sum(rows * columns for rows, columns in levels)
        folded = passes * 9 * queries * inputs * pixels + 16 * queries * inputs * patches
        built = passes * (9 * inputs + queries) * dim * pixels + queries * dim * patches
        return self if folded < built else self.build()

    def logits(self, mu: Tensor) -> Tensor:
        """μᵀS: ``(B, Q, d)`` → ``(B, Q, h, w)``."""
        if self.weight is None or self.bias is None:
            return torch.bmm(mu, self.fine.flatten(2)).unflatten(2, self.fine.shape[2:])
        height, width = self.fine.shape[-2:]
        kernel, bias = _fold(mu, self.weight), torch.matmul(mu, self.bias)[..., None, None]  # (B, Q, 3, 3, d_y)
        if mu.shape[1] >= _FULL_REGISTERS:
            return per_image(self.fine, kernel.movedim(4, 2), padding=1) + bias
        # Few output channels leave a convolution's registers idle: 9·Q of one tap each, then shifted and added.
        taps = per_image(self.fine, kernel.permute(0, 2, 3, 1, 4).flatten(1, 3)[..., None, None])
        taps = taps.view(len(mu), 3, 3, -1, height, width)
        padded = [F.pad(taps[:, u, v], (2 - v, v, 2 - u, u)) for u in range(3) for v in range(3)]
        return torch.stack(padded).sum(0)[..., 1:-1, 1:-1] + bias

    def at_levels(self, sizes: Sequence[Size]) -> list[LevelMap]:
        """Return S at levels ``(h_l, w_l)``, bilinear (align_corners=False), for sampling: without gradients."""
        source = self.detach()
        if source.weight is not None:
            # (B, h, w, d_y) in memory, which channels-last maps have already; once for all levels.
            fine = source.fine.contiguous(memory_format=torch.channels_last)
            source = SemanticMap(fine, source.weight, source.bias)
        return [LevelMap(source, size) for size in sizes]


class LevelMap:
    """S at one level, only for the sampling.

    Args:
        source: the map at full size, without gradients; channels last unless S is ready.
        size: ``(h_l, w_l)``.
    """

    def __init__(self, source: SemanticMap, size: Size) -> None:
        full: Size = (source.fine.shape[-2], source.fine.shape[-1])
        self.size = size
        self.ratio = _ratio(full, size)
        self.bias = source.bias
        self.ready: Tensor | None = None
        if source.weight is None or source.bias is None or self.ratio is None:
            self.ready = _downsample(source.build().fine, size)
            return
        self.pixels = source.fine.permute(0, 2, 3, 1)
        self.weight = _pooled(source.weight)

    def logits(self, mu: Tensor) -> Tensor:
        """μᵀS at the level: ``(B, Q, d)`` → ``(B, Q, N)``."""
        if self.ready is not None or self.bias is None:
            return torch.bmm(mu, cast(Tensor, self.ready).flatten(2))
        kernel = _fold(mu, self.weight).permute(0, 2, 3, 4, 1)  # (B, 4, 4, d_y, Q)
        found = self._by_parity(kernel) if self.ratio == 2 else self._by_rows(kernel)
        return found.flatten(1, 2).transpose(1, 2) + torch.matmul(mu, self.bias)[..., None]

    def _by_rows(self, kernel: Tensor) -> Tensor:
        """Cells of at least 4×4 pixels do not overlap: of each row of a cell, 4 pixels lie side by side in memory."""
        height, width = self.size
        cells = self.pixels.unflatten(2, (width, -1)).unflatten(1, (height, -1))  # (B, h_l, r, w_l, r, d_y)
        start = cells.shape[2] // 2 - 2
        four = cells.narrow(4, start, 4).flatten(4)  # (B, h_l, r, w_l, 4 d_y)
        parts = [_product(four[:, :, start + u], kernel[:, u].flatten(1, 2)) for u in range(4)]
        return parts[0] + parts[1] + parts[2] + parts[3]

    def _by_parity(self, kernel: Tensor) -> Tensor:
        """At ratio 2 the kernels overlap: pixels of one parity lie under the same four taps of neighbouring cells."""
        total = kernel.new_zeros(len(kernel), self.size[0] + 2, self.size[1] + 2, kernel.shape[-1])
        for a in (0, 1):
            for b in (0, 1):
                # Row 2i + a of y is under tap 1 + a of cell i, and under tap 3 of cell i - 1 or tap 0 of cell i + 1.
                taps = [((1 + a, 1), (3 - 3 * a, 2 * a)), ((1 + b, 1), (3 - 3 * b, 2 * b))]
                pairs = [(u, v) for u in taps[0] for v in taps[1]]
                weights = torch.cat([kernel[:, u, v] for (u, _), (v, _) in pairs], dim=-1)
                given = _product(self.pixels[:, a::2, b::2], weights).chunk(4, dim=-1)
                for part, ((_, down), (_, right)) in zip(given, pairs, strict=True):
                    total[:, down : down + self.size[0], right : right + self.size[1]] += part
        return total[:, 1:-1, 1:-1]


def per_image(maps: Tensor, kernels: Tensor, *, padding: int = 0) -> Tensor:
    """Convolve each image with kernels of its own: ``(B, d, h, w)``, ``(B, Q, d, k, k)`` → ``(B, Q, h, w)``.

    On CPUs the convolution library is about twice as fast as the matrix products of the same size.
    """
    found = [F.conv2d(image, kernel, padding=padding) for image, kernel in zip(maps.split(1), kernels, strict=True)]
    return (found[0] if len(found) == 1 else torch.cat(found)).contiguous()


def _fold(mu: Tensor, weight: Tensor) -> Tensor:
    """κ = μᵀW: ``(B, Q, d)``, ``(d, d_y, k, k)`` → ``(B, Q, k, k, d_y)``."""
    taps = weight.permute(0, 2, 3, 1)
    return torch.matmul(mu, taps.flatten(1)).unflatten(2, taps.shape[1:])


def _pooled(weight: Tensor) -> Tensor:
    """Move the mean of 2×2 pixels from the map into the kernel: ``(d, d_y, 3, 3)`` → ``(d, d_y, 4, 4)``."""
    corners = [F.pad(weight, (v, 1 - v, u, 1 - u)) for u in (0, 1) for v in (0, 1)]
    return (corners[0] + corners[1] + corners[2] + corners[3]) / 4


def _product(pixels: Tensor, weights: Tensor) -> Tensor:
    """``(B, h, w, c)``, ``(B, c, k)`` → ``(B, h, w, k)``; strided pixels and the weights of all rows are not copied."""
    height = pixels.shape[1]
    found = [torch.bmm(image, weight.expand(height, -1, -1)) for image, weight in zip(pixels, weights, strict=True)]
    return torch.stack(found)


def _ratio(full: Size, size: Size) -> int | None:
    """The even whole number by which a level is smaller than S, None where there is none."""
    ratio = full[0] // size[0]
    return ratio if ratio % 2 == 0 and full == (ratio * size[0], ratio * size[1]) else None


def _downsample(semantic_map: Tensor, size: Size) -> Tensor:
    """S ``(B, d, h, w)`` at a level's size, bilinear (align_corners=False).

    Down-sampling S once commutes with the dot product, so it equals interpolating the m logit maps of every prompt
    and layer. For an even ratio it is the mean of the central 2×2 pixels, which slicing does faster than
    ``interpolate``.
    """
    ratio = _ratio((semantic_map.shape[-2], semantic_map.shape[-1]), size)
    if ratio is None:
        return F.interpolate(semantic_map, size=size, mode="bilinear", align_corners=False)
    first = ratio // 2 - 1
    corners = [semantic_map[..., first + i :: ratio, first + j :: ratio] for i in (0, 1) for j in (0, 1)]
    return (corners[0] + corners[1] + corners[2] + corners[3]) / 4
