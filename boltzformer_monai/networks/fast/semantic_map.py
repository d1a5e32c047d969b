"""Lazy semantic map S = W ∗ y + b and masks μᵀS (docs/explanation/decoder.md).

Masks are linear in S: with a query's μ, μᵀS = (μᵀW) ∗ y + μᵀb (Eq. 1). So the query is folded into the 3×3 kernel,
κ = μᵀW, and y is convolved with κ: one output channel per query instead of the d channels of S.

:class:`SemanticMap` is S, computed or not; :class:`LevelMap` is S at a coarser level, for the sampling only, and
:class:`LargestMap` gives the largest logits of its cells instead;
:class:`Masks` are the masks of all queries, of which the aggregation needs a few weighted sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.networks.fast.pixel_products import channels_last, convolve_each, is_traced, pixel_products
from boltzformer_monai.networks.level_logits import largest

Size = tuple[int, int]
_CHANNELS = 16  # of S downsampled at a time, so that the row sums stay in the cache
_LOGITS = 1 << 22  # full-size logits in memory at once, where only the largest of each cell are kept
_FULL_REGISTERS = 16  # output channels from which a 3×3 convolution beats shifted and added 1×1 convolutions


class SemanticMap:
    """S of a batch of images: computed, or as y with the convolution's weights.

    Args:
        fine: y ``(B, d_y, h, w)``, or S itself if no weight is given.
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
        """Return the map with S computed."""
        if self.weight is None:
            return self
        return SemanticMap(F.conv2d(self.fine, self.weight, self.bias, padding=1))

    @staticmethod
    def cat(maps: Sequence[SemanticMap]) -> SemanticMap:
        """Concatenate maps along the batch."""
        return SemanticMap(torch.cat([each.fine for each in maps]), maps[0].weight, maps[0].bias)

    def to(self, device: torch.device | str) -> SemanticMap:
        """Move to a device."""
        weight, bias = (None if part is None else part.to(device) for part in (self.weight, self.bias))
        return SemanticMap(self.fine.to(device), weight, bias)

    def detach(self) -> SemanticMap:
        """Detach from the autograd graph."""
        weight, bias = (None if part is None else part.detach() for part in (self.weight, self.bias))
        return SemanticMap(self.fine.detach(), weight, bias)

    def suited(self, maps: int, levels: Mapping[Size, int]) -> SemanticMap:
        """Return the cheaper form for a number of full-size masks per image and for levels of these sizes."""
        full: Size = (self.fine.shape[-2], self.fine.shape[-1])
        folds = self.weight is not None and maps < len(self.weight)
        if not folds or not all(even_ratio(full, size) for size in levels):
            return self.build()
        # Convolutions prefer channels last; if y needs gradients, only those of the levels use it.
        return self if is_traced(self.fine) else self.channels_last()

    def channels_last(self) -> SemanticMap:
        """Return the map with y in channels last."""
        return SemanticMap(channels_last(self.fine), self.weight, self.bias)

    def logits(self, mu: Tensor) -> Tensor:
        """μᵀS: ``(B, Q, d)`` → ``(B, Q, h, w)``."""
        if self.weight is None or self.bias is None:
            return pixel_products(self.fine, mu)
        if mu.shape[1] >= len(self.weight):
            return self.build().logits(mu)
        height, width = self.fine.shape[-2:]
        kernels, bias = fold(mu, self.weight), torch.matmul(mu, self.bias)[..., None, None]
        if mu.shape[1] >= _FULL_REGISTERS:
            return convolve_each(self.fine, kernels, padding=1) + bias
        # Few output channels leave vector registers idle: compute 9·Q single taps, then shift and add them.
        taps = pixel_products(self.fine, kernels.flip(3, 4).permute(0, 1, 3, 4, 2).flatten(1, 3)).flatten(2)
        return F.fold(taps, (height, width), 3, padding=1) + bias

    def at_levels(self, levels: Mapping[Size, int], *, queries: int) -> dict[Size, LevelMap]:
        """S at levels of sizes ``(h_l, w_l)``, bilinear (align_corners=False), for sampling: without gradients.

        Args:
            levels: size → number of products with Q vectors.
            queries: Q.
        """
        source = self.detach()
        if source.weight is not None:
            source = source.channels_last()  # once for all levels
        with torch.no_grad():
            return {size: LevelMap(source, size, queries=queries, uses=uses) for size, uses in levels.items()}

    def largest_at_levels(self, sizes: Iterable[Size]) -> dict[Size, LargestMap]:
        """Largest logits of the cells of levels ``(h_l, w_l)``, for sampling: without gradients."""
        source = self.detach()
        if source.weight is not None:
            source = source.channels_last()  # once for all levels
        return {size: LargestMap(source, size) for size in sizes}


class SemanticConvolution(nn.Conv2d):
    """Deferred 3×3 convolution from y to S: y ``(B, d_y, h, w)`` → :class:`SemanticMap`."""

    def forward(self, fine: Tensor) -> SemanticMap:  # type: ignore[override]
        """Wrap y without computing S."""
        return SemanticMap(fine, self.weight, self.bias)


class LevelMap:
    """S at one level, without gradients.

    Bilinear down-sampling (align_corners=False) by an even ratio r is the mean of the central 2×2 pixels of each r×r
    cell. It commutes with the dot product, and mean and 3×3 convolution are linear, so μᵀS at the level is one strided
    convolution of y with the query's kernel.

    - Ratio ≥ 4: the cells share no pixels; a 4×4 kernel with stride 4 covers their central 4×4 pixels.
    - Ratio 2: 4×4 kernels with stride 2 would overlap. So the mean of y is taken first, split into four planes by even
      and odd rows and columns. The 9 taps are distributed over the planes, with stride 1, the fastest for convolutions.

    Args:
        source: the map at full size, without gradients.
        size: ``(h_l, w_l)``.
        queries: Q, number of vectors per product.
        uses: number of products. S is computed at this level if that is cheaper.
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
            kernels = self.weight.expand(len(source.fine), -1, -1, -1, -1)
            self.ready = self._convolved(kernels).add_(cast(Tensor, self.bias)[:, None, None])
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


class LargestMap:
    """The largest logits of S in the cells of one level, without gradients.

    The maximum does not commute with the dot product: full-size logits are computed, of few vectors at a time.

    Args:
        source: the map at full size, without gradients.
        size: ``(h_l, w_l)``.
    """

    def __init__(self, source: SemanticMap, size: Size) -> None:
        self.source = source
        self.size = size

    def logits(self, mu: Tensor) -> Tensor:
        """The largest μᵀS of each cell: ``(B, Q, d)`` → ``(B, Q, N)``."""
        batch, _, height, width = self.source.shape
        portion = max(1, _LOGITS // (batch * height * width))
        found = [largest(self.source.logits(part), self.size) for part in mu.split(portion, dim=1)]
        return (found[0] if len(found) == 1 else torch.cat(found, dim=1)).flatten(2)


class Masks:
    """Lazy mask logits ``μᵀS + bias``: m for each of P prompts per image.

    Args:
        mu: mask vectors ``(B, P, m, d)`` (Eq. 3).
        semantic: S of the images.
        bias: a scalar added to every logit, or ``None``.
    """

    def __init__(self, mu: Tensor, semantic: SemanticMap, bias: Tensor | None = None) -> None:
        self.mu = mu
        self.semantic = semantic
        self.bias = bias

    @property
    def count(self) -> int:
        """The number m."""
        return self.mu.shape[2]

    def logits(self) -> Tensor:
        """Compute all mask logits ``(B, P, m, h, w)``."""
        logits = self.semantic.logits(self.mu.flatten(1, 2)).unflatten(1, self.mu.shape[1:3])
        return logits if self.bias is None else logits + self.bias

    def combined(self, weights: Tensor) -> Tensor:
        """Weighted sums of the masks, ``(k, m)`` or ``(B, P, k, m)`` → ``(B, P, k, h, w)``.

        Σ wₘ(μₘᵀS) = (Σ wₘμₘ)ᵀS, so k products.
        """
        bias = None if self.bias is None else self.bias * weights.sum(-1)[..., None, None]
        mu = torch.matmul(weights.to(self.mu.dtype), self.mu)
        return Masks(mu, self.semantic, bias).logits()


def even_ratio(full: Size, size: Size) -> int | None:
    """The ratio of S to a level if it is an even integer, else None."""
    ratio = full[0] // size[0]
    return ratio if ratio % 2 == 0 and full == (ratio * size[0], ratio * size[1]) else None


def downsample(semantic_map: Tensor, size: Size) -> Tensor:
    """S ``(B, d, h, w)`` at a level's size, bilinear (align_corners=False), without gradients.

    Once per level instead of once per query, layer and prompt. Sums rows before columns and few channels at a time, so
    that the row sums stay in the cache: faster than ``interpolate`` (docs/explanation/decoder.md).
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
    """Central 4×4 pixels of each cell: ``(B, d, h, w)`` → ``(B, d, 4 h_l, 4 w_l)``, without a copy at ratio 4."""
    height, width = size
    cells = maps.unflatten(3, (width, -1)).unflatten(2, (height, -1))  # (B, d, h_l, r, w_l, r)
    start = cells.shape[3] // 2 - 2
    centres = cells.narrow(3, start, 4).narrow(5, start, 4).permute(0, 2, 3, 4, 5, 1)
    return centres.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _with_mean(kernels: Tensor) -> Tensor:
    """Fold the mean of 2×2 pixels into the kernels: ``(…, 3, 3)`` → ``(…, 4, 4)``."""
    corners = [F.pad(kernels, (v, 1 - v, u, 1 - u)) for u in (0, 1) for v in (0, 1)]
    return (corners[0] + corners[1]).add_(corners[2]).add_(corners[3]).div_(4)


def _means_by_parity(maps: Tensor) -> dict[tuple[int, int], Tensor]:
    """Means of 2×2 pixels that start on odd (0, from the zero padding on) or even (1) rows and columns."""
    return {(a, b): F.avg_pool2d(maps, 2, stride=2, padding=(1 - a, 1 - b)) for a in (0, 1) for b in (0, 1)}
