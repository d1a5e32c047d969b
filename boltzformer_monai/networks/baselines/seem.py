"""SEEM's decoder (Zou et al., 2023), which BiomedParse v1 has too: masked attention, and one query for the prompt.

The queries are refined as in :mod:`~boltzformer_monai.networks.decoder`. What differs:

- a query attends to the patches where its own mask has at least ``threshold``, the first time that of the learned
  query, which knows no prompt yet; there is no text prior;
- the feed-forward block follows on queries and text;
- the mask is that of the query whose vector is nearest to the prompt's; stride 4, doubled without learning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.baselines.settings import SAMPLING, check_least, refuse_settings
from boltzformer_monai.networks.baselines.text import prompt_vectors
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.decoder import BoltzFormerDecoder, BoltzFormerLayer
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from boltzformer_monai.networks.fast.semantic_map import Masks, SemanticMap
from boltzformer_monai.networks.interfaces import Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.networks.mask_decoder import MaskDecoder
from boltzformer_monai.networks.pigma import double
from boltzformer_monai.networks.presence import PresenceHead
from boltzformer_monai.networks.registries import register_decoder
from boltzformer_monai.networks.sampling import Randomness, ThresholdMask

SEEM = "seem"
_LARGEST_SCALE = 100.0  # of similarities, as in CLIP


class SeemLayer(BoltzFormerLayer):
    """A layer whose feed-forward block follows on the text, too."""

    def forward(self, queries: Tensor, text: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """As in the base class."""
        queries, text = self.attend(queries, text, *context)
        return self.ffn(queries), self.ffn(text)


class SeemQueries(BoltzFormerDecoder):
    """The paper's query decoder with SEEM's layers."""

    layer_type: ClassVar = SeemLayer


class FastSeemQueries(SeemQueries, FastBoltzFormerDecoder):
    """The same in the fast form."""


class QueryChoice(nn.Module):
    """Weights of the queries for a prompt, by the cosine similarity of their vectors to the prompt's.

    In evaluation the nearest query has weight 1. That has no gradient, so in training the weights are the softmax of
    the similarities times a learned scale, which begins at 1/0.07 as CLIP's.

    Args:
        dim: d.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.vector = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """Queries ``(B, P, m, d)``, vectors of prompts ``(B, P, d)`` → weights ``(B, P, m)`` with sum 1."""
        vectors = self.vector(self.norm(queries)).float()
        similarity = F.cosine_similarity(vectors, prompts[:, :, None].float(), dim=-1)
        if not self.training:
            return F.one_hot(similarity.argmax(-1), similarity.shape[-1]).to(similarity.dtype)
        return torch.softmax(similarity * self.scale.exp().clamp(max=_LARGEST_SCALE), dim=-1)


class SeemDecoder(MaskDecoder):
    """Queries, one of which is chosen, and where wanted the presence head, which SEEM has not.

    With ``layer_logits`` it gives the masks that are chosen before every layer, those of the bare queries among them.

    Args:
        query_decoder: of m queries.
        choice: weights of the queries.
        presence: as in the base class.
    """

    def __init__(self, *, query_decoder: SeemQueries, choice: QueryChoice, presence: nn.Module | None) -> None:
        super().__init__(query_decoder=query_decoder, aggregation=choice, presence=presence)

    def forward(self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None) -> Decoded:
        """Decode P prompts on each of B images; see :class:`~boltzformer_monai.networks.interfaces.Decoder`."""
        trace: list[Tensor] | None = [] if self.layer_logits and self.training else None
        features, semantic_map = image.levels, image.semantic_map
        masks, queries = self.query_decoder.decode(features, semantic_map, *text, generator=generator, trace=trace)
        prompts = prompt_vectors(text)
        weights = self.aggregation(queries, prompts)
        if isinstance(masks, Masks):
            chosen = masks.combined(weights[:, :, None])[:, :, 0]
        else:
            chosen = torch.einsum("bpm,bpmhw->bphw", weights, masks)
        logits = double(chosen)
        presence = None if self.presence is None else self.presence(queries, logits, features[-1])
        layers = None if trace is None else self._chosen_before(trace, prompts, semantic_map)
        return Decoded(logits, presence, layers=layers)

    def _chosen_before(self, trace: Sequence[Tensor], prompts: Tensor, semantic_map: SemanticMap | Tensor) -> Tensor:
        """Queries before each layer, ``(B, P, m, d)`` each, and prompts ``(B, P, d)`` → logits ``(B, P, K, h, w)``."""
        decoder = self.query_decoder
        mu = [torch.einsum("bpm,bpmd->bpd", self.aggregation(q, prompts), decoder.mask_head(q)) for q in trace]
        semantic = semantic_map if isinstance(semantic_map, SemanticMap) else SemanticMap(semantic_map)
        if self.layer_stride > 1:  # the mean of the logits
            semantic = SemanticMap(F.avg_pool2d(semantic.build().fine, self.layer_stride))
        return Masks(torch.stack(mu, dim=2), semantic, decoder.mask_bias).logits()


@register_decoder(SEEM)
def seem_decoder(config: NetworkConfig, *, queries: int = 101) -> SeemDecoder:
    """The decoder of a configuration, in the form that ``fast`` chooses.

    Args:
        config: of the network; layers, heads, hidden, threshold, level_logits, mask_bias and presence are its.
        queries: m.

    Raises:
        ConfigError: there are no queries, or the network has settings that this decoder would ignore.
    """
    ignored = ("text_prior", "pigma_channels", "pigma_correction", *(name for name in SAMPLING if name != "policy"))
    refuse_settings(config, ignored, decoder=SEEM)
    if config.policy not in ("threshold", NetworkConfig.policy):
        msg = f"the decoder {SEEM!r} attends by threshold, got the policy {config.policy!r}; leave it out"
        raise ConfigError(msg)
    check_least({"queries": queries}, decoder=SEEM)
    return SeemDecoder(
        query_decoder=(FastSeemQueries if config.fast else SeemQueries)(
            dim=config.dim,
            policy=ThresholdMask(config.threshold),
            queries=queries,
            heads=config.heads,
            hidden=config.hidden,
            layers=config.layers,
            text_prior=False,
            mask_bias=config.mask_bias,
            level_logits=config.level_logits,
        ),
        choice=QueryChoice(config.dim),
        presence=PresenceHead(config.dim) if config.presence else None,
    )
