"""The semantic map S = W ∗ y + b, from which masks are read, without building it where that is dearer.

A mask is linear in S: with μ of a query, μᵀS = (μᵀW) ∗ y + μᵀb. So the query's vector can be folded into the 3×3
kernel, κ = μᵀW, and y convolved with κ: one output channel for each query instead of d of S (Eq. 1; docs/decoder.md).
What the sampling reads at coarser levels is made in :mod:`~boltzformer_monai.networks.fast.level_map`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.networks.fast.level_map import LevelMap, Size, even_ratio, fold
from boltzformer_monai.networks.fast.pixel_products import channels_last, convolve_each, is_traced, pixel_products

_FULL_REGISTERS = 16  # output channels from which a 3×3 convolution beat 1×1 ones that are shifted and added


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

    def suited(self, maps: int, levels: Mapping[Size, int]) -> SemanticMap:
        """Return the cheaper form for so many masks per image at full size, and for levels of these sizes."""
        full: Size = (self.fine.shape[-2], self.fine.shape[-1])
        folds = self.weight is not None and maps < len(self.weight)
        if not folds or not all(even_ratio(full, size) for size in levels):
            return self.build()
        # The convolutions want channels last; where gradients flow to y, only those for the levels get it.
        return self if is_traced(self.fine) else self.channels_last()

    def channels_last(self) -> SemanticMap:
        """Return the same map, y with a pixel's channels side by side in memory."""
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
        # Few output channels leave a convolution's registers idle: 9·Q of one tap each, then shifted and added.
        taps = pixel_products(self.fine, kernels.flip(3, 4).permute(0, 1, 3, 4, 2).flatten(1, 3)).flatten(2)
        return F.fold(taps, (height, width), 3, padding=1) + bias

    def at_levels(self, levels: Mapping[Size, int], *, queries: int) -> dict[Size, LevelMap]:
        """S at levels of sizes ``(h_l, w_l)``, bilinear (align_corners=False), for sampling: without gradients.

        Args:
            levels: how many times each level is multiplied with Q vectors.
            queries: Q.
        """
        source = self.detach()
        if source.weight is not None:
            source = source.channels_last()  # once for all levels
        with torch.no_grad():
            return {size: LevelMap(source, size, queries=queries, uses=uses) for size, uses in levels.items()}
