"""The dense baseline: BoltzFormer after its semantic map as the equations say it, attention masked over all patches.

Written from the paper, with the weights of our modules, so that both compute the same function. What it pays for is
what published code of this family pays for: S built at full size, mask logits at full size in every layer and these
interpolated to the level, every patch projected to a key and a value in every layer, one prompt at a time.

Attention is PyTorch's own multi-head attention with a boolean mask, called as ``nn.MultiheadAttention`` calls it and as
published code of this family does. ``DenseDecoder.blockwise`` computes the same with ``scaled_dot_product_attention``,
whose blockwise kernel keeps no attention map: the strongest dense form we know on CPUs, for comparison.

It is no straw man otherwise. Nothing that is never used is computed: positions are cached, keys and values before
projection are made once per level, no gradient goes through the sampling, and no set is drawn after the last layer.
Patches lie in memory as the projections want them, ``(B, N, d)``, faster than projecting the transposed features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.attention import (
    CrossAttentionBlock,
    FeedForwardBlock,
    MultiHeadAttention,
    SelfAttentionBlock,
)
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.decoder import BoltzFormerDecoder, BoltzFormerLayer
from boltzformer_monai.networks.mask_decoder import MaskDecoder
from boltzformer_monai.networks.pigma import PiGMA
from boltzformer_monai.networks.sampling import CounterNoise, Randomness
from boltzformer_monai.precision import autocast


class Memory(NamedTuple):
    """Keys and values of one level before projection, ``(B, N, d)``, and the level's size."""

    key: Tensor
    value: Tensor
    size: tuple[int, int]


class DenseDecoder(nn.Module):
    """The decoder of Sec. 3.2 over all patches, one prompt an image.

    Args:
        decoder: whose weights and policy are used; it is shared, so gradients arrive in its parameters.

    Attributes:
        blockwise: use ``scaled_dot_product_attention``.
    """

    def __init__(self, decoder: BoltzFormerDecoder) -> None:
        super().__init__()
        self.shared = decoder
        self.blockwise = False
        self._positions: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(
        self,
        features: Sequence[Tensor],
        semantic_map: Tensor,
        text: Tensor,
        text_valid: Tensor,
        *,
        generator: Randomness = None,
    ) -> Tensor:
        """Decode one prompt on each image.

        Args:
            features: visual features, coarse to fine, each ``(B, d, h_l, w_l)``.
            semantic_map: S ``(B, d, h, w)``.
            text: ``(B, 1, N_T, d)``.
            text_valid: ``(B, 1, N_T)`` boolean, ``False`` = padding.
            generator: source of the random draws.

        Returns:
            Mask logits ``(B, 1, m, h, w)``.

        Raises:
            ConfigError: there are several prompts.
        """
        if text.shape[1] != 1:
            raise ConfigError(f"the dense baseline decodes one prompt at a time, got {text.shape[1]}; loop over them")
        shared, tokens, valid = self.shared, text[:, 0], text_valid[:, 0]
        batch, count = len(tokens), shared.query_feat.num_embeddings
        memories = [self._memory(feature, level) for level, feature in enumerate(features)]
        queries = shared.query_feat.weight.expand(batch, -1, -1)
        query_position = shared.query_embed.weight.expand(batch, -1, -1)
        position = torch.cat((query_position, tokens.detach()), dim=1)
        visible = torch.cat((valid.new_ones(batch, count), valid), dim=1)[:, None, None]

        if shared.text_prior:
            queries, tokens = self._exchange(shared.prior_inter, queries, tokens, position, visible)
            queries = _feed_forward(shared.prior_ffn, queries)
        for index, module in enumerate(shared.layers):
            layer = cast(BoltzFormerLayer, module)
            memory = memories[index % shared.levels]
            attend = self._attention_set(queries, semantic_map, memory.size, index, generator)
            cross = cast(CrossAttentionBlock, layer.cross)
            located = queries + query_position
            attended = self._attention(cross.multihead_attn, located, memory.key, memory.value, attend)
            queries = cross.norm(queries + attended)
            queries, tokens = self._exchange(layer.inter, queries, tokens, position, visible)
            queries = _feed_forward(layer.ffn, queries)
        return self._mask_logits(queries, semantic_map)[:, None]

    def _memory(self, feature: Tensor, level: int) -> Memory:
        """The level embedding goes to keys and values, the position to the keys only."""
        height, width = feature.shape[-2:]
        value = feature.flatten(2).transpose(1, 2).contiguous() + self.shared.level_embed.weight[level]
        key = value + self._position(height, width, feature.shape[1], feature.device)
        kind = feature.device.type
        if torch.is_autocast_enabled(kind):  # once here, or every projection casts them again
            key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (key, value))
        return Memory(key, value, (height, width))

    def _position(self, height: int, width: int, dim: int, device: torch.device) -> Tensor:
        """``(N, d)``, made once per size."""
        place = (height, width, device)
        if place not in self._positions:
            self._positions[place] = sine_position(height, width, dim).to(device)
        return self._positions[place]

    @torch.no_grad()
    def _attention_set(
        self, queries: Tensor, semantic_map: Tensor, size: tuple[int, int], layer: int, generator: Randomness
    ) -> Tensor:
        """The set ``(B, 1 or heads, m, N)`` from the mask logits at full size, interpolated to the level."""
        policy = self.shared.policy
        full = self._mask_logits(queries, semantic_map)
        logits = F.interpolate(full, size=size, mode="bilinear", align_corners=False).flatten(2)[:, None]
        if policy.per_head:
            logits = logits[:, :, None].expand(-1, -1, self.shared.heads, -1, -1)
        attend = policy(logits, layer, generator)
        attend = attend | ~attend.any(-1, keepdim=True)  # a query whose set is empty attends to everything
        return attend[:, 0] if policy.per_head else attend

    def _mask_logits(self, queries: Tensor, semantic_map: Tensor) -> Tensor:
        """μᵀS with μ = MLP(q): ``(B, m, d)`` → ``(B, m, h, w)`` (Eq. 1 and 3)."""
        head = self.shared.mask_head
        first, second, third = head.layers
        mu = third(F.relu(second(F.relu(first(head.norm(queries))))))
        logits = torch.bmm(mu, semantic_map.flatten(2)).unflatten(2, semantic_map.shape[2:])
        return logits if self.shared.mask_bias is None else logits + self.shared.mask_bias

    def _exchange(
        self, block: SelfAttentionBlock, queries: Tensor, tokens: Tensor, position: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``LayerNorm([Q, T] + SelfAttn[Q, T])`` (Eq. 4 and 6)."""
        x = torch.cat((queries, tokens), dim=1)
        located = x + position
        x = block.norm(x + self._attention(block.self_attn, located, located, x, visible))
        return x[:, : queries.shape[1]], x[:, queries.shape[1] :]

    def _attention(
        self, weights: MultiHeadAttention, query: Tensor, key: Tensor, value: Tensor, attend: Tensor
    ) -> Tensor:
        """Of ``(B, Q, d)`` over ``(B, N, d)``; ``attend`` broadcasts to ``(B, heads, Q, N)``."""
        form = _blockwise_attention if self.blockwise else _multi_head_attention
        return form(weights, query, key, value, attend, self.shared.heads)


class DenseTail(nn.Module):
    """All that follows y, the map that the semantic map is convolved from: convolution, decoder and PiGMA.

    Args:
        conv: y → S.
        decoder: whose weights are used.
        aggregation: likewise.
    """

    def __init__(self, conv: nn.Conv2d, decoder: BoltzFormerDecoder, aggregation: PiGMA) -> None:
        super().__init__()
        self.conv = conv
        self.decoder = DenseDecoder(decoder)
        self.aggregation = aggregation

    def forward(
        self,
        fine: Tensor,
        features: Sequence[Tensor],
        text: Tensor,
        text_valid: Tensor,
        image: Tensor,
        *,
        generator: Randomness = None,
    ) -> Tensor:
        """y ``(B, d, h, w)``, the decoder's inputs and the image ``(B, C, H, W)`` → mask logits ``(B, 1, 2h, 2w)``."""
        semantic_map = F.conv2d(fine, self.conv.weight, self.conv.bias, padding=1)
        masks = self.decoder(features, semantic_map, text, text_valid, generator=generator)
        return two_convolutions(self.aggregation, masks[:, 0], image)


class DenseNetwork(nn.Module):
    """A whole network that starts anew for every prompt, encoding included; see :func:`dense_network`."""

    def __init__(self, network: BoltzFormer) -> None:
        super().__init__()
        self.network = network
        decoder = cast(MaskDecoder, network.decoder)
        self.tail = DenseTail(
            cast(nn.Conv2d, network.pixel_decoder.semantic_map),
            decoder.query_decoder,
            cast(PiGMA, decoder.aggregation),
        )

    def forward(self, image: Tensor, tokens: Tensor, *, generator: Randomness = None) -> Tensor:
        """Image ``(B, C, H, W)`` in 0–1, tokens ``(B, P, N_T)`` → mask logits ``(B, P, H/2, W/2)``: P full passes."""
        if generator is None and not self.training:
            generator = CounterNoise(self.network.seed)
        return torch.cat([self._one_prompt(image, one, generator) for one in tokens.split(1, dim=1)], dim=1)

    def _one_prompt(self, image: Tensor, tokens: Tensor, generator: Randomness) -> Tensor:
        network = self.network
        normalised = (image - network.mean) / network.std
        with autocast(network.precision, image.device):
            features, semantic_map = network.pixel_decoder(network.backbone(normalised))
            text, valid = network.text_encoder(tokens)
            return self.tail(semantic_map.fine, features, text, valid, normalised, generator=generator).float()


def dense_network(network: BoltzFormer) -> DenseNetwork:
    """The network as published code runs it, with the weights of ours and in its mode (training or evaluation)."""
    return DenseNetwork(network).train(network.training)


def two_convolutions(aggregation: PiGMA, masks: Tensor, image: Tensor) -> Tensor:
    """PiGMA as in Fig. 3: masks ``(B, m, h, w)`` and image → ``(B, 1, 2h, 2w)``."""
    small = (masks.shape[-2], masks.shape[-1])
    large = (2 * small[0], 2 * small[1])
    ensemble = _resize(masks.mean(1, keepdim=True), large)
    if not aggregation.correction:
        return ensemble
    maps = aggregation.deconv(torch.cat((_resize(image, small), masks), dim=1))
    return (ensemble + aggregation.conv(torch.cat((_resize(image, large), maps), dim=1))) / 2


def sine_position(height: int, width: int, dim: int) -> Tensor:
    """DETR's normalised encoding ``(N, d)``: sine and cosine in turn, rows in the first half of the channels."""
    frequency = 10000 ** (-torch.arange(0, dim // 2, 2) / (dim // 2))

    def encode(length: int) -> Tensor:
        angle = 2 * torch.pi * torch.arange(1, length + 1) / (length + 1e-6)
        phase = angle[:, None] * frequency
        return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def _multi_head_attention(
    weights: MultiHeadAttention, query: Tensor, key: Tensor, value: Tensor, attend: Tensor, heads: int
) -> Tensor:
    """As ``nn.MultiheadAttention`` does it by default: attention weights are computed, averaged and returned."""
    batch, length, dim = query.shape
    hidden = (~attend).expand(batch, heads, length, key.shape[1]).flatten(0, 1)
    query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    attended, _ = F.multi_head_attention_forward(
        query,
        key,
        value,
        dim,
        heads,
        weights.in_proj_weight,
        weights.in_proj_bias,
        None,
        None,
        False,
        0.0,
        weights.out_proj.weight,
        cast(Tensor, weights.out_proj.bias),
        attn_mask=hidden,
    )
    return attended.transpose(0, 1)


def _blockwise_attention(
    weights: MultiHeadAttention, query: Tensor, key: Tensor, value: Tensor, attend: Tensor, heads: int
) -> Tensor:
    """The same with ``scaled_dot_product_attention``."""
    parts = zip((query, key, value), weights.in_proj_weight.chunk(3), weights.in_proj_bias.chunk(3), strict=True)
    q, k, v = (F.linear(x, w, b).unflatten(-1, (heads, -1)).transpose(1, 2) for x, w, b in parts)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
    return weights.out_proj(mixed.transpose(1, 2).flatten(2))


def _feed_forward(block: FeedForwardBlock, x: Tensor) -> Tensor:
    return block.norm(x + block.linear2(F.relu(block.linear1(x))))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
