"""X-Decoder, SEEM and BiomedParse v1: their encoders, as initial weights.

Their decoders compute other functions (a prompt's mask is one query, chosen by similarity), so they are left out.
"""

from __future__ import annotations

from collections.abc import Collection

from boltzformer_monai.networks.published.boltzformer import SETTINGS
from boltzformer_monai.networks.published.rename import (
    below,
    convert_focal,
    convert_pixel_decoder,
    convert_text_encoder,
    placed,
    without,
)
from boltzformer_monai.networks.published.source import Converted, PublishedFile, register_source

_PREDICTOR = "sem_seg_head.predictor."
_TEXT = f"{_PREDICTOR}lang_encoder."
_DROPPED = {
    rf"^{_PREDICTOR}(?!lang_encoder\.)": "of a decoder that computes another function",
    rf"^{_TEXT}(?!lang_encoder\.|lang_proj$)": "of a text encoder that the masks do not use",
    r"^(criterion\.|pixel_mean$|pixel_std$)": "of the training, or of how images are normalised",
}


@register_source("seem")
class SeemSource:
    """A plain state dict of the whole model."""

    title = "X-Decoder, SEEM, BiomedParse v1"

    def recognises(self, names: Collection[str]) -> bool:
        """By where its text encoder is."""
        return f"{_TEXT}lang_encoder.token_embedding.weight" in names

    def convert(self, file: PublishedFile) -> Converted:
        """Rename backbone, pixel decoder and text encoder."""
        weights, dropped = without(file.weights, _DROPPED)
        text = placed((name.removeprefix("lang_encoder."), weight) for name, weight in below(weights, _TEXT).items())
        known = ("backbone.", "sem_seg_head.pixel_decoder.", _TEXT)
        strangers = {name: weight for name, weight in weights.items() if not name.startswith(known)}
        parts = {
            "backbone": convert_focal(placed([*below(weights, "backbone.").items(), *strangers.items()])),
            "pixel_decoder": convert_pixel_decoder(below(weights, "sem_seg_head.pixel_decoder.")),
            "text_encoder": convert_text_encoder(text),
        }
        return Converted(parts, dropped=dropped, settings=SETTINGS)

    def config(self, file: PublishedFile) -> None:
        """Without its decoder it is no whole network."""
