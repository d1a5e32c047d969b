"""The BoltzFormer network (Zhao et al., CVPR 2025): backbone, pixel decoder, text encoder, decoder and PiGMA.

Decoders, backbones and attention policies are chosen by name, and may come from elsewhere: docs/how-to/extending.md.
"""

from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.interfaces import Backbone, Decoded, Decoder, ImageFeatures, TextFeatures
from boltzformer_monai.networks.presets import PRESETS, create_boltzformer, network_config
from boltzformer_monai.networks.registries import register_backbone, register_decoder, register_policy
from boltzformer_monai.networks.sampling import (
    AttentionSetPolicy,
    BoltzmannSampling,
    CounterNoise,
    FullAttention,
    Randomness,
    ThresholdMask,
)

__all__ = [
    "PRESETS",
    "AttentionSetPolicy",
    "Backbone",
    "BoltzFormer",
    "BoltzmannSampling",
    "CounterNoise",
    "Decoded",
    "Decoder",
    "FullAttention",
    "ImageFeatures",
    "NetworkConfig",
    "Randomness",
    "TextFeatures",
    "ThresholdMask",
    "create_boltzformer",
    "network_config",
    "register_backbone",
    "register_decoder",
    "register_policy",
]
