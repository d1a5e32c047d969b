"""The BoltzFormer decoder (Sec. 3.2): text-conditioned prior, then layers of Boltzmann attention sampling.

One image is decoded for P prompts at once: all prompts' queries attend to one copy of the image, and what depends on
the image alone is computed once. What makes it cheap lies in
:mod:`~boltzformer_monai.networks.fast.cross_attention` and :mod:`~boltzformer_monai.networks.fast.semantic_map`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.attention import FeedForwardBlock, SelfAttentionBlock
from boltzformer_monai.networks.fast.cross_attention import CrossAttentionBlock, LevelFeatures, projects
from boltzformer_monai.networks.fast.level_map import LevelMap
from boltzformer_monai.networks.fast.masks import MOST_COMBINED, Masks
from boltzformer_monai.networks.fast.semantic_map import SemanticMap
from boltzformer_monai.networks.sampling import AttentionSetPolicy, Randomness


class MaskHead(nn.Module):
    """μ = MLP(LayerNorm(q)) (Eq. 3): three linear layers with ReLU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, queries: Tensor) -> Tensor:
        """``(…, d)`` → ``(…, d)``."""
        x = self.norm(queries)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class BoltzFormerLayer(nn.Module):
    """Steps 2 and 3 of one layer: attend to the sampled patches, then exchange with the other queries and the text."""

    def __init__(self, *, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.cross = CrossAttentionBlock(dim=dim, heads=heads)
        self.inter = SelfAttentionBlock(dim=dim, heads=heads)
        self.ffn = FeedForwardBlock(dim=dim, hidden=hidden)


class BoltzFormerDecoder(nn.Module):
    """Latent queries → mask logits at the resolution of the semantic map.

    Args:
        dim: d, channels of visual features, semantic map and text (paper sizes: 512).
        policy: the attention-set policy (:mod:`boltzformer_monai.networks.sampling`); may be replaced at any time.
        queries: m (paper: 10 suffice; published configuration: 101).
        heads: attention heads (8).
        hidden: width of the feed-forward layers (2048).
        layers: number of layers; the levels are visited in turn, coarse to fine (9 = three times three levels).
        levels: number of visual feature levels (3).
        text_prior: condition the queries on the text before the first layer (Eq. 4).
        mask_bias: start value of a learned scalar added to all mask logits; ``None`` (paper) has none. Small objects
            train faster from random weights when the background need not be learned first.

    Attributes:
        checkpointing: set it to compute every layer again in the backward pass instead of keeping what it needs: less
            memory, more time.
    """

    def __init__(
        self,
        *,
        dim: int,
        policy: AttentionSetPolicy,
        queries: int = 10,
        heads: int = 8,
        hidden: int = 2048,
        layers: int = 9,
        levels: int = 3,
        text_prior: bool = True,
        mask_bias: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("queries", queries), ("layers", layers), ("levels", levels)):
            if value < 1:
                msg = f"{name} must be at least 1, got {value}"
                raise ConfigError(msg)
        self.policy = policy
        self.heads = heads
        self.levels = levels
        self.query_feat = nn.Embedding(queries, dim)
        self.query_embed = nn.Embedding(queries, dim)
        self.level_embed = nn.Embedding(levels, dim)
        self.text_prior = text_prior
        if text_prior:
            self.prior_inter = SelfAttentionBlock(dim=dim, heads=heads)
            self.prior_ffn = FeedForwardBlock(dim=dim, hidden=hidden)
        self.layers = nn.ModuleList(BoltzFormerLayer(dim=dim, heads=heads, hidden=hidden) for _ in range(layers))
        self.mask_head = MaskHead(dim)
        self.checkpointing = False
        self.mask_bias = None if mask_bias is None else nn.Parameter(torch.tensor(float(mask_bias)))

    def forward(
        self,
        features: Sequence[Tensor],
        semantic_map: SemanticMap | Tensor,
        text: Tensor,
        text_valid: Tensor,
        *,
        generator: Randomness = None,
    ) -> Tensor:
        """Decode P prompts on each image: arguments as for :meth:`masks`, mask logits ``(B, P, m, h, w)``."""
        return self.masks(features, semantic_map, text, text_valid, generator=generator).logits()

    def masks(
        self,
        features: Sequence[Tensor],
        semantic_map: SemanticMap | Tensor,
        text: Tensor,
        text_valid: Tensor,
        *,
        generator: Randomness = None,
    ) -> Masks:
        """Decode P prompts on each image, up to the vectors of the masks.

        Args:
            features: visual features, coarse to fine, each ``(B, d, h_l, w_l)``.
            semantic_map: S ``(B, d, h, w)``, ready or not.
            text: text tokens ``(B, P, N_T, d)``.
            text_valid: ``(B, P, N_T)`` boolean, ``False`` = padding, which nobody attends to.
            generator: source of the random draws.

        Returns:
            The masks, of which an aggregation may not need every one.

        Raises:
            ConfigError: the number of levels is not the one the decoder was built for.
        """
        if len(features) != self.levels:
            msg = f"the decoder was built for {self.levels} feature levels and got {len(features)}"
            raise ConfigError(msg)
        batch, prompts = text.shape[:2]
        count = self.query_feat.num_embeddings
        levels = [LevelFeatures.of(f, e) for f, e in zip(features, self.level_embed.weight, strict=True)]
        if projects(prompts * count, dim=text.shape[-1], heads=self.heads):
            levels = [level.for_projection() for level in levels]
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        semantic = semantic_map if isinstance(semantic_map, SemanticMap) else SemanticMap(semantic_map)
        visited = Counter(sizes[index % self.levels] for index in range(len(self.layers)))
        semantic = semantic.suited(prompts * min(count, MOST_COMBINED), visited)
        maps = semantic.at_levels(visited, queries=prompts * count)

        text, valid = text.flatten(0, 1), text_valid.flatten(0, 1)
        prompt = text.detach()  # as a position it passes no gradient [published code]
        queries = self.query_feat.weight.expand(batch * prompts, -1, -1)
        valid = torch.cat((valid.new_ones(batch * prompts, count), valid), dim=1)
        if self.text_prior:
            queries, text = self._exchange(self.prior_inter, queries, text, prompt, valid)
            queries = self.prior_ffn(queries)

        for index, layer in enumerate(cast(Iterable[BoltzFormerLayer], self.layers)):
            level = index % self.levels
            # Outside of the checkpoint: the sets pass no gradient and must not be drawn twice.
            attend = self._attention_set(queries.view(batch, prompts, count, -1), maps[sizes[level]], index, generator)
            step = partial(self._layer, layer, batch)
            if self.checkpointing and torch.is_grad_enabled():
                queries, text = checkpoint(
                    step,
                    queries,
                    text,
                    prompt,
                    valid,
                    levels[level],
                    attend,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                queries, text = step(queries, text, prompt, valid, levels[level], attend)

        queries = queries.view(batch, prompts, count, -1)
        return Masks(self.mask_head(queries), semantic, queries=queries, bias=self.mask_bias)

    def _layer(
        self,
        layer: BoltzFormerLayer,
        batch: int,
        queries: Tensor,
        text: Tensor,
        prompt: Tensor,
        valid: Tensor,
        level: LevelFeatures,
        attend: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Steps 2 and 3 of a layer: queries ``(B·P, m, d)``, text ``(B·P, N_T, d)`` → the same."""
        prompts = len(queries) // batch
        # All prompts' queries attend to one copy of the image: (B, P·m, d) against N patches.
        folded = queries.reshape(batch, -1, queries.shape[-1])
        folded = layer.cross(folded, self.query_embed.weight.repeat(prompts, 1), level, attend)
        queries, text = self._exchange(layer.inter, folded.view_as(queries), text, prompt, valid)
        return layer.ffn(queries), text

    def _attention_set(self, queries: Tensor, level_map: LevelMap, layer: int, generator: Randomness) -> Tensor:
        """Boltzmann step: queries ``(B, P, m, d)`` at the layer's level → set ``(B, [h,] P·m, N)``."""
        with torch.no_grad():
            logits = level_map.logits(self.mask_head(queries).flatten(1, 2)).unflatten(1, queries.shape[1:3])
            if self.mask_bias is not None:
                logits = logits + self.mask_bias
            if self.policy.per_head:
                logits = logits[:, :, None].expand(-1, -1, self.heads, -1, -1)
            attend = self.policy(logits, layer, generator)
            # A query whose set is empty attends to everything [published code].
            attend = attend | ~attend.any(-1, keepdim=True)
            if self.policy.per_head:
                return attend.transpose(1, 2).flatten(2, 3)
            return attend.flatten(1, 2)

    def _exchange(
        self, block: nn.Module, queries: Tensor, text: Tensor, prompt: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Self-attention over [Q, T]; the encoded prompt is the text's position in every layer [published code]."""
        count = queries.shape[1]
        position = torch.cat((self.query_embed.weight.expand(len(queries), -1, -1).to(text.dtype), prompt), dim=1)
        mixed = block(torch.cat((queries.to(text.dtype), text), dim=1), position, valid)
        return mixed[:, :count], mixed[:, count:]
