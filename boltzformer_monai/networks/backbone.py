"""Image backbones with strides 4, 8, 16 and 32: any timm ``features_only`` model, and a small one for CPUs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError

STRIDES = (4, 8, 16, 32)


class TimmBackbone(nn.Module):
    """A timm model as a feature pyramid.

    Args:
        name: timm model name, e.g. ``sam2_hiera_small``, ``sam2_hiera_base_plus``, ``focalnet_large_fl4``.
        in_channels: channels of the image.
        pretrained: let timm fetch its pre-trained weights (needs the network or timm's local cache).
        normalise: add a LayerNorm to every output, as the published Focal-L has.
        settings: further keyword arguments of the timm model.

    Raises:
        ConfigError: timm does not know the name, or the model has no features of strides 4, 8, 16 and 32.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        pretrained: bool = False,
        normalise: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3)) or "see timm.list_models()"
            msg = f"timm has no model {name!r}; near it: {near}"
            raise ConfigError(msg)
        options: dict[str, Any] = {"pretrained": pretrained, "in_chans": in_channels, **(settings or {})}
        try:
            self.model = timm.create_model(name, features_only=True, **options)
        except (OSError, RuntimeError) as error:  # no such weights, no network, or no such features
            msg = f"timm cannot make the backbone {name!r}: {str(error).splitlines()[0]}"
            raise ConfigError(msg) from error
        info: Any = self.model.feature_info
        reductions = list(info.reduction())
        if any(stride not in reductions for stride in STRIDES):
            msg = f"backbone {name!r} has strides {reductions}; strides {list(STRIDES)} are needed"
            raise ConfigError(msg)
        self._picked = [reductions.index(stride) for stride in STRIDES]
        all_channels = info.channels()
        self.channels: list[int] = [all_channels[i] for i in self._picked]
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-5) for c in self.channels) if normalise else None

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` → ``(B, C_i, H/s, W/s)`` for s = 4, 8, 16, 32."""
        outputs = self.model(image)
        features = [outputs[i] for i in self._picked]
        if not all(f.shape[1] == c for f, c in zip(features, self.channels, strict=True)):
            features = [f.permute(0, 3, 1, 2) for f in features]  # some timm models give channels last
        if self.norms is None:
            return features
        return [norm(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, f in zip(self.norms, features, strict=True)]


class FeaturePyramidNeck(nn.Module):
    """SAM 2's neck: a 1×1 convolution per stride to ``channels``, summed top-down at the listed levels only.

    Args:
        backbone: gives strides 4–32; its ``channels`` are read.
        channels: output channels (256).
        top_down_levels: indices into strides 4–32 that receive the coarser level, nearest-neighbour upsampled
            (SAM 2: 2 and 3, so in effect only stride 16 receives stride 32).
    """

    def __init__(self, backbone: TimmBackbone, *, channels: int = 256, top_down_levels: Sequence[int] = (2, 3)) -> None:
        super().__init__()
        self.backbone = backbone
        self.convs = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in backbone.channels)
        self.top_down_levels = frozenset(top_down_levels)
        self.channels: list[int] = [channels] * len(backbone.channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` → ``(B, channels, H/s, W/s)`` for s = 4, 8, 16, 32."""
        outputs = [conv(feature) for conv, feature in zip(self.convs, self.backbone(image), strict=True)]
        for level in reversed(range(len(outputs) - 1)):
            if level in self.top_down_levels:
                outputs[level] = outputs[level] + F.interpolate(outputs[level + 1], scale_factor=2.0, mode="nearest")
        return outputs


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        return F.relu(y + self.skip(x), inplace=True)


class TinyBackbone(nn.Module):
    """Plain residual 3×3 convolutions with BatchNorm: trains from random weights on two CPU cores.

    Args:
        in_channels: channels of the image.
        widths: channels at strides 2, 4, 8, 16, 32.
    """

    def __init__(self, *, in_channels: int = 1, widths: Sequence[int] = (24, 48, 96, 144, 192)) -> None:
        super().__init__()
        if len(widths) != 5:
            msg = f"widths must name five strides (2–32), got {list(widths)}"
            raise ConfigError(msg)
        inputs = [in_channels, *widths[:-1]]
        self.stages = nn.ModuleList(_ResidualBlock(i, o, stride=2) for i, o in zip(inputs, widths, strict=True))
        self.channels: list[int] = list(widths[1:])

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` → ``(B, C_i, H/s, W/s)`` for s = 4, 8, 16, 32."""
        features = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return features[1:]
