"""Published names → this package's, part by part: renaming, and the few reshapes that the modules need.

Every function is strict: a name without a place is an error. What is left out on purpose is taken out before, with
:func:`without`, which keeps the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from boltzformer_monai.errors import CheckpointError

Tensors = dict[str, Tensor]
Table = tuple[tuple[str, str], ...]

# Of the code that the published models grew from.
NOT_OF_THE_MASKS = {
    r"(^|\.)class_embed$": "classified masks; no mask depends on it",
    r"(^|\.)logit_scale$": "compared image and text; no mask depends on it",
}

_DECODER: Table = (
    (r"transformer_self_attention_layers\.(\d+)\.", r"layers.\1.inter."),
    (r"transformer_cross_attention_layers\.(\d+)\.", r"layers.\1.cross."),
    (r"transformer_ffn_layers\.(\d+)\.", r"layers.\1.ffn."),
    (r"initial_self_attention_layer\.", r"prior_inter."),
    (r"initial_ffn_layer\.", r"prior_ffn."),
    (r"decoder_norm\.", r"mask_head.norm."),
    (r"mask_embed\.layers\.", r"mask_head.layers."),
    (r"(query_feat|query_embed|level_embed)\.", r"\1."),
)
_EXISTENCE: Table = (
    (r"classifier_cross_attention_layers\.(\d+)\.", r"layers.\1.cross."),
    (r"classifier_ffn_layers\.(\d+)\.", r"layers.\1.ffn."),
    (r"classifier_query\.", r"query."),
    (r"classifier\.", r"head."),
)
_PIXEL_DECODER: Table = (
    (r"mask_features\.", "semantic_map."),
    (r"input_proj\.", "input_proj."),
    (r"transformer\.encoder\.layers\.", "encoder."),
)
_TEXT: Table = (
    (r"positional_embedding$", r"embeddings.position_embedding.weight"),
    (r"token_embedding\.", r"embeddings.token_embedding."),
    (r"resblocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"resblocks\.(\d+)\.ln_(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
    (r"resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
    (r"ln_final\.", r"final_layer_norm."),
)
_FOCAL: Table = (
    (r"patch_embed\.", r"stem."),
    (r"layers\.(\d+)\.blocks\.(\d+)\.gamma_(\d)$", r"layers_\1.blocks.\2.ls\3.gamma"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm(\d)\.", r"layers_\1.blocks.\2.norm\3_post."),
    (r"layers\.(\d+)\.blocks\.", r"layers_\1.blocks."),
)
_PIGMA: Table = ((r"output_deconv\.", "deconv."), (r"output_conv\.", "conv."))


class UnplacedError(CheckpointError):
    """A weight has no place in the network.

    Args:
        name: published, or its end.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"published weight {name!r} has no place in this network")
        self.name = name


class _Placed(dict[str, Tensor]):
    """Weights under new names, each of which one weight takes."""

    def __setitem__(self, name: str, weight: Tensor) -> None:
        if name in self:
            raise CheckpointError(f"two published weights are {name!r} here; one of them has no place in this network")
        super().__setitem__(name, weight)


def placed(pairs: Iterable[tuple[str, Tensor]]) -> Tensors:
    """Weights under new names.

    Raises:
        CheckpointError: two of them have the same; a dict would lose one without a word.
    """
    found = _Placed()
    for name, weight in pairs:
        found[name] = weight
    return found


def below(weights: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The weights whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def without(weights: Mapping[str, Tensor], reasons: Mapping[str, str]) -> tuple[Tensors, dict[str, str]]:
    """Leave out what has no use here.

    Args:
        weights: by name.
        reasons: regular expression of names to leave out → why.

    Returns:
        The others, and the names that were left out with the reason.
    """
    dropped = {name: why for name in weights for pattern, why in reasons.items() if re.search(pattern, name)}
    return {name: weight for name, weight in weights.items() if name not in dropped}, dropped


def rename(name: str, table: Table) -> str:
    """The name after the first rule that fits its beginning.

    Raises:
        CheckpointError: none does.
    """
    for pattern, replacement in table:
        renamed, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return renamed
    raise UnplacedError(name)


def convert_decoder(weights: Mapping[str, Tensor]) -> Tensors:
    """Published predictor → :class:`~boltzformer_monai.networks.decoder.BoltzFormerDecoder`."""
    return placed((rename(name, _DECODER), weight) for name, weight in weights.items())


def convert_existence(weights: Mapping[str, Tensor]) -> Tensors:
    """BiomedParse's classifier → :class:`~boltzformer_monai.networks.biomedparse.ExistenceClassifier`."""
    return placed((rename(name, _EXISTENCE), weight) for name, weight in weights.items())


def convert_pixel_decoder(weights: Mapping[str, Tensor]) -> Tensors:
    """Published pixel decoder → :class:`~boltzformer_monai.networks.pixel_decoder.PixelDecoder`."""
    levels = max((int(m[1]) for name in weights if (m := re.match(r"layer_(\d+)\.", name))), default=4)
    converted: Tensors = _Placed()
    for name, weight in weights.items():
        if match := re.match(r"(adapter|layer)_(\d+)\.(.*)", name):
            kind, index, rest = match[1], int(match[2]), match[3]
            # Published: 1 = finest. Here both lists run coarse to fine, and the coarsest level has no lateral.
            place = f"lateral.{levels - 1 - index}" if kind == "adapter" else f"smooth.{levels - index}"
            converted[f"{place}.{'conv.weight' if rest == 'weight' else rest}"] = weight
        else:
            converted[rename(name, _PIXEL_DECODER)] = weight
    return converted


def convert_text_encoder(weights: Mapping[str, Tensor]) -> Tensors:
    """A CLIP text tower in OpenAI's names → :class:`~boltzformer_monai.networks.text_encoder.TextEncoder`.

    ``lang_proj``, the matrix from its width to d channels, is applied from the right: transposed here.
    """
    converted: Tensors = _Placed()
    for name, weight in weights.items():
        if name == "lang_proj":
            converted["lang_proj.weight"] = weight.t().contiguous() if weight.dim() == 2 else weight
            continue
        renamed = rename(name, _TEXT)
        if match := re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", renamed):
            if not weight.dim() or weight.shape[0] % 3:
                msg = f"published text encoder weight {name!r} of shape {list(weight.shape)} is no query, key and value"
                raise CheckpointError(msg)
            for part, chunk in zip("qkv", weight.chunk(3), strict=True):
                converted[f"model.{match[1]}{part}_proj.{match[2]}"] = chunk
        else:
            converted[f"model.{renamed}"] = weight
    return converted


def convert_pigma(weights: Mapping[str, Tensor]) -> Tensors:
    """Published output convolutions → :class:`~boltzformer_monai.networks.pigma.PiGMA`."""
    return placed((rename(name, _PIGMA), weight) for name, weight in weights.items())


def convert_hiera(weights: Mapping[str, Tensor]) -> Tensors:
    """SAM 2's trunk and neck → :class:`~boltzformer_monai.networks.backbone.FeaturePyramidNeck` over timm's Hiera."""
    count = sum(1 for name in weights if re.fullmatch(r"neck\.convs\.\d+\.conv\.weight", name))
    converted: Tensors = _Placed()
    for name, weight in weights.items():
        if match := re.fullmatch(r"neck\.convs\.(\d+)\.conv\.(weight|bias)", name):
            converted[f"convs.{count - 1 - int(match[1])}.{match[2]}"] = weight
        elif name.startswith("trunk."):
            timm_name = name.removeprefix("trunk.").replace("mlp.layers.0.", "mlp.fc1.")
            converted[f"backbone.model.model.{timm_name.replace('mlp.layers.1.', 'mlp.fc2.')}"] = weight
        else:
            raise UnplacedError(name)
    return converted


def convert_focal(weights: Mapping[str, Tensor]) -> Tensors:
    """Published FocalNet → :class:`~boltzformer_monai.networks.backbone.TimmBackbone` with output norms."""
    converted: Tensors = _Placed()
    for name, weight in weights.items():
        if match := re.fullmatch(r"norm(\d)\.(weight|bias)", name):
            converted[f"norms.{match[1]}.{match[2]}"] = weight
            continue
        if match := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
            renamed = f"layers_{int(match[1]) + 1}.downsample.{match[2]}"
        else:
            renamed = rename(name, _FOCAL)
        # timm writes the position-wise linear layers as 1×1 convolutions.
        is_linear = weight.dim() == 2 and re.search(r"(modulation\.(f|proj)|mlp\.fc[12])\.weight$", renamed)
        converted[f"model.{renamed}"] = weight[:, :, None, None] if is_linear else weight
    return converted


def convert_backbone(weights: Mapping[str, Tensor]) -> Tensors:
    """The backbone of a whole published model: SAM 2's Hiera with its neck, or a FocalNet."""
    is_hiera = any(name.startswith("trunk.") for name in weights)
    return convert_hiera(weights) if is_hiera else convert_focal(weights)
