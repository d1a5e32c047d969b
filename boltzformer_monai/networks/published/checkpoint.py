"""This package's own checkpoints, as initial weights of another training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.published.rename import below
from boltzformer_monai.networks.published.source import PARTS, Converted, PublishedFile, register_source
from boltzformer_monai.networks.weights import current_names, read_description

NORMALISATION = ("mean", "std")


@register_source("checkpoint")
class CheckpointSource:
    """A ``model.pt`` of this package, or the folder of a model."""

    title = "a checkpoint of this package"

    def recognises(self, names: Collection[str]) -> bool:
        """By the normalisation, which only this package keeps beside these parts."""
        return {*NORMALISATION, "text_encoder.lang_proj.weight"} <= set(names)

    def convert(self, file: PublishedFile) -> Converted:
        """Take the parts apart."""
        weights = current_names(file.weights, file.about)
        settings = _settings(self.config(file)) if file.about else {}
        known = (*(f"{part}." for part in PARTS), *NORMALISATION)
        if strangers := [name for name in weights if not name.startswith(known)]:
            raise CheckpointError(f"{file.path}: weight {strangers[0]!r} has no place in this network")
        return Converted(
            {part: below(weights, f"{part}.") for part in PARTS},
            lacks={"decoder.presence.": "the checkpoint has no presence head"},
            surplus={r"^presence\.": "the network has no presence head"},
            settings=settings,
            buffers={name: weights[name] for name in NORMALISATION},
        )

    def config(self, file: PublishedFile) -> NetworkConfig:
        """As the checkpoint describes it."""
        return read_description(file.about, file.path).network


def _settings(config: NetworkConfig) -> dict[str, dict[str, Any]]:
    """What no weight shows of the parts."""
    names: Mapping[str, tuple[str, ...]] = {
        "text_encoder": ("text_norm_eps", "text_activation", "text_heads"),
        "pixel_decoder": ("heads", "pre_norm"),
        "decoder": ("heads",),
    }
    found = {part: {name: getattr(config, name) for name in each} for part, each in names.items()}
    if config.text_model is not None:  # another model of transformers computes as its own folder says
        del found["text_encoder"]
    return found
