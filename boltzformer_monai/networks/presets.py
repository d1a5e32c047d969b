"""Networks by name: the paper's three sizes, and ``tiny``, which trains on two CPU cores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from boltzformer_monai.errors import ConfigError, reject_unknown
from boltzformer_monai.networks.backbone import FeaturePyramidNeck, TimmBackbone, TinyBackbone
from boltzformer_monai.networks.boltzformer import STRIDE, BoltzFormer
from boltzformer_monai.networks.decoder import BoltzFormerDecoder
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from boltzformer_monai.networks.fast.pigma import FastPiGMA
from boltzformer_monai.networks.fast.semantic_map import SemanticConvolution
from boltzformer_monai.networks.pigma import PiGMA
from boltzformer_monai.networks.pixel_decoder import Norm, PixelDecoder
from boltzformer_monai.networks.presence import PresenceHead
from boltzformer_monai.networks.sampling import AttentionSetPolicy, BoltzmannSampling, FullAttention, ThresholdMask
from boltzformer_monai.networks.text_encoder import clip_text_encoder, pretrained_text_encoder

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# "organ" in CLIP's BPE vocabulary with begin and end: what forward(image) alone asks for.
_DEFAULT_TOKENS = (49406, 13213, 49407)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Every setting of a network; plain values, so that a checkpoint can carry it."""

    backbone: str
    """``"tiny"`` or a timm model name."""
    image_size: int
    """H = W the network is trained and run at, a multiple of 32."""
    in_channels: int = 3
    neighbours: int = 0
    """Slices on either side that come as channels (2.5-D); ``in_channels`` is then ``2 * neighbours + 1``."""
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    neck_channels: int | None = None
    """Channels of SAM 2's neck; ``None`` = no neck."""
    normalise_features: bool = False
    """LayerNorm on every backbone output (Focal-L)."""
    pretrained: bool = False
    """Fetch timm's pre-trained backbone weights when the network is made."""
    dim: int = 512
    heads: int = 8
    hidden: int = 2048
    queries: int = 10
    layers: int = 9
    pixel_layers: int = 6
    norm: Norm = "group"
    pre_norm: bool = False
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_model: str | None = None
    """Local folder of another transformers text model."""
    policy: Literal["boltzmann", "threshold", "full"] = "boltzmann"
    base_temperature: float = 1.0
    sample_ratio: float = 0.1
    exact: bool = False
    """Exact multinomial draws instead of the Bernoulli form."""
    per_head: bool = False
    """One attention set per head (published code) instead of one per query (paper)."""
    threshold: float = 0.5
    text_prior: bool = True
    pigma_channels: int = 10
    pigma_correction: bool = True
    mask_bias: float | None = None
    presence: bool = False
    """Have a head that says whether the object is in the slice (not in the paper)."""
    fast: bool = True
    """Compute decoder and aggregation in their fast forms (``networks/fast``): the same function and weights."""

    def __post_init__(self) -> None:
        """Raises :class:`~boltzformer_monai.errors.ConfigError` for sizes that no network can have."""
        sizes = ("in_channels", "dim", "heads", "hidden", "queries", "layers", "pigma_channels")
        for name in (*sizes, "text_width", "text_layers", "text_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                msg = f"{name} must be a whole number of at least 1, got {value!r}"
                raise ConfigError(msg)
        if not isinstance(self.image_size, int) or self.image_size % STRIDE or self.image_size < STRIDE:
            msg = f"image_size must be a positive multiple of {STRIDE}, got {self.image_size!r}"
            raise ConfigError(msg)
        if not isinstance(self.neighbours, int) or self.neighbours < 0:
            msg = f"neighbours must be a whole number of at least 0, got {self.neighbours!r}"
            raise ConfigError(msg)
        if self.neighbours and self.in_channels != 2 * self.neighbours + 1:
            msg = f"{self.neighbours} neighbours make {2 * self.neighbours + 1} in_channels, not {self.in_channels}"
            raise ConfigError(msg)
        if not len(self.mean) == len(self.std) == self.in_channels:
            msg = (
                f"mean and std need one value for each of the {self.in_channels} in_channels, "
                f"got {list(self.mean)} and {list(self.std)}"
            )
            raise ConfigError(msg)


PRESETS: dict[str, NetworkConfig] = {
    "hiera_s": NetworkConfig(backbone="sam2_hiera_small", image_size=1024, neck_channels=256),
    "hiera_bp": NetworkConfig(backbone="sam2_hiera_base_plus", image_size=1024, neck_channels=256),
    "focal_l": NetworkConfig(backbone="focalnet_large_fl4", image_size=1024, normalise_features=True),
    "tiny": NetworkConfig(
        backbone="tiny",
        image_size=192,
        in_channels=1,
        mean=(0.3,),
        std=(0.25,),
        dim=64,
        heads=4,
        hidden=128,
        pixel_layers=1,
        norm="batch",
        pre_norm=True,
        text_width=64,
        text_layers=2,
        text_heads=4,
        mask_bias=-3.0,
        presence=True,
    ),
}


def network_config(preset: str, **overrides: Any) -> NetworkConfig:
    """The settings of a preset with some of them replaced.

    Raises:
        ConfigError: unknown preset or override key (the nearest known one is suggested), or an impossible size.
    """
    reject_unknown([preset], PRESETS, what="preset")
    return _replaced(PRESETS[preset], overrides)


def _replaced(config: NetworkConfig, overrides: Mapping[str, Any]) -> NetworkConfig:
    reject_unknown(overrides, (f.name for f in dataclasses.fields(NetworkConfig)), what="network setting")
    given: dict[str, Any] = dict(overrides)
    if isinstance(reach := given.get("neighbours"), int) and reach > 0 and "in_channels" not in given:
        # Every channel is a slice of the same scan: one mean and deviation for all of them.
        given["in_channels"] = 2 * reach + 1
        for name in ("mean", "std"):
            values = getattr(config, name)
            given.setdefault(name, (sum(values) / len(values),) * given["in_channels"])
    tuples: dict[str, Any] = {name: tuple(given[name]) for name in ("mean", "std") if name in given}
    return dataclasses.replace(config, **{**given, **tuples})


def create_boltzformer(preset: str | NetworkConfig = "hiera_s", **overrides: Any) -> BoltzFormer:
    """Build a network with random weights (``pretrained=True`` fetches the backbone's).

    Args:
        preset: a name of :data:`PRESETS`, or a complete configuration.
        overrides: settings of :class:`NetworkConfig` that replace the preset's.
    """
    config = _replaced(preset, overrides) if isinstance(preset, NetworkConfig) else network_config(preset, **overrides)
    backbone = _backbone(config)
    if config.text_model:
        text_encoder = pretrained_text_encoder(config.text_model, dim=config.dim)
    else:
        text_encoder = clip_text_encoder(
            dim=config.dim, width=config.text_width, layers=config.text_layers, heads=config.text_heads
        )
    return BoltzFormer(
        backbone=backbone,
        pixel_decoder=PixelDecoder(
            in_channels=backbone.channels,
            dim=config.dim,
            heads=config.heads,
            hidden=config.hidden,
            layers=config.pixel_layers,
            norm=config.norm,
            pre_norm=config.pre_norm,
            map_convolution=SemanticConvolution if config.fast else nn.Conv2d,
        ),
        text_encoder=text_encoder,
        decoder=(FastBoltzFormerDecoder if config.fast else BoltzFormerDecoder)(
            dim=config.dim,
            policy=attention_policy(config),
            queries=config.queries,
            heads=config.heads,
            hidden=config.hidden,
            layers=config.layers,
            text_prior=config.text_prior,
            mask_bias=config.mask_bias,
        ),
        aggregation=(FastPiGMA if config.fast else PiGMA)(
            queries=config.queries,
            image_channels=config.in_channels,
            channels=config.pigma_channels,
            correction=config.pigma_correction,
        ),
        mean=config.mean,
        std=config.std,
        default_tokens=() if config.text_model else _DEFAULT_TOKENS,  # another vocabulary has other ids
        presence=PresenceHead(config.dim) if config.presence else None,
    )


def attention_policy(config: NetworkConfig) -> AttentionSetPolicy:
    """The attention-set policy that a configuration names."""
    if config.policy == "boltzmann":
        return BoltzmannSampling(
            config.base_temperature, config.sample_ratio, exact=config.exact, per_head=config.per_head
        )
    if config.policy == "threshold":
        return ThresholdMask(config.threshold)
    if config.policy == "full":
        return FullAttention()
    msg = f"policy must be 'boltzmann', 'threshold' or 'full', got {config.policy!r}"
    raise ConfigError(msg)


def _backbone(config: NetworkConfig) -> TinyBackbone | TimmBackbone | FeaturePyramidNeck:
    if config.backbone == "tiny":
        return TinyBackbone(in_channels=config.in_channels)
    settings = {"normalize_modulator": True} if config.backbone.startswith("focalnet") else {}
    backbone = TimmBackbone(
        config.backbone,
        in_channels=config.in_channels,
        pretrained=config.pretrained,
        normalise=config.normalise_features,
        settings=settings,
    )
    if config.neck_channels is None:
        return backbone
    return FeaturePyramidNeck(backbone, channels=config.neck_channels)
