"""The BoltzFormer decoder (Sec. 3.2): text-conditioned queries, then layers of Boltzmann attention sampling.

Plain tensors and ordinary attention, in the order of the paper. Shapes: B images, P prompts per image, m queries per
prompt, d channels; a level of the visual features has N patches. All prompts of an image share its features.
:class:`~boltzformer_monai.networks.fast.decoder.FastBoltzFormerDecoder` computes the same function faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.field_types import check_value
from boltzformer_monai.networks.attention import CrossAttentionBlock, FeedForwardBlock, SelfAttentionBlock
from boltzformer_monai.networks.level_logits import LevelLogits, to_level
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
    """One layer, given its attention sets: cross-attention to the sampled patches, then inter-query attention."""

    def __init__(self, *, dim: int, heads: int, hidden: int, cross: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cross = cross(dim=dim, heads=heads)
        self.inter = SelfAttentionBlock(dim=dim, heads=heads)
        self.ffn = FeedForwardBlock(dim=dim, hidden=hidden)

    def forward(
        self, queries: Tensor, text: Tensor, position: Tensor, valid: Tensor, patches: Any, attend: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            queries: ``(B, P, m, d)``.
            text: ``(B, P, N_T, d)``.
            position: positions of both, ``(B, P, m + N_T, d)``.
            valid: ``(B, P, m + N_T)`` boolean, ``False`` = padding.
            patches: keys and values of the level's patches, ``(B, N, d)`` each.
            attend: the set ``(B, [h,] P·m, N)``.

        Returns:
            The new queries and text.
        """
        queries, text = self.attend(queries, text, position, valid, patches, attend)
        return self.ffn(queries), text

    def attend(
        self, queries: Tensor, text: Tensor, position: Tensor, valid: Tensor, patches: Any, attend: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both attentions; arguments and results as in :meth:`forward`."""
        of_queries = position[:, :, : queries.shape[2]]
        attended = self.cross(queries.flatten(1, 2), of_queries.flatten(1, 2), patches, attend)
        return exchange(self.inter, attended.view_as(queries), text, position, valid)


class BoltzFormerDecoder(nn.Module):
    """Latent queries → mask logits at the resolution of the semantic map.

    Args:
        dim: d, channels of visual features, semantic map and text (paper sizes: 512).
        policy: the attention-set policy (:mod:`boltzformer_monai.networks.sampling`); can be replaced at any time.
        queries: m (paper: 10 suffice; published configuration: 101).
        heads: attention heads h (8).
        hidden: width of the feed-forward layers (2048).
        layers: number of layers; they cycle through the levels, coarse to fine (9 = three cycles of three levels).
        levels: number of visual feature levels (3).
        text_prior: condition the queries on the text before the first layer (Eq. 4).
        mask_bias: initial value of a learned scalar added to all mask logits; ``None`` (paper) adds none. A negative
            value helps small objects when training from random weights.
        level_logits: how the sampling takes mask logits to a level: ``"bilinear"`` (paper), or ``"max"``, the largest
            of each patch, which keeps objects smaller than a patch.

    Attributes:
        checkpointing: recompute each layer in the backward pass (gradient checkpointing): less memory, more time.

    Raises:
        ConfigError: queries, layers or levels below 1, or another kind of level logits.
    """

    cross_attention: ClassVar[Callable[..., nn.Module]] = CrossAttentionBlock
    layer_type: ClassVar[type[BoltzFormerLayer]] = BoltzFormerLayer

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
        level_logits: LevelLogits = "bilinear",
    ) -> None:
        super().__init__()
        for name, value in (("queries", queries), ("layers", layers), ("levels", levels)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        check_value("level_logits", level_logits, LevelLogits)
        self.level_logits: LevelLogits = level_logits
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
        self.layers = nn.ModuleList(
            self.layer_type(dim=dim, heads=heads, hidden=hidden, cross=type(self).cross_attention)
            for _ in range(layers)
        )
        self.mask_head = MaskHead(dim)
        self.checkpointing = False
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
        """Arguments as for :meth:`decode`, mask logits ``(B, P, m, h, w)``."""
        masks, _ = self.decode(features, semantic_map, text, text_valid, generator=generator)
        return masks

    def decode(
        self,
        features: Sequence[Tensor],
        semantic_map: Tensor,
        text: Tensor,
        text_valid: Tensor,
        *,
        generator: Randomness = None,
        trace: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode P prompts on each image.

        Args:
            features: visual features V, coarse to fine, each ``(B, d, h_l, w_l)``.
            semantic_map: S ``(B, d, h, w)``.
            text: text tokens T ``(B, P, N_T, d)``.
            text_valid: ``(B, P, N_T)`` boolean, ``False`` = padding.
            generator: source of the random draws.
            trace: where given, the queries ``(B, P, m, d)`` before every layer are appended to it.

        Returns:
            Mask logits ``(B, P, m, h, w)``, and the final queries ``(B, P, m, d)``.

        Raises:
            ConfigError: the decoder was built for another number of levels.
        """
        self.check_levels(features)
        position, valid = self.context(text, text_valid)
        patches = [self.patches(feature, level) for level, feature in enumerate(features)]
        queries, text = self.condition(text, position, valid)
        for index, layer in enumerate(self.layers):
            level = index % self.levels
            if trace is not None:
                trace.append(queries)
            attend = self.attention_set(queries, semantic_map, features[level].shape[-2:], index, generator)
            queries, text = self.run_layer(layer, queries, text, position, valid, patches[level], attend)
        return self.mask_logits(queries, semantic_map), queries

    def mask_logits(self, queries: Tensor, semantic_map: Tensor) -> Tensor:
        """μᵀS with μ = MLP(q), the mask before the sigmoid (Eq. 1 and 3): ``(B, P, m, d)`` → ``(B, P, m, h, w)``."""
        logits = torch.einsum("bpmd,bdhw->bpmhw", self.mask_head(queries), semantic_map)
        return logits if self.mask_bias is None else logits + self.mask_bias

    def layer_masks(self, trace: Sequence[Tensor], semantic_map: Tensor, *, stride: int = 1) -> Tensor:
        """Mask logits of the queries between the layers, for their supervision.

        Args:
            trace: queries before every layer, of :meth:`decode`; at least two layers'.
            semantic_map: S ``(B, d, h, w)``.
            stride: the logits are averaged over squares of so many pixels; S is, which is the same and cheaper.

        Returns:
            ``(B, P, (layers − 1)·m, h/stride, w/stride)``: all but those before the first layer, which saw no patch.
        """
        if stride > 1:
            semantic_map = F.avg_pool2d(semantic_map, stride)
        return self.mask_logits(torch.cat(tuple(trace[1:]), dim=2), semantic_map)

    def condition(self, text: Tensor, position: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Q0 = FFN(LayerNorm([Q, T] + SelfAttn[Q, T])) (Eq. 4): text ``(B, P, N_T, d)`` → queries and text."""
        queries = self.query_feat.weight.expand(*text.shape[:2], -1, -1)
        if not self.text_prior:
            return queries, text
        queries, text = exchange(self.prior_inter, queries, text, position, valid)
        return self.prior_ffn(queries), text

    @torch.no_grad()
    def attention_set(
        self, queries: Tensor, semantic_map: Tensor, size: torch.Size, layer: int, generator: Randomness
    ) -> Tensor:
        """Sample patches of a level of size ``(h_l, w_l)`` (Eq. 5): queries ``(B, P, m, d)`` → ``(B, [h,] P·m, N)``.

        The logits are taken to the level, not the probabilities [published code]. No gradient flows through the
        sampling.
        """
        logits = self.mask_logits(queries, semantic_map).flatten(1, 2)
        logits = to_level(logits, (size[0], size[1]), self.level_logits)
        return self.draw(logits.flatten(2).unflatten(1, queries.shape[1:3]), layer, generator)

    @torch.no_grad()
    def draw(self, logits: Tensor, layer: int, generator: Randomness) -> Tensor:
        """The policy's sets for mask logits at a level: ``(B, P, m, N)`` → ``(B, [h,] P·m, N)`` boolean."""
        if self.policy.per_head:
            logits = logits[:, :, None].expand(-1, -1, self.heads, -1, -1)
        attend = self.policy(logits, layer, generator)
        # A query whose set is empty attends to everything [published code].
        attend = attend | ~attend.any(-1, keepdim=True)
        return attend.transpose(1, 2).flatten(2, 3) if self.policy.per_head else attend.flatten(1, 2)

    def patches(self, feature: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``(B, N, d)`` of a level; both include its embedding, the keys also the position."""
        height, width = feature.shape[-2:]
        position = sine_position_encoding(height, width, feature.shape[1], device=feature.device)
        value = feature.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        return value + position.flatten(1).T, value

    def context(self, text: Tensor, text_valid: Tensor) -> tuple[Tensor, Tensor]:
        """Positions ``(B, P, m + N_T, d)`` and validity ``(B, P, m + N_T)`` of queries and text, for all layers.

        The encoded prompt is the position of its own tokens, without gradient [published code].
        """
        embedding = self.query_embed.weight.expand(*text.shape[:2], -1, -1)
        all_queries = text_valid.new_ones(embedding.shape[:3])
        return torch.cat((embedding, text.detach()), dim=2), torch.cat((all_queries, text_valid), dim=2)

    def run_layer(self, layer: nn.Module, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Run a layer, with gradient checkpointing if set; the attention sets are fixed, so recomputing reuses them."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
        return layer(*arguments)

    def check_levels(self, features: Sequence[Tensor]) -> None:
        """Raises :class:`~boltzformer_monai.errors.ConfigError` for another number of levels than configured."""
        if len(features) != self.levels:
            raise ConfigError(f"the decoder was built for {self.levels} feature levels and got {len(features)}")


def exchange(block: nn.Module, queries: Tensor, text: Tensor, position: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Inter-query attention over [Q, T] of each prompt (Eq. 4 and 6); shapes as in :class:`BoltzFormerLayer`."""
    tokens = torch.cat((queries, text), dim=2)
    mixed = block(*(x.flatten(0, 1) for x in (tokens, position, valid))).view_as(tokens)
    return mixed[:, :, : queries.shape[2]], mixed[:, :, queries.shape[2] :]
