"""Microsoft's BoltzFormer: the published code's complete models (Hiera-S, Hiera-B+, Focal-L)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.presets import network_config
from boltzformer_monai.networks.published.rename import (
    NOT_OF_THE_MASKS,
    Tensors,
    UnplacedError,
    convert_backbone,
    convert_decoder,
    convert_pigma,
    convert_pixel_decoder,
    convert_text_encoder,
    placed,
    without,
)
from boltzformer_monai.networks.published.source import Converted, PublishedFile, register_source

_PLACES = {
    "backbone.": "backbone",
    "sem_seg_head.pixel_decoder.": "pixel_decoder",
    "sem_seg_head.predictor.language_encoder.": "text_encoder",
    "sem_seg_head.predictor.": "decoder",
    "output_": "aggregation",
}
_QUERIES = "sem_seg_head.predictor.query_feat.weight"
_HIERA = {96: "hiera_s", 112: "hiera_bp"}  # channels of the first stage

UNICL = {"text_norm_eps": 1e-12, "text_activation": "quick_gelu"}
"""How UniCL's text encoder computes, which every model of this family has."""
SETTINGS: dict[str, dict[str, Any]] = {"text_encoder": UNICL, "pixel_decoder": {"pre_norm": False}}


@register_source("boltzformer")
class BoltzFormerSource:
    """A complete state dict; the names are those of the published modules."""

    title = "BoltzFormer (microsoft/BoltzFormer)"

    def recognises(self, names: Collection[str]) -> bool:
        """By its queries and its text encoder."""
        return _QUERIES in names and "sem_seg_head.predictor.language_encoder.lang_proj" in names

    def convert(self, file: PublishedFile) -> Converted:
        """Rename all parts."""
        weights, dropped = without(file.weights, NOT_OF_THE_MASKS)
        lacks = {"decoder.presence.": "the published model has no presence head"}
        return Converted(convert_parts(weights), dropped=dropped, lacks=lacks, settings=SETTINGS)

    def config(self, file: PublishedFile) -> NetworkConfig:
        """The preset of its backbone, with its queries."""
        stem = file.weights.get("backbone.trunk.patch_embed.proj.weight")
        channels = None if stem is None else int(stem.shape[0])
        preset = "focal_l" if channels is None else _HIERA.get(channels)
        if preset is None:
            msg = f"{file.path}: its Hiera begins with {channels} channels; known are {', '.join(map(str, _HIERA))}"
            raise CheckpointError(msg)
        queries = file.weights[_QUERIES].shape[0]
        pigma = any(name.startswith("output_") for name in file.weights)
        return network_config(preset, queries=queries, per_head=True, pigma_correction=pigma)


def convert_parts(weights: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """The parts of a complete published model under this package's names.

    Raises:
        CheckpointError: a weight has no place here.
    """
    groups: dict[str, Tensors] = {}
    for name, weight in weights.items():
        prefix = next((each for each in _PLACES if name.startswith(each)), None)
        if prefix is None:
            raise UnplacedError(name)
        local = name if prefix == "output_" else name.removeprefix(prefix)
        groups.setdefault(_PLACES[prefix], {})[local] = weight
    text = placed(
        (name.removeprefix("encoder_transformer."), weight) for name, weight in groups.get("text_encoder", {}).items()
    )
    decoder = {f"query_decoder.{name}": w for name, w in convert_decoder(groups.get("decoder", {})).items()}
    decoder |= {f"aggregation.{name}": w for name, w in convert_pigma(groups.get("aggregation", {})).items()}
    return {
        "backbone": convert_backbone(groups.get("backbone", {})),
        "pixel_decoder": convert_pixel_decoder(groups.get("pixel_decoder", {})),
        "text_encoder": convert_text_encoder(text),
        "decoder": decoder,
    }
