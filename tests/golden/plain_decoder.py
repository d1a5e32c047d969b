"""A plain decoder, written from the paper and the notes on the recordings, that records itself in golden form.

It shares no code with ours: PyTorch's own attention, sequence first, one head's set after the other, loops instead of
broadcasting. One prompt an image, as in the recordings.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Arrays = dict[str, np.ndarray]


class PlainDecoder(nn.Module):
    """Weights under their published names."""

    def __init__(self, *, dim: int, heads: int, hidden: int, queries: int, layers: int, levels: int) -> None:
        super().__init__()
        self.dim, self.heads, self.queries, self.count, self.levels = dim, heads, queries, layers, levels
        for name, entries in (("query_feat", queries), ("query_embed", queries), ("level_embed", levels)):
            self.add_module(name, nn.Embedding(entries, dim))

        def attention(kind: str) -> nn.ModuleDict:
            return nn.ModuleDict({kind: nn.MultiheadAttention(dim, heads), "norm": nn.LayerNorm(dim)})

        def feed_forward() -> nn.ModuleDict:
            linear = {"linear1": nn.Linear(dim, hidden), "linear2": nn.Linear(hidden, dim)}
            return nn.ModuleDict({**linear, "norm": nn.LayerNorm(dim)})

        self.initial_self_attention_layer = attention("self_attn")
        self.initial_ffn_layer = feed_forward()
        self.transformer_cross_attention_layers = nn.ModuleList(attention("multihead_attn") for _ in range(layers))
        self.transformer_self_attention_layers = nn.ModuleList(attention("self_attn") for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(feed_forward() for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.mask_embed = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))})

    def run(self, inputs: dict[str, Tensor], config: tuple[float, bool, float, float], out: Arrays) -> Tensor:
        """Decode; everything that a recording holds goes into ``out``."""
        memory = [inputs[f"x{level}"] for level in range(self.levels)]
        semantic_map, text = inputs["mask_features"], inputs["text"]
        batch = len(semantic_map)
        position = torch.cat((self.query_embed.weight[:, None].expand(-1, batch, -1), text.detach()))
        x = torch.cat((self.query_feat.weight[:, None].expand(-1, batch, -1), text))
        x = self._self_attention(self.initial_self_attention_layer, x, position)
        out["init/self"] = _array(x)
        queries = self._feed_forward(self.initial_ffn_layer, x[: self.queries])
        out["init/ffn"] = _array(queries)
        x = torch.cat((queries, x[self.queries :]))
        for i in range(self.count):
            feature = memory[i % self.levels]
            logits = self._logits(x[: self.queries], semantic_map)
            out[f"logits256_{i}"] = _array(logits if i == 0 else logits.mean((2, 3)))
            hidden, noise = self._not_attended(logits.detach(), feature.shape[-2:], i, config)
            out[f"noise{i}"], out[f"mask{i}_shape"] = _array(noise), np.array(hidden.shape)
            out[f"mask{i}"] = np.packbits(hidden.numpy())
            value = feature.flatten(2).permute(2, 0, 1) + self.level_embed.weight[i % self.levels]
            key = value + _sine(*feature.shape[-2:], self.dim)[:, None]
            cross = self.transformer_cross_attention_layers[i]
            located = x[: self.queries] + position[: self.queries]
            attended, _ = cross["multihead_attn"](located, key, value, attn_mask=hidden)
            queries = cross["norm"](x[: self.queries] + attended)
            out[f"layer{i}/cross"] = _array(queries)
            x = torch.cat((queries, x[self.queries :]))
            x = self._self_attention(self.transformer_self_attention_layers[i], x, position)
            out[f"layer{i}/self"] = _array(x)
            queries = self._feed_forward(self.transformer_ffn_layers[i], x[: self.queries])
            out[f"layer{i}/ffn"] = _array(queries)
            x = torch.cat((queries, x[self.queries :]))
        logits = self._logits(x[: self.queries], semantic_map)
        out[f"logits256_{self.count}"] = out["pred_gmasks"] = _array(logits)
        return logits

    @staticmethod
    def _self_attention(layer: nn.ModuleDict, x: Tensor, position: Tensor) -> Tensor:
        return layer["norm"](x + layer["self_attn"](x + position, x + position, x)[0])

    @staticmethod
    def _feed_forward(layer: nn.ModuleDict, x: Tensor) -> Tensor:
        return layer["norm"](x + layer["linear2"](F.relu(layer["linear1"](x))))

    def _logits(self, queries: Tensor, semantic_map: Tensor) -> Tensor:
        """``(m, B, d)`` → ``(B, m, h, w)``."""
        first, second, third = self.mask_embed["layers"]
        mu = third(F.relu(second(F.relu(first(self.decoder_norm(queries))))))
        return torch.einsum("qbc,bchw->bqhw", mu, semantic_map)

    def _not_attended(
        self, logits: Tensor, size: torch.Size, layer: int, config: tuple[float, bool, float, float]
    ) -> tuple[Tensor, Tensor]:
        """Published form of the sets, ``(B·heads, m, N)``, ``True`` = not attended, and the numbers drawn for them."""
        threshold, do_boltzmann, ratio, base_temperature = config
        level = F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False).flatten(2)
        confidence = level.sigmoid()
        patches = level.shape[-1]
        noise = torch.rand(len(logits) * self.heads, self.queries, patches)
        hidden = torch.empty(noise.shape, dtype=torch.bool)
        for b in range(len(logits)):
            for head in range(self.heads):
                for q in range(self.queries):
                    left_out = confidence[b, q] < threshold
                    if do_boltzmann:
                        weight = torch.exp(confidence[b, q] / (base_temperature / (1 + layer))) * left_out
                        p = weight / weight.sum().clamp_min(1e-12)
                        never_drawn = noise[b * self.heads + head, q] < (1 - p) ** int(patches * ratio)
                        left_out = left_out & never_drawn
                    hidden[b * self.heads + head, q] = left_out & ~left_out.all()
        return hidden, noise


def _array(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def _sine(height: int, width: int, dim: int) -> Tensor:
    """DETR's normalised encoding, ``(h·w, dim)``, number by number."""
    rows = []
    for y in range(height):
        for x in range(width):
            values = []
            for place, length in ((y, height), (x, width)):
                for i in range(dim // 2):
                    angle = 2 * math.pi * (place + 1) / (length + 1e-6) / 10000 ** (2 * (i // 2) / (dim // 2))
                    values.append(math.cos(angle) if i % 2 else math.sin(angle))
            rows.append(values)
    return torch.tensor(rows)


def record_decoder(
    *,
    dim: int,
    heads: int,
    hidden: int,
    queries: int,
    layers: int,
    batch: int,
    sizes: list[tuple[int, int]],
    tokens: int,
) -> Arrays:
    """Arrays of a golden file; ``sizes`` are those of the levels, coarse to fine, and last that of the semantic map."""
    torch.manual_seed(0)
    decoder = PlainDecoder(dim=dim, heads=heads, hidden=hidden, queries=queries, layers=layers, levels=len(sizes) - 1)
    for parameter in decoder.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.3)
    arrays: Arrays = {f"w/{name}": _array(weight) for name, weight in decoder.state_dict().items()}
    inputs = {f"x{i}": torch.randn(batch, dim, *size) for i, size in enumerate(sizes[:-1])}
    inputs["mask_features"] = torch.randn(batch, dim, *sizes[-1])
    inputs["text"] = torch.randn(tokens, batch, dim)
    cotangent = torch.randn(batch, queries, *sizes[-1])
    arrays |= {f"in/{name}": _array(x) for name, x in inputs.items()} | {"in/grad_out": _array(cotangent)}
    cases = {"boltz": (1.1, True, 0.2, 1.0), "part": (0.5, True, 0.2, 2.0), "threshold": (0.5, False, 0.2, 1.0)}
    for case, config in cases.items():
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        out: Arrays = {"cfg": np.array([float(value) for value in config])}
        (decoder.run(leaves, config, out) * cotangent).sum().backward()
        for name, leaf in leaves.items():
            out[f"grad/{name}"] = _array(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        arrays |= {f"{case}/{name}": value.copy() for name, value in out.items()}
    return arrays
