"""Golden checks of PiGMA, the pixel decoder, the text encoder and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from boltzformer_monai.engines.loss import BoltzFormerLoss
from boltzformer_monai.networks.fast.pigma import FastPiGMA
from boltzformer_monai.networks.pigma import PiGMA
from boltzformer_monai.networks.pixel_decoder import PixelDecoder
from boltzformer_monai.networks.published.rename import (
    NOT_OF_THE_MASKS,
    below,
    convert_pigma,
    convert_pixel_decoder,
    convert_text_encoder,
    without,
)
from boltzformer_monai.networks.text_encoder import PADDING, clip_text_encoder

Rows = list[tuple[str, float]]

# The published normalisation of images on the 0–255 scale.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


def tensor(arrays: Mapping[str, np.ndarray], name: str) -> Tensor:
    """One recorded array."""
    return torch.from_numpy(arrays[name].copy())


def state_dict(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The recorded weights under their published names."""
    return {name.removeprefix("w/"): tensor(arrays, name) for name in arrays if name.startswith("w/")}


def worst(ours: Tensor, recorded: np.ndarray) -> float:
    """Largest absolute error; a differing shape is infinitely wrong."""
    if tuple(ours.shape) != recorded.shape:
        return float("inf")
    return float((ours.detach().double() - torch.from_numpy(recorded.astype(np.float64))).abs().max())


def _best_heads(dim: int, check: Callable[[int], Rows]) -> Iterator[tuple[str, float]]:
    """The files do not record the number of heads: try every divisor and report the one that fits best."""
    candidates = {heads: check(heads) for heads in range(1, min(dim, 32) + 1) if dim % heads == 0}
    heads = min(candidates, key=lambda h: max(error for _, error in candidates[h]))
    for name, error in candidates[heads]:
        yield f"{name} (heads={heads})", error


@torch.no_grad()
def check_pigma(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    weights = convert_pigma(state_dict(arrays))
    masks = tensor(arrays, "in/pred_gmasks")
    image = tensor(arrays, "in/image_uint8").float()
    image = (image - torch.tensor(_MEAN).view(1, -1, 1, 1)) / torch.tensor(_STD).view(1, -1, 1, 1)
    for name, form in (("plain", PiGMA), ("fast", FastPiGMA)):
        pigma = form(queries=masks.shape[1], image_channels=image.shape[1], channels=len(weights["deconv.bias"]))
        pigma.load_state_dict(weights)
        yield f"out ({name})", worst(pigma(masks[:, None], image), arrays["out"])


@torch.no_grad()
def check_pixel_decoder(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    weights = convert_pixel_decoder(state_dict(arrays))
    stages = sorted((name for name in arrays if name.startswith("in/res")), key=lambda name: int(name[6:]))
    features = [tensor(arrays, name) for name in stages]
    dim = len(weights["input_proj.weight"])

    def check(heads: int) -> Rows:
        decoder = PixelDecoder(
            in_channels=[f.shape[1] for f in features],
            dim=dim,
            heads=heads,
            hidden=len(weights["encoder.0.linear1.weight"]),
            layers=len({name.split(".")[1] for name in weights if name.startswith("encoder.")}),
        ).eval()
        decoder.load_state_dict(weights)
        levels, semantic_map = decoder(features)
        rows = [("mask_features", worst(semantic_map, arrays["out/mask_features"]))]
        rows += [(f"ms{i}", worst(level, arrays[f"out/ms{i}"])) for i, level in enumerate(levels)]
        encoded = decoder.encode(decoder.input_proj(features[-1]))
        rows.append(("transformer_encoder_features", worst(encoded, arrays["out/transformer_encoder_features"])))
        return rows

    yield from _best_heads(dim, check)


@torch.no_grad()
def check_language(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    named, _ = without(state_dict(arrays), NOT_OF_THE_MASKS)
    weights = convert_text_encoder({"lang_proj": named["lang_proj"], **below(named, "encoder_transformer.")})
    ids, valid = tensor(arrays, "in/input_ids"), tensor(arrays, "in/attention_mask").bool()
    tokens = torch.where(valid, ids, PADDING)[:, None]
    vocabulary, width = weights["model.embeddings.token_embedding.weight"].shape
    layers = len({name.split(".")[3] for name in weights if name.startswith("model.encoder.layers.")})

    def check(heads: int) -> Rows:
        encoder = clip_text_encoder(
            dim=len(weights["lang_proj.weight"]),
            width=width,
            layers=layers,
            heads=heads,
            context=len(weights["model.embeddings.position_embedding.weight"]),
            vocabulary=vocabulary,
        ).eval()
        encoder.load_state_dict(weights)
        hidden = encoder.model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        embedded, ours_valid = encoder(tokens)
        embedded = embedded[:, 0]
        # The class embedding is the token at the end-of-text id, the largest of the vocabulary.
        class_embedding = embedded[torch.arange(len(ids)), ids.argmax(-1)]
        longest = int(valid.sum(1).max())
        packed = embedded[:, :longest].transpose(0, 1)
        return [
            ("last_hidden_state (valid)", worst_where(hidden, arrays["out/last_hidden_state"], valid)),
            ("token_emb (valid)", worst_where(embedded, arrays["out/token_emb"], valid)),
            ("class_emb", worst(class_embedding, arrays["out/class_emb"])),
            ("train_grounding_tokens", worst(packed, arrays["out/train_grounding_tokens"])),
            ("train_nonzero_mask", worst((~ours_valid[:, 0, :longest]).float(), arrays["out/train_nonzero_mask"])),
            ("eval_grounding_tokens (valid)", _worst_packed(packed, arrays["out/eval_grounding_tokens"], valid)),
        ]

    yield from _best_heads(width, check)


def worst_where(ours: Tensor, recorded: np.ndarray, valid: Tensor) -> float:
    """Largest absolute error at the valid tokens: what the published code computes at padding we mask."""
    if tuple(ours.shape) != recorded.shape:
        return float("inf")
    return worst(ours[valid], recorded[valid.numpy()])


def _worst_packed(packed: Tensor, recorded: np.ndarray, valid: Tensor) -> float:
    """As ``worst_where`` for tokens packed as ``(L, B, C)``."""
    return worst_where(packed, recorded, valid[:, : len(packed)].T)


@torch.no_grad()
def check_loss(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    loss, logits = BoltzFormerLoss(), tensor(arrays, "logits")
    yield "loss_same", worst(loss(logits, tensor(arrays, "target_same")), arrays["loss_same"])
    for name in arrays:
        if name.startswith("loss_") and name.endswith("_bicubic_antialias"):
            target = tensor(arrays, f"target_{name.split('_')[1]}")
            yield name, worst(loss(logits, target), arrays[name])
    if "logits_zero_target" in arrays:  # a loss, in spite of its name
        empty = torch.zeros_like(tensor(arrays, "target_same"))
        yield "loss of an empty target", worst(loss(logits, empty), arrays["logits_zero_target"])
