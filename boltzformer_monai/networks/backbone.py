"""Image backbones with strides 4, 8, 16 and 32: any timm ``features_only`` model, and a small one for CPUs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError, did_you_mean
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.interfaces import Backbone
from boltzformer_monai.networks.registries import BACKBONES, register_backbone
from boltzformer_monai.registry import OF_YOUR_OWN

STRIDES = (4, 8, 16, 32)
# A checkpoint carries the backbone's settings, so they must not make timm load or download files.
_OURS = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "in_chans",
    "features_only",
}
_OURS_INSTEAD = "use the network settings in_channels and pretrained"


class TimmBackbone(nn.Module):
    """A timm model as a feature pyramid.

    Args:
        name: timm model name, e.g. ``sam2_hiera_small``, ``sam2_hiera_base_plus``, ``focalnet_large_fl4``.
        image_size: H = W of the images, for models with a fixed input size; ``None`` = the model's own.
        in_channels: channels of the image.
        pretrained: load timm's pre-trained weights, from its local cache or the internet.
        normalise: add a LayerNorm to every output, as the published Focal-L has.
        settings: further keyword arguments of the timm model.

    Attributes:
        channels: of the four features, fine to coarse.

    Raises:
        ConfigError: timm does not know the name or an argument, the model cannot run at this image size, or it lacks
            features of strides 4, 8, 16 and 32.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int | None = None,
        in_channels: int = 3,
        pretrained: bool = False,
        normalise: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = dict(settings or {})
        if taken := sorted(_OURS & set(options)):
            raise ConfigError(f"{taken[0]} is no backbone setting; {_OURS_INSTEAD}")
        self.name = name
        self.image_size: int | None = None
        if not timm.is_model(name):
            known = [*BACKBONES.names(), *timm.list_models()]
            hint = did_you_mean(name, known, otherwise="see timm.list_models().", cutoff=0.6)
            raise ConfigError(f"timm has no model {name!r}; {hint} {OF_YOUR_OWN}")
        try:
            made_for = timm.get_pretrained_cfg(name)
        except RuntimeError as error:  # no such tag behind the dot
            msg = f"timm has no weights {name!r}: {_first_line(error)}; {name.partition('.')[0]!r} alone is enough"
            raise ConfigError(msg) from None
        if made_for is not None and made_for.fixed_input_size and image_size is not None:
            if made_for.input_size[-1] != image_size:
                options.setdefault("img_size", image_size)
            self.image_size = image_size
        self.model = _timm_model(name, {"pretrained": pretrained, "in_chans": in_channels, **options})
        info: Any = self.model.feature_info
        reductions = list(info.reduction())
        if any(stride not in reductions for stride in STRIDES):
            raise ConfigError(f"backbone {name!r} has strides {reductions}; strides {list(STRIDES)} are needed")
        self._picked = [reductions.index(stride) for stride in STRIDES]
        self._channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        self.channels: list[int] = [info.channels()[i] for i in self._picked]
        self.norms: nn.ModuleList | None = None
        if image_size is not None:
            self._try(image_size, in_channels)
        if normalise:
            self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-5) for c in self.channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` → ``(B, C_i, H/s, W/s)`` for s = 4, 8, 16, 32.

        Raises:
            ConfigError: the model was made for images of another size.
        """
        if self.image_size is not None and any(size != self.image_size for size in image.shape[-2:]):
            made, got = f"{self.image_size} × {self.image_size}", " × ".join(map(str, image.shape[-2:]))
            raise ConfigError(f"the backbone {self.name!r} was made for images of {made} pixels, got {got}")
        outputs = self.model(image)
        features = [outputs[i] for i in self._picked]
        if self._channels_last:
            features = [f.permute(0, 3, 1, 2) for f in features]
        if self.norms is None:
            return features
        return [norm(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, f in zip(self.norms, features, strict=True)]

    def _try(self, size: int, in_channels: int) -> None:
        """Run the model once on the meta device, so that an unsuitable image size fails now and not during training."""
        state = {name: x.to("meta") for name, x in (*self.model.named_parameters(), *self.model.named_buffers())}
        image = torch.zeros(1, in_channels, size, size, device="meta")
        try:
            with torch.device("meta"), torch.no_grad():
                outputs = functional_call(self.model, state, (image,))
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            msg = f"the backbone {self.name!r} cannot take images of {size} × {size} pixels: {_first_line(error)}"
            raise ConfigError(msg) from error
        edges = [outputs[i].shape[1 if self._channels_last else 2] for i in self._picked]
        if edges != [size // stride for stride in STRIDES]:
            msg = f"the backbone {self.name!r} makes features of {edges} pixels from {size}; strides 4 to 32 are needed"
            raise ConfigError(msg)


def _timm_model(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, features_only=True, **options)
    # Missing weights, no connection, missing features, or invalid arguments.
    except (OSError, RuntimeError, TypeError, ValueError, AssertionError, ArithmeticError, LookupError) as error:
        msg = f"timm cannot make the backbone {name!r}: {_first_line(error)}"
        if isinstance(error, TypeError) and (wrong := re.search(r"unexpected keyword argument '(\w+)'", msg)):
            with torch.device("meta"):
                known = set(inspect.signature(type(timm.create_model(name))).parameters) - _OURS
            msg = f"the backbone {name!r} has no setting {wrong[1]!r}; {did_you_mean(wrong[1], sorted(known))}"
        raise ConfigError(msg) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class FeaturePyramidNeck(nn.Module):
    """SAM 2's neck: a 1×1 convolution per stride to ``channels``, summed top-down at the listed levels only.

    Args:
        backbone: a module with outputs at strides 4–32.
        channels: output channels (256).
        top_down_levels: indices into strides 4–32 that receive the coarser level, nearest-neighbour upsampled
            (SAM 2: 2 and 3, so in effect only stride 16 receives stride 32).
    """

    def __init__(self, backbone: Backbone, *, channels: int = 256, top_down_levels: Sequence[int] = (2, 3)) -> None:
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
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        # The shortcut has no stride of its own: see layout.training_is_safe.
        return F.relu(y + self.skip(x[..., :: self.stride, :: self.stride]), inplace=True)


_WIDTHS = (24, 48, 96, 144, 192)


class TinyBackbone(nn.Module):
    """Plain residual 3×3 convolutions with BatchNorm: trains from random weights on two CPU cores.

    Args:
        in_channels: channels of the image.
        widths: channels at strides 2, 4, 8, 16, 32.
    """

    def __init__(self, *, in_channels: int = 1, widths: Sequence[int] = _WIDTHS) -> None:
        super().__init__()
        sound = isinstance(widths, list | tuple) and len(widths) == 5
        if not sound or any(type(width) is not int or width < 1 for width in widths):
            msg = f"widths must name five strides (2–32), each a whole number of at least 1; got {widths!r}"
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


@register_backbone("tiny")
def _tiny(config: NetworkConfig, *, widths: Sequence[int] = _WIDTHS) -> TinyBackbone:
    return TinyBackbone(in_channels=config.in_channels, widths=widths)


def of_timm(config: NetworkConfig) -> bool:
    """Whether the configuration's backbone is a timm model and no registered one."""
    return BACKBONES.find(config.backbone) is None


def make_backbone(config: NetworkConfig) -> nn.Module:
    """Build the backbone of a configuration: a registered one or a timm model, with SAM 2's neck if configured.

    Raises:
        ConfigError: the name is unknown, or the settings do not fit it.
    """
    backbone: Any
    if not of_timm(config):
        if ignored := [name for name in ("pretrained", "normalise_features") if getattr(config, name)]:
            raise ConfigError(f"{ignored[0]} is for timm's backbones, and {config.backbone!r} is none; leave it out")
        backbone = BACKBONES.make(config.backbone, config, settings=config.backbone_settings)
    else:
        backbone = TimmBackbone(
            config.backbone,
            image_size=config.image_size,
            in_channels=config.in_channels,
            pretrained=config.pretrained,
            normalise=config.normalise_features,
            settings=config.backbone_settings,
        )
    return backbone if config.neck_channels is None else FeaturePyramidNeck(backbone, channels=config.neck_channels)
