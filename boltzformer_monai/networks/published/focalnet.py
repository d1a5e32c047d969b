"""FocalNet's original checkpoints (classification)."""

from __future__ import annotations

from collections.abc import Collection

from boltzformer_monai.networks.published.rename import convert_focal, without
from boltzformer_monai.networks.published.source import Converted, PublishedFile, register_source

_DROPPED = {r"^head\.": "classified images", r"^norm\.": "normalised for the classifier"}


@register_source("focalnet")
class FocalNetSource:
    """``{"model": …}`` of a backbone with its classifier."""

    title = "FocalNet (microsoft/FocalNet)"

    def recognises(self, names: Collection[str]) -> bool:
        """By patch embedding and modulation."""
        return "patch_embed.proj.weight" in names and any("modulation.f.weight" in name for name in names)

    def convert(self, file: PublishedFile) -> Converted:
        """Rename the backbone."""
        weights, dropped = without(file.weights, _DROPPED)
        lacks = {"backbone.norms.": "the classifier has no norms of the features"}
        return Converted({"backbone": convert_focal(weights)}, dropped=dropped, lacks=lacks)

    def config(self, file: PublishedFile) -> None:
        """A backbone is no whole network."""
