"""Registries of decoders, backbones and attention policies."""

from __future__ import annotations

from torch import nn

from boltzformer_monai.networks.sampling import AttentionSetPolicy, BoltzmannSampling, FullAttention, ThresholdMask
from boltzformer_monai.registry import Registry

DECODERS: Registry[nn.Module] = Registry("decoder", group="boltzformer_monai.decoders")
"""Factories take the ``NetworkConfig`` and ``decoder_settings``; see :class:`~.interfaces.Decoder`."""
BACKBONES: Registry[nn.Module] = Registry("backbone", group="boltzformer_monai.backbones")
"""Factories take the ``NetworkConfig`` and ``backbone_settings``; see :class:`~.interfaces.Backbone`."""
POLICIES: Registry[AttentionSetPolicy] = Registry("attention policy", group="boltzformer_monai.policies")
"""Factories take ``policy_settings``; see :class:`~.sampling.AttentionSetPolicy`."""

register_decoder = DECODERS.register
register_backbone = BACKBONES.register
register_policy = POLICIES.register

register_policy("boltzmann")(BoltzmannSampling)
register_policy("threshold")(ThresholdMask)
register_policy("full")(FullAttention)
