"""BiomedParse v2's decoder: the paper's, with another aggregation and a classifier that says whether the object exists.

The queries are refined as in :mod:`~boltzformer_monai.networks.decoder`. What differs:

- the first m − e queries are averaged to the mask, the last e, the edge queries, to the mask's outline; both stay at
  the resolution of the semantic map, stride 4, without PiGMA;
- a classifier reads what the queries and the text have become after the self-attention of every layer;
- the padding of shorter prompts can be attended to, as zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.attention import CrossAttentionBlock, FeedForwardBlock
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.decoder import BoltzFormerDecoder, BoltzFormerLayer
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from boltzformer_monai.networks.fast.semantic_map import Masks
from boltzformer_monai.networks.interfaces import Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.networks.mask_decoder import MaskDecoder, attention_policy
from boltzformer_monai.networks.registries import register_decoder
from boltzformer_monai.networks.sampling import Randomness

BIOMEDPARSE = "biomedparse"


class ObservedLayer(BoltzFormerLayer):
    """A layer that also returns [Q, T] ``(B, P, m + N_T, d)`` after its self-attention, without gradient."""

    def forward(self, queries: Tensor, text: Tensor, *context: Any) -> Any:
        """As in the base class, and [Q, T]."""
        queries, text = self.attend(queries, text, *context)
        return self.ffn(queries), text, torch.cat((queries, text), dim=2).detach()


class ObservedDecoder(BoltzFormerDecoder):
    """The paper's decoder, observed.

    Attributes:
        tokens: where :meth:`observed` collects what the layers return.
    """

    layer_type: ClassVar = ObservedLayer
    tokens: list[Tensor] | None = None

    def observed(self) -> ObservedDecoder:
        """The same decoder, same weights, that collects [Q, T] of each layer into ``tokens``: one for each call."""
        decoder = copy.copy(self)
        decoder.tokens = []
        return decoder

    def run_layer(self, layer: nn.Module, *arguments: Any) -> tuple[Tensor, Tensor]:
        """As in the base class."""
        queries, text, tokens = super().run_layer(layer, *arguments)  # type: ignore[misc]
        if self.tokens is not None:
            self.tokens.append(tokens)
        return queries, text


class FastObservedDecoder(ObservedDecoder, FastBoltzFormerDecoder):
    """The fast decoder, observed."""


class ClassifierLayer(nn.Module):
    """``c ← LayerNorm(c + MHA(c, [Q, T] + E, [Q, T]))``, then a feed-forward block."""

    def __init__(self, *, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.cross = CrossAttentionBlock(dim=dim, heads=heads)
        self.ffn = FeedForwardBlock(dim=dim, hidden=hidden)

    def forward(self, query: Tensor, tokens: Tensor, position: Tensor, valid: Tensor) -> Tensor:
        """Query ``(N, 1, d)``, tokens and their position ``(N, L, d)``, valid ones ``(N, L)`` → ``(N, 1, d)``."""
        nowhere = torch.zeros_like(query)
        return self.ffn(self.cross(query, nowhere, (tokens + position, tokens), valid))


class ExistenceClassifier(nn.Module):
    """One query for each prompt that reads [Q, T] after every layer → a logit that the object is in the slice.

    No gradient reaches the queries and the text: its loss trains the classifier alone.

    Args:
        dim: d.
        heads: attention heads.
        hidden: width of the feed-forward layers.
        layers: those of the decoder.
    """

    def __init__(self, *, dim: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.query = nn.Embedding(1, dim)
        self.layers = nn.ModuleList(ClassifierLayer(dim=dim, heads=heads, hidden=hidden) for _ in range(layers))
        self.head = nn.Linear(dim, 1)

    def forward(self, tokens: Sequence[Tensor], position: Tensor, valid: Tensor) -> Tensor:
        """Classify.

        Args:
            tokens: [Q, T] of each layer, ``(B, P, m + N_T, d)``.
            position: their position, of the same shape.
            valid: which of them to attend to, ``(B, P, m + N_T)``.

        Returns:
            Logits ``(B, P)``.
        """
        batch, prompts = valid.shape[:2]
        query = self.query.weight.expand(batch * prompts, -1, -1)
        position, valid = position.detach().flatten(0, 1), valid.flatten(0, 1)
        for layer, seen in zip(self.layers, tokens, strict=True):
            query = layer(query, seen.flatten(0, 1), position, valid)
        return self.head(query).view(batch, prompts)


class QueryMeans(nn.Module):
    """Mask logits of m queries → their mean over the first m − e and, if e > 0, over the last e (the edge queries)."""

    weights: Tensor

    def __init__(self, queries: int, edge_queries: int) -> None:
        super().__init__()
        if not 0 <= edge_queries < queries:
            raise ConfigError(f"edge_queries must leave some of the {queries} queries to the mask, got {edge_queries}")
        of_masks = queries - edge_queries
        rows = [[1 / of_masks] * of_masks + [0.0] * edge_queries]
        if edge_queries:
            rows.append([0.0] * of_masks + [1 / edge_queries] * edge_queries)
        self.register_buffer("weights", torch.tensor(rows), persistent=False)

    def forward(self, masks: Masks | Tensor) -> Tensor:
        """``(B, P, m, h, w)`` → ``(B, P, 1 or 2, h, w)``; masks that are not computed yet are combined before."""
        if isinstance(masks, Masks):
            return masks.combined(self.weights)
        return torch.einsum("km,bpmhw->bpkhw", self.weights.to(masks.dtype), masks)


class BiomedParseDecoder(MaskDecoder):
    """Queries, their masks and outlines at stride 4, and whether the object exists.

    Args:
        query_decoder: an observed decoder of m queries.
        aggregation: masks of the queries → mask, or mask and outline.
        presence: the existence classifier; ``None`` has none.
        attend_padding: show each prompt the padding of the shorter ones, zeros, as BiomedParse does in training and
            inference. A prompt's mask then depends on the longest prompt beside it.
    """

    def __init__(
        self,
        *,
        query_decoder: ObservedDecoder,
        aggregation: QueryMeans,
        presence: ExistenceClassifier | None,
        attend_padding: bool,
    ) -> None:
        super().__init__(query_decoder=query_decoder, aggregation=aggregation, presence=presence)
        self.attend_padding = attend_padding

    def forward(self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None) -> Decoded:
        """Decode P prompts on each of B images: logits, and outlines, ``(B, P, H/4, W/4)``."""
        text = self._visible(text)
        decoder = cast(ObservedDecoder, self.query_decoder).observed()
        masks, _, layers = self.decode(decoder, image, text, generator)
        logits = self.aggregation(masks)
        presence = None if self.presence is None else self.presence(decoder.tokens, *decoder.context(*text))
        if layers is not None:  # those of the edge queries are no masks
            weights = cast(Tensor, self.aggregation.weights)
            queries, of_masks = weights.shape[1], int((weights[0] > 0).sum())
            layers = layers.unflatten(2, (-1, queries))[:, :, :, :of_masks].flatten(2, 3)
        return Decoded(logits[:, :, 0], presence, logits[:, :, 1] if logits.shape[2] > 1 else None, layers)

    def attention_sets(
        self, image: ImageFeatures, text: TextFeatures, *, generator: Randomness = None, drawn: bool = False
    ) -> list[Tensor]:
        """As in the base class."""
        return super().attention_sets(image, self._visible(text), generator=generator, drawn=drawn)

    def _visible(self, text: TextFeatures) -> TextFeatures:
        """The padding is zero already: attending to it takes no more than calling it valid."""
        return TextFeatures(text.tokens, torch.ones_like(text.valid)) if self.attend_padding else text


@register_decoder(BIOMEDPARSE)
def biomedparse_decoder(
    config: NetworkConfig, *, edge_queries: int = 0, attend_padding: bool = False
) -> BiomedParseDecoder:
    """The decoder of a configuration, in the form that ``fast`` chooses; ``presence`` gives it its classifier.

    Args:
        config: of the network.
        edge_queries: how many of the queries, the last ones, make the outline.
        attend_padding: see :class:`BiomedParseDecoder`.
    """
    sizes = {"dim": config.dim, "heads": config.heads, "hidden": config.hidden, "layers": config.layers}
    return BiomedParseDecoder(
        query_decoder=(FastObservedDecoder if config.fast else ObservedDecoder)(
            **sizes,
            policy=attention_policy(config),
            queries=config.queries,
            text_prior=config.text_prior,
            mask_bias=config.mask_bias,
            level_logits=config.level_logits,
        ),
        aggregation=QueryMeans(config.queries, edge_queries),
        presence=ExistenceClassifier(**sizes) if config.presence else None,
        attend_padding=attend_padding,
    )
