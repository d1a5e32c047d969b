"""CLIP's text towers: OpenAI's and open_clip's names, transformers', and UniCL's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from boltzformer_monai.errors import CheckpointError, why
from boltzformer_monai.networks.published.boltzformer import UNICL
from boltzformer_monai.networks.published.rename import Tensors, convert_text_encoder, placed, without
from boltzformer_monai.networks.published.source import Converted, PublishedFile, register_source

_TOKENS = "token_embedding.weight"
# Where the tower's names begin: at the top, or below one of these.
_OPEN_CLIP = ("", "text.")
_UNICL = ("", "lang_encoder.")
_TRANSFORMERS = ("text_model.", "")
_IMAGES = {
    r"^(visual|vision_model|visual_projection|image_encoder)\.": "encoded images",
    r"^image_projection$": "projected images",
    r"(^|\.)logit_(scale|bias)$": "compared image and text; no mask depends on it",
    r"(^|\.)attn_mask$": "the causal mask, which is computed",
    r"(^|\.)embeddings\.position_ids$": "the positions, which are counted",
    r"^(input_resolution|context_length|vocab_size)$": "sizes of the model",
}
_PROJECTION = "text_encoder.lang_proj.weight"


@register_source("clip")
class ClipSource:
    """A text tower, alone or in a model of images and text."""

    title = "CLIP text tower (open_clip, OpenAI, transformers, UniCL)"

    def recognises(self, names: Collection[str]) -> bool:
        """By its token embedding and where its blocks are."""
        return _layout(names) is not None

    def convert(self, file: PublishedFile) -> Converted:
        """Rename tower and projection."""
        weights, dropped = without(file.weights, _IMAGES)
        layout, prefix = _layout(weights) or ("open_clip", "")
        if layout == "transformers":
            part = _from_transformers(weights, prefix)
            settings, notes = _of_transformers(file.about)
        else:
            part = convert_text_encoder(_bare(weights, prefix, inner="transformer." if layout == "open_clip" else ""))
            settings, notes = (UNICL, ()) if layout == "unicl" else _of_open_clip(file.about)
        return Converted(
            {"text_encoder": part},
            dropped=dropped,
            lacks={_PROJECTION: "the file has no text projection"},
            optional={_PROJECTION: "the file's projection maps to another number of channels"},
            settings={"text_encoder": settings},
            notes=notes,
        )

    def config(self, file: PublishedFile) -> None:
        """A text tower is no whole network."""


def _layout(names: Collection[str]) -> tuple[str, str] | None:
    """Whose names these are, and where the tower begins."""
    for prefix in _TRANSFORMERS:
        if f"{prefix}embeddings.{_TOKENS}" in names and f"{prefix}final_layer_norm.weight" in names:
            return "transformers", prefix
    for layout, prefixes, inner in (("open_clip", _OPEN_CLIP, "transformer."), ("unicl", _UNICL, "")):
        for prefix in prefixes:
            if {f"{prefix}{_TOKENS}", f"{prefix}{inner}resblocks.0.ln_1.weight"} <= set(names):
                return layout, prefix
    return None


def _bare(weights: Mapping[str, Tensor], prefix: str, *, inner: str) -> Tensors:
    """The names of the tower without what stands before them, and its projection as ``lang_proj``."""
    bare = placed((name.removeprefix(prefix).removeprefix(inner), weight) for name, weight in weights.items())
    if "text_projection.weight" in bare:  # a linear layer, which is applied from the left
        bare["text_projection"] = bare.pop("text_projection.weight").t()
    return placed(("lang_proj" if name == "text_projection" else name, weight) for name, weight in bare.items())


def _from_transformers(weights: Mapping[str, Tensor], prefix: str) -> Tensors:
    return placed(
        ("lang_proj.weight" if name == "text_projection.weight" else f"model.{name.removeprefix(prefix)}", weight)
        for name, weight in weights.items()
    )


def _of_transformers(about: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings of the tower's ``config.json``, with the defaults of transformers; without it they are not known."""
    if not about:
        note = (
            "no config.json lies beside the file: its activation and heads are not known, nor whether "
            "text_activation 'quick_gelu' or 'gelu' is right"
        )
        return {"text_norm_eps": 1e-5}, (note,)
    text = about.get("text_config") or about
    with _readable("config.json"):
        return {
            "text_norm_eps": float(text.get("layer_norm_eps", 1e-5)),
            "text_activation": str(text.get("hidden_act", "quick_gelu")),
            "text_heads": int(text.get("num_attention_heads", 8)),
        }, ()


@contextmanager
def _readable(file: str) -> Iterator[None]:
    """Refuse a configuration of another form.

    Raises:
        CheckpointError: it has.
    """
    try:
        yield
    except (AttributeError, ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(f"the {file} beside the weights cannot be used ({why(error)})") from error


def _of_open_clip(about: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings of ``open_clip_config.json``; without it the activation is not known."""
    model = about.get("model_cfg")
    if not isinstance(model, Mapping):
        note = (
            "the file does not say its activation: OpenAI's weights and those named quickgelu have "
            "text_activation 'quick_gelu', open_clip's others 'gelu'"
        )
        return {"text_norm_eps": 1e-5}, (note,)
    settings = {"text_norm_eps": 1e-5, "text_activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    with _readable("open_clip_config.json"):
        return {**settings, "text_heads": int(model.get("text_cfg", {}).get("heads", 8))}, ()
