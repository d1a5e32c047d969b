"""The BoltzFormer network (Zhao et al., CVPR 2025): backbone, pixel decoder, text encoder, decoder and PiGMA."""

from boltzformer_monai.networks.boltzformer import BoltzFormer, Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.networks.presets import PRESETS, NetworkConfig, create_boltzformer, network_config
from boltzformer_monai.networks.sampling import BoltzmannSampling, CounterNoise, FullAttention, ThresholdMask

__all__ = [
    "PRESETS",
    "BoltzFormer",
    "BoltzmannSampling",
    "CounterNoise",
    "Decoded",
    "FullAttention",
    "ImageFeatures",
    "NetworkConfig",
    "TextFeatures",
    "ThresholdMask",
    "create_boltzformer",
    "network_config",
]
