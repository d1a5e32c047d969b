"""The published pixel decoder (Mask2Former/SEEM family): FPN with normalised convolutions over a transformer encoder.

A transformer encoder processes the coarsest backbone feature; a top-down pathway adds it to the finer ones. Outputs:
multi-scale visual features V (strides 32, 16, 8) and the semantic map S (stride 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.attention import MultiHeadAttention
from boltzformer_monai.networks.position import sine_position_encoding

Norm = Literal["group", "batch"]


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """GroupNorm with 32 groups (published), or BatchNorm (cheaper backward pass on CPUs, used by ``tiny``).

    If 32 does not divide the channels, GroupNorm has gcd(32, channels) groups.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind != "group":
        raise ConfigError(f"norm must be 'group' or 'batch', got {kind!r}")
    return nn.GroupNorm(math.gcd(32, channels), channels)


class ConvNorm(nn.Sequential):
    """Convolution without bias, normalisation and optional ReLU; keeps the spatial size."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, norm: Norm, relu: bool) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False))
        self.add_module("norm", make_norm(norm, outputs))
        if relu:
            self.add_module("relu", nn.ReLU(inplace=True))


class EncoderLayer(nn.Module):
    """One transformer encoder layer: post-norm as published, or pre-norm for training from random weights."""

    def __init__(self, *, dim: int, heads: int, hidden: int, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = MultiHeadAttention(dim=dim, heads=heads)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Patches and their position ``(B, N, d)`` → ``(B, N, d)``."""
        if self.pre_norm:
            normed = self.norm1(x)
            x = x + self.self_attn(normed + position, normed + position, normed)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self.self_attn(x + position, x + position, x))
        return self.norm2(x + self._feed_forward(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(x)))


class PixelDecoder(nn.Module):
    """Backbone features → visual features V, coarse to fine, and semantic map S.

    Args:
        in_channels: channels of the backbone features, fine to coarse (strides 4, 8, 16, 32).
        dim: d, channels of all outputs (paper sizes: 512).
        heads: heads of the transformer encoder.
        hidden: width of its feed-forward layers.
        layers: its number of layers (published: 6).
        norm: ``"group"`` (published) or ``"batch"``.
        pre_norm: pre-norm transformer layers instead of the published post-norm.
        map_convolution: class of the 3×3 convolution that computes S;
            :class:`~boltzformer_monai.networks.fast.semantic_map.SemanticConvolution` defers it.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        dim: int,
        heads: int = 8,
        hidden: int = 2048,
        layers: int = 6,
        norm: Norm = "group",
        pre_norm: bool = False,
        map_convolution: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        if len(in_channels) < 2:
            msg = f"the pixel decoder needs features of at least two strides, got channels {list(in_channels)}"
            raise ConfigError(msg)
        if dim % 4:
            raise ConfigError(f"dim must be a multiple of 4 for the position encoding, got {dim}")
        self.dim = dim
        self.input_proj = nn.Conv2d(in_channels[-1], dim, 1)
        self.encoder = nn.ModuleList(
            EncoderLayer(dim=dim, heads=heads, hidden=hidden, pre_norm=pre_norm) for _ in range(layers)
        )
        # Coarse to fine: lateral[i] projects the backbone feature, smooth[i] is the 3×3 convolution after the sum.
        finer = list(reversed(in_channels[:-1]))
        self.lateral = nn.ModuleList(ConvNorm(c, dim, kernel=1, norm=norm, relu=False) for c in finer)
        self.smooth = nn.ModuleList(ConvNorm(dim, dim, kernel=3, norm=norm, relu=True) for _ in range(len(in_channels)))
        self.semantic_map = map_convolution(dim, dim, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Decode.

        Args:
            features: ``(B, C_i, H/s_i, W/s_i)``, fine to coarse.

        Returns:
            Visual features ``(B, d, H/s, W/s)``, coarse to fine, strides 32 to 8; semantic map ``(B, d, H/4, W/4)``.
        """
        y = self.smooth[0](self.encode(self.input_proj(features[-1])))
        levels = [y]
        for feature, lateral, smooth in zip(reversed(features[:-1]), self.lateral, self.smooth[1:], strict=True):
            inner = lateral(feature)
            y = smooth(inner + F.interpolate(y, size=inner.shape[-2:], mode="nearest"))
            levels.append(y)
        return levels[:-1], self.semantic_map(levels[-1])

    def encode(self, x: Tensor) -> Tensor:
        """The transformer encoder over the coarsest map, ``(B, d, h, w)`` → ``(B, d, h, w)``."""
        height, width = x.shape[-2:]
        position = sine_position_encoding(height, width, self.dim, device=x.device).flatten(1).T[None]
        patches = x.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            patches = layer(patches, position.to(patches.dtype))
        return patches.transpose(1, 2).unflatten(2, (height, width))
