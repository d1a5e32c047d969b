"""The decoder with absorbed projections and a lazy semantic map: the same function, faster.

The steps are those of :class:`~boltzformer_monai.networks.decoder.BoltzFormerDecoder`. They differ in the attention to
patches (:mod:`~boltzformer_monai.networks.fast.cross_attention`) and in the products with the semantic map
(:mod:`~boltzformer_monai.networks.fast.semantic_map`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from boltzformer_monai.networks.decoder import BoltzFormerDecoder
from boltzformer_monai.networks.fast.cross_attention import FastCrossAttentionBlock, LevelFeatures, projects
from boltzformer_monai.networks.fast.pigma import MOST_COMBINED
from boltzformer_monai.networks.fast.semantic_map import LargestMap, LevelMap, Masks, SemanticMap, Size
from boltzformer_monai.networks.sampling import Randomness


class FastBoltzFormerDecoder(BoltzFormerDecoder):
    """Parameters and settings as in the base class; S may be a tensor or a lazy ``SemanticMap``."""

    cross_attention: ClassVar = FastCrossAttentionBlock

    def forward(
        self,
        features: Sequence[Tensor],
        semantic_map: SemanticMap | Tensor,
        text: Tensor,
        text_valid: Tensor,
        *,
        generator: Randomness = None,
    ) -> Tensor:
        """Arguments as for :meth:`decode`, mask logits ``(B, P, m, h, w)``."""
        masks, _ = self.decode(features, semantic_map, text, text_valid, generator=generator)
        return masks.logits()

    def decode(  # type: ignore[override]
        self,
        features: Sequence[Tensor],
        semantic_map: SemanticMap | Tensor,
        text: Tensor,
        text_valid: Tensor,
        *,
        generator: Randomness = None,
        trace: list[Tensor] | None = None,
    ) -> tuple[Masks, Tensor]:
        """As in the base class, with lazy masks: the aggregation may need fewer than m."""
        self.check_levels(features)
        prompts, count = text.shape[1], self.query_feat.num_embeddings
        position, valid = self.context(text, text_valid)
        patches = [LevelFeatures.of(f, e) for f, e in zip(features, self.level_embed.weight, strict=True)]
        if projects(prompts * count, dim=text.shape[-1], heads=self.heads):
            patches = [level.for_projection() for level in patches]
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        visits = Counter(sizes[index % self.levels] for index in range(len(self.layers)))
        semantic = semantic_map if isinstance(semantic_map, SemanticMap) else SemanticMap(semantic_map)
        maps: Mapping[Size, LevelMap | LargestMap]
        full_size = prompts * min(count, MOST_COMBINED)
        if self.level_logits == "max":  # every layer's masks, too
            semantic = semantic.suited(full_size + len(self.layers) * prompts * count, {})
            maps = semantic.largest_at_levels(visits)
        else:
            semantic = semantic.suited(full_size, visits)
            maps = semantic.at_levels(visits, queries=prompts * count)

        queries, text = self.condition(text, position, valid)
        for index, layer in enumerate(self.layers):
            level = index % self.levels
            if trace is not None:
                trace.append(queries)
            attend = self.draw(self._level_logits(queries, maps[sizes[level]]), index, generator)
            queries, text = self.run_layer(layer, queries, text, position, valid, patches[level], attend)
        return Masks(self.mask_head(queries), semantic, self.mask_bias), queries

    def mask_logits(self, queries: Tensor, semantic_map: Tensor) -> Tensor:
        """As in the base class."""
        return Masks(self.mask_head(queries), SemanticMap(semantic_map), self.mask_bias).logits()

    @torch.no_grad()
    def _level_logits(self, queries: Tensor, level_map: LevelMap | LargestMap) -> Tensor:
        """Mask logits at a level: ``(B, P, m, d)`` → ``(B, P, m, N)``."""
        logits = level_map.logits(self.mask_head(queries).flatten(1, 2)).unflatten(1, queries.shape[1:3])
        return logits if self.mask_bias is None else logits + self.mask_bias
