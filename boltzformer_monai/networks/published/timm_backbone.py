"""A timm model's own file, as timm writes it or the hub holds it."""

from __future__ import annotations

import re
from collections.abc import Collection

from boltzformer_monai.networks.published.source import Converted, PublishedFile, register_source

# One of these begins the names of a timm model with features; published FocalNets also have patch_embed.
_BEGINNINGS = re.compile(r"(stem|stages|layer1|blocks|layers)[._]")
_OTHERS = re.compile(r"(image_encoder|backbone|text_model|encoder_transformer)\.|.*\b(resblocks|token_embedding)\b")


@register_source("timm")
class TimmSource:
    """A backbone. Its names stay timm's; where the features-only model has other ones, they are matched to these."""

    title = "timm"

    def recognises(self, names: Collection[str]) -> bool:
        """By how timm names stages and blocks."""
        is_published_focal = any("modulation.f." in name for name in names) and "stem.proj.weight" not in names
        begins = any(_BEGINNINGS.match(name) for name in names)
        return begins and not is_published_focal and not any(_OTHERS.match(name) for name in names)

    def convert(self, file: PublishedFile) -> Converted:
        """Nothing to rename."""
        return Converted(
            {"backbone": dict(file.weights)},
            lacks={
                "backbone.convs.": "timm's model has no neck",
                "backbone.norms.": "timm's model has no norms of the features",
            },
            surplus={
                r"^(head|fc|classifier|pre_logits)\b": "classified images",
                r"^norm\.": "normalised for the classifier",
            },
        )

    def config(self, file: PublishedFile) -> None:
        """A backbone is no whole network."""
