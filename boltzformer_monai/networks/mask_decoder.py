"""The paper's decoder: query decoder (Sec. 3.2), mask aggregation (Sec. 3.3) and an optional presence head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.decoder import BoltzFormerDecoder
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from boltzformer_monai.networks.fast.pigma import FastPiGMA
from boltzformer_monai.networks.fast.semantic_map import SemanticMap
from boltzformer_monai.networks.interfaces import Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.networks.pigma import PiGMA
from boltzformer_monai.networks.presence import PresenceHead
from boltzformer_monai.networks.registries import POLICIES, register_decoder
from boltzformer_monai.networks.sampling import AttentionSetPolicy, Randomness, RecordingPolicy

BOLTZMANN = "boltzmann"
_POLICY_SETTINGS = {"boltzmann": ("base_temperature", "sample_ratio", "exact", "per_head"), "threshold": ("threshold",)}


class MaskDecoder(nn.Module):
    """Query decoder, aggregation and presence head, composed of injected modules.

    Args:
        query_decoder: visual features, semantic map and text → mask logits ``(B, P, m, H/4, W/4)`` and queries.
        aggregation: mask logits of m queries and the image → ``(B, P, H/2, W/2)``.
        presence: queries after the last layer ``(B, P, m, d)``, mask logits and the finest visual features → presence
            logits ``(B, P)``; ``None`` (paper) has none.

    Attributes:
        layer_logits: in training mode, also give ``Decoded.layers``: the mask logits of every query between the layers.
        layer_stride: average them over squares of so many pixels of S.
    """

    def __init__(
        self, *, query_decoder: BoltzFormerDecoder, aggregation: nn.Module, presence: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.query_decoder = query_decoder
        self.aggregation = aggregation
        self.presence = presence
        self.layer_logits = False
        self.layer_stride = 1

    def forward(self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None) -> Decoded:
        """Decode P prompts on each of B images; see :class:`~boltzformer_monai.networks.interfaces.Decoder`."""
        masks, queries, layers = self.decode(self.query_decoder, image, text, generator)
        logits = self.aggregation(masks, image.image)
        presence = None if self.presence is None else self.presence(queries, logits, image.levels[-1])
        return Decoded(logits, presence, layers=layers)

    def decode(
        self, query_decoder: BoltzFormerDecoder, image: ImageFeatures, text: TextFeatures, generator: Randomness
    ) -> tuple[Any, Tensor, Tensor | None]:
        """Masks and queries of the query decoder, and ``Decoded.layers`` where wanted."""
        if not (self.layer_logits and self.training):
            return *query_decoder.decode(image.levels, image.semantic_map, *text, generator=generator), None
        # So many masks need S itself, once for all of them.
        lazy = isinstance(image.semantic_map, SemanticMap)
        semantic_map = image.semantic_map.build().fine if lazy else image.semantic_map
        trace: list[Tensor] = []
        masks, queries = query_decoder.decode(image.levels, semantic_map, *text, generator=generator, trace=trace)
        if len(trace) < 2:  # a single layer has none before it
            return masks, queries, None
        return masks, queries, query_decoder.layer_masks(trace, semantic_map, stride=self.layer_stride)

    @torch.no_grad()
    def attention_sets(
        self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None, drawn: bool = False
    ) -> list[Tensor]:
        """Attention sets by layer, ``(B, P, [h,] m, h_l, w_l)`` boolean on the grid of the layer's level.

        With ``drawn`` those that were drawn empty are empty, and not everything as attended to.
        """
        policy = self.query_decoder.policy
        recording = RecordingPolicy(policy)
        self.query_decoder.policy = recording
        try:
            self.query_decoder.decode(image.levels, image.semantic_map, *text, generator=generator)
        finally:
            self.query_decoder.policy = policy
        grids = [tuple(level.shape[-2:]) for level in image.levels]
        sets = recording.sets
        if drawn:
            sets = [attend & ~empty[..., None] for attend, empty in zip(sets, recording.empty, strict=True)]
        return [attend.unflatten(-1, grids[layer % len(grids)]) for layer, attend in enumerate(sets)]


@register_decoder(BOLTZMANN)
def boltzmann_decoder(config: NetworkConfig) -> MaskDecoder:
    """Build the decoder of a configuration, in its plain or fast form."""
    return MaskDecoder(
        query_decoder=(FastBoltzFormerDecoder if config.fast else BoltzFormerDecoder)(
            dim=config.dim,
            policy=attention_policy(config),
            queries=config.queries,
            heads=config.heads,
            hidden=config.hidden,
            layers=config.layers,
            text_prior=config.text_prior,
            mask_bias=config.mask_bias,
            level_logits=config.level_logits,
        ),
        aggregation=(FastPiGMA if config.fast else PiGMA)(
            queries=config.queries,
            image_channels=config.in_channels,
            channels=config.pigma_channels,
            correction=config.pigma_correction,
        ),
        presence=PresenceHead(config.dim) if config.presence else None,
    )


def attention_policy(config: NetworkConfig) -> AttentionSetPolicy:
    """Build the attention policy of a configuration.

    Raises:
        ConfigError: its name is unknown, or a setting is unknown, out of range or given twice.
    """
    settings: dict[str, Any] = {name: getattr(config, name) for name in _POLICY_SETTINGS.get(config.policy, ())}
    for name in settings.keys() & config.policy_settings.keys():
        if settings[name] != getattr(NetworkConfig, name):  # the class holds the defaults
            twice = {name: config.policy_settings[name]}
            raise ConfigError(f"{name} {settings[name]} and policy_settings {twice} set the same; give one of them")
    return POLICIES.make(config.policy, settings={**settings, **config.policy_settings})
