"""The BoltzFormer decoder (Sec. 3.2): text-conditioned prior, then layers of Boltzmann attention sampling.

One image is decoded for P prompts at once: everything that depends only on the image (keys, values, the semantic map
at each level) is computed once and shared by all prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.attention import CrossAttentionBlock, FeedForwardBlock, SelfAttentionBlock
from boltzformer_monai.networks.position import sine_position_encoding
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
        self.mask_bias = None if mask_bias is None else nn.Parameter(torch.tensor(float(mask_bias)))

    def forward(
        self,
        features: Sequence[Tensor],
        semantic_map: Tensor,
        text: Tensor,
        text_valid: Tensor,
        *,
        generator: Randomness = None,
    ) -> Tensor:
        """Decode P prompts on each image.

        Args:
            features: visual features, coarse to fine, each ``(B, d, h_l, w_l)``.
            semantic_map: S, ``(B, d, h, w)``.
            text: text tokens ``(B, P, N_T, d)``.
            text_valid: ``(B, P, N_T)`` boolean, ``False`` = padding, which nobody attends to.
            generator: source of the random draws.

        Returns:
            Mask logits ``(B, P, m, h, w)``.

        Raises:
            ConfigError: the number of levels is not the one the decoder was built for.
        """
        if len(features) != self.levels:
            msg = f"the decoder was built for {self.levels} feature levels and got {len(features)}"
            raise ConfigError(msg)
        batch, prompts = text.shape[:2]
        memory = [self._memory(feature, level) for level, feature in enumerate(features)]
        maps = [_downsample(semantic_map.detach(), feature.shape[-2:]).flatten(2) for feature in features]

        text, valid = text.flatten(0, 1), text_valid.flatten(0, 1)
        prompt = text.detach()  # as a position it passes no gradient [published code]
        queries = self.query_feat.weight.expand(batch * prompts, -1, -1)
        count = queries.shape[1]
        valid = torch.cat((valid.new_ones(batch * prompts, count), valid), dim=1)
        query_position = self.query_embed.weight
        if self.text_prior:
            queries, text = self._exchange(self.prior_inter, queries, text, prompt, valid)
            queries = self.prior_ffn(queries)

        for index, layer in enumerate(cast(Iterable[BoltzFormerLayer], self.layers)):
            level = index % self.levels
            key, value = memory[level]
            attend = self._attention_set(queries.view(batch, prompts, count, -1), maps[level], index, generator)
            # All prompts' queries attend to one copy of the image: (B, P·m, d) against (B, N, d).
            folded = queries.reshape(batch, prompts * count, -1)
            folded = layer.cross(folded, query_position.repeat(prompts, 1), key, value, attend)
            queries = folded.reshape(batch * prompts, count, -1)
            queries, text = self._exchange(layer.inter, queries, text, prompt, valid)
            queries = layer.ffn(queries)

        return self.mask_logits(queries.view(batch, prompts, count, -1), semantic_map)

    def mask_logits(self, queries: Tensor, semantic_map: Tensor) -> Tensor:
        """μᵀS (Eq. 1 before the sigmoid): queries ``(B, P, m, d)``, S ``(B, d, …)`` → ``(B, P, m, …)``."""
        mu = self.mask_head(queries)
        logits = torch.matmul(mu.flatten(1, 2), semantic_map.flatten(2))
        logits = logits if self.mask_bias is None else logits + self.mask_bias
        return logits.view(*mu.shape[:3], *semantic_map.shape[2:])

    def _memory(self, feature: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``(B, N, d)`` of one level: the level embedding is in both, the position in the keys only."""
        dim, height, width = feature.shape[1:]
        value = feature.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        position = sine_position_encoding(height, width, dim, device=feature.device).flatten(1).T
        return value + position.to(value.dtype), value

    def _attention_set(self, queries: Tensor, level_map: Tensor, layer: int, generator: Randomness) -> Tensor:
        """Boltzmann step: queries ``(B, P, m, d)``, S at the level ``(B, d, N)`` → set ``(B, [h,] P·m, N)``."""
        with torch.no_grad():
            logits = self.mask_logits(queries, level_map)
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


def _downsample(semantic_map: Tensor, size: Sequence[int]) -> Tensor:
    """S ``(B, d, h, w)`` at a level's grid, bilinear (align_corners=False).

    Down-sampling S once commutes with the dot product, so it equals interpolating the m logit maps of every prompt
    and layer. For an even integer ratio it is the mean of the central 2×2 pixels of each cell, which slicing does
    far faster than ``interpolate``.
    """
    height, width = semantic_map.shape[-2:]
    ratio = height // size[0]
    if (height, width) != (ratio * size[0], ratio * size[1]) or ratio % 2:
        return F.interpolate(semantic_map, size=tuple(size), mode="bilinear", align_corners=False)
    first = ratio // 2 - 1
    corners = [semantic_map[..., first + i :: ratio, first + j :: ratio] for i in (0, 1) for j in (0, 1)]
    return (corners[0] + corners[1] + corners[2] + corners[3]) / 4
