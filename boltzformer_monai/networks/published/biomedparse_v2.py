"""BiomedParse v2: the released checkpoint for volumes (FocalNet-L, 16 queries, existence classifier)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.presets import network_config
from boltzformer_monai.networks.published.boltzformer import SETTINGS, convert_parts
from boltzformer_monai.networks.published.rename import NOT_OF_THE_MASKS, Tensors, convert_existence, placed, without
from boltzformer_monai.networks.published.source import Converted, PublishedFile, register_source

_LIGHTNING = "model."  # before the network's names in the checkpoint, beside the loss's
_PREDICTOR = "sem_seg_head.predictor."
_QUERIES = f"{_PREDICTOR}query_feat_.weight"
_CLASSIFIER = f"{_PREDICTOR}classifier"
_NORMALISATION = ("pixel_mean", "pixel_std")
# Its channels are this slice, the one before and the one after; ours before, this, after.
_CHANNELS = [1, 0, 2]
_DROPPED = {**NOT_OF_THE_MASKS, r"^loss_function\.": "of the training loss"}


@register_source("biomedparse_v2")
class BiomedParseV2Source:
    """A complete state dict, as published or with Lightning's ``model.`` before the names."""

    title = "BiomedParse v2 (microsoft/BiomedParse)"

    def recognises(self, names: Collection[str]) -> bool:
        """By its queries, whose name is its own."""
        return _QUERIES in names or f"{_LIGHTNING}{_QUERIES}" in names

    def convert(self, file: PublishedFile) -> Converted:
        """Rename all parts, and put the input channels into this package's order."""
        weights, dropped = without(file.weights, _DROPPED)
        weights = placed((name.removeprefix(_LIGHTNING), weight) for name, weight in weights.items())
        existence = {n.removeprefix(_PREDICTOR): w for n, w in weights.items() if n.startswith(_CLASSIFIER)}
        others = placed(
            (name.replace("query_feat_.", "query_feat.").replace("query_embed_.", "query_embed."), weight)
            for name, weight in weights.items()
            if name not in _NORMALISATION and not name.startswith(_CLASSIFIER)
        )
        parts = convert_parts(others)
        parts["backbone"] = _reorder_channels(parts["backbone"])
        parts["decoder"] |= {f"presence.{name}": weight for name, weight in convert_existence(existence).items()}
        buffers = {
            ours: torch.tensor(_normalisation(file, name), dtype=torch.float32).view(1, -1, 1, 1)
            for ours, name in zip(("mean", "std"), _NORMALISATION, strict=True)
        }
        return Converted(parts, dropped=dropped, settings=SETTINGS, buffers=buffers)

    def config(self, file: PublishedFile) -> NetworkConfig:
        """The preset, with the file's mean and standard deviation, which are of the 0–255 scale."""
        mean, std = (_normalisation(file, name) for name in _NORMALISATION)
        return network_config("biomedparse_v2", mean=mean, std=std)


def _reorder_channels(backbone: Tensors) -> Tensors:
    stem = backbone.get("model.stem.proj.weight")
    if stem is None or stem.dim() != 4 or stem.shape[1] != len(_CHANNELS):
        return backbone  # misshapen: refused by name when it is compared with the network
    return {**backbone, "model.stem.proj.weight": stem[:, _CHANNELS]}


def _normalisation(file: PublishedFile, name: str) -> tuple[float, ...]:
    """Of our channels, on the 0–1 scale.

    Raises:
        CheckpointError: it is missing or not one positive number for each channel.
    """
    values: Tensor | None = file.weights.get(name, file.weights.get(f"{_LIGHTNING}{name}"))
    if values is None or values.numel() != len(_CHANNELS):
        found = "missing" if values is None else f"of shape {list(values.shape)}"
        msg = f"{file.path}: published weight {name!r} is {found}; it holds one number for each of 3 channels"
        raise CheckpointError(msg)
    scaled = [round(value / 255, 7) for value in values.flatten().tolist()]
    return tuple(scaled[channel] for channel in _CHANNELS)
