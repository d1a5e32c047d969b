"""Network presets: the paper's three sizes, and ``tiny``, which trains on two CPU cores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from boltzformer_monai.errors import reject_unknown
from boltzformer_monai.networks.backbone import make_backbone
from boltzformer_monai.networks.baselines import SAM, SEEM
from boltzformer_monai.networks.biomedparse import BIOMEDPARSE
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.fast.semantic_map import SemanticConvolution
from boltzformer_monai.networks.mask_decoder import BOLTZMANN
from boltzformer_monai.networks.pixel_decoder import PixelDecoder
from boltzformer_monai.networks.registries import DECODERS
from boltzformer_monai.networks.text_encoder import clip_text_encoder, pretrained_text_encoder

# "organ" in CLIP's BPE vocabulary with begin and end: the prompt of forward(image) without tokens.
_DEFAULT_TOKENS = (49406, 13213, 49407)


PRESETS: dict[str, NetworkConfig] = {
    "hiera_s": NetworkConfig(backbone="sam2_hiera_small", image_size=1024, neck_channels=256),
    "hiera_bp": NetworkConfig(backbone="sam2_hiera_base_plus", image_size=1024, neck_channels=256),
    "focal_l": NetworkConfig(
        backbone="focalnet_large_fl4",
        image_size=1024,
        normalise_features=True,
        backbone_settings={"normalize_modulator": True},
    ),
    "biomedparse_v2": NetworkConfig(
        backbone="focalnet_large_fl4",
        image_size=512,
        neighbours=1,
        # 114.495 and 57.63 of 255: the means of ImageNet's three channels, for slices of one scan.
        mean=(0.449,) * 3,
        std=(0.226,) * 3,
        normalise_features=True,
        backbone_settings={"normalize_modulator": True},
        queries=16,
        decoder="biomedparse",
        decoder_settings={"edge_queries": 4, "attend_padding": True},
        per_head=True,
        presence=True,
    ),
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
        level_logits="max",  # bilinear loses objects of a few pixels
        presence=True,
    ),
}


def network_config(preset: str, **overrides: Any) -> NetworkConfig:
    """The settings of a preset, with overrides.

    Raises:
        ConfigError: unknown preset or override key (the nearest known one is suggested), or an impossible size.
    """
    reject_unknown([preset], PRESETS, what="preset")
    return _replaced(PRESETS[preset], overrides)


def _replaced(config: NetworkConfig, overrides: Mapping[str, Any]) -> NetworkConfig:
    reject_unknown(overrides, (f.name for f in dataclasses.fields(NetworkConfig)), what="network setting")
    given: dict[str, Any] = dict(overrides)
    if isinstance(reach := given.get("neighbours"), int) and reach > 0 and "in_channels" not in given:
        # All channels are slices of one scan, so they share mean and standard deviation.
        given["in_channels"] = 2 * reach + 1
        for name in ("mean", "std"):
            values = getattr(config, name)
            given.setdefault(name, (sum(values) / len(values),) * given["in_channels"])
    if given.get("decoder", config.decoder) != config.decoder:  # how the preset's own decoder samples
        given.setdefault("level_logits", NetworkConfig.level_logits)
    tuples = {
        name: tuple(value) for name, value in given.items() if name in ("mean", "std") and isinstance(value, list)
    }
    return dataclasses.replace(config, **{**given, **tuples})


def create_boltzformer(preset: str | NetworkConfig = "hiera_s", **overrides: Any) -> BoltzFormer:
    """Build a network with random weights (``pretrained=True`` loads the backbone's).

    Args:
        preset: a name of :data:`PRESETS`, or a complete configuration.
        overrides: settings of :class:`NetworkConfig` that replace the preset's.

    Raises:
        ConfigError: a setting or the name of a part is unknown, or settings do not fit their part.
    """
    config = _replaced(preset, overrides) if isinstance(preset, NetworkConfig) else network_config(preset, **overrides)
    backbone: Any = make_backbone(config)
    if config.text_model:
        text_encoder = pretrained_text_encoder(config.text_model, dim=config.dim)
    else:
        text_encoder = clip_text_encoder(
            dim=config.dim,
            width=config.text_width,
            layers=config.text_layers,
            heads=config.text_heads,
            activation=config.text_activation,
            norm_eps=config.text_norm_eps,
        )
    # SAM reads no S at all; other decoders, and those of guests, get it as a tensor.
    lazy_map = config.decoder in (BOLTZMANN, BIOMEDPARSE, SEEM, SAM) and config.fast
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
            map_convolution=SemanticConvolution if lazy_map else nn.Conv2d,
        ),
        text_encoder=text_encoder,
        decoder=DECODERS.make(config.decoder, config, settings=config.decoder_settings),
        mean=config.mean,
        std=config.std,
        default_tokens=() if config.text_model else _DEFAULT_TOKENS,  # token ids depend on the vocabulary
    )
