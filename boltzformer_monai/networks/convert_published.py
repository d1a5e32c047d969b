"""Convert published weights to this package's names and shapes.

Published checkpoints name tensors after the modules of other projects. The tables below map them to ours; an unmapped
name is an error, except in parts that no mask depends on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from boltzformer_monai.errors import CheckpointError

_Tensors = dict[str, Tensor]
_Reshape = Callable[[Tensor], Tensor]

# Unused classification weights, inherited from the published model's code base; no mask depends on them.
_UNUSED = re.compile(r"(^|\.)(class_embed|logit_scale)$")

_DECODER = (
    (r"transformer_self_attention_layers\.(\d+)\.", r"layers.\1.inter."),
    (r"transformer_cross_attention_layers\.(\d+)\.", r"layers.\1.cross."),
    (r"transformer_ffn_layers\.(\d+)\.", r"layers.\1.ffn."),
    (r"initial_self_attention_layer\.", r"prior_inter."),
    (r"initial_ffn_layer\.", r"prior_ffn."),
    (r"decoder_norm\.", r"mask_head.norm."),
    (r"mask_embed\.layers\.", r"mask_head.layers."),
    (r"(query_feat|query_embed|level_embed)\.", r"\1."),
)
_TEXT = (
    (r"positional_embedding$", r"embeddings.position_embedding.weight"),
    (r"token_embedding\.", r"embeddings.token_embedding."),
    (r"resblocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"resblocks\.(\d+)\.ln_(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
    (r"resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
    (r"ln_final\.", r"final_layer_norm."),
)
_FOCAL = (
    (r"patch_embed\.", r"stem."),
    (r"layers\.(\d+)\.blocks\.(\d+)\.gamma_(\d)$", r"layers_\1.blocks.\2.ls\3.gamma"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm(\d)\.", r"layers_\1.blocks.\2.norm\3_post."),
    (r"layers\.(\d+)\.blocks\.", r"layers_\1.blocks."),
)


def _rename(name: str, table: tuple[tuple[str, str], ...], *, what: str) -> str:
    for pattern, replacement in table:
        renamed, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return renamed
    msg = f"published {what} weight {name!r} has no place in this network"
    raise CheckpointError(msg)


def convert_decoder(weights: Mapping[str, Tensor]) -> _Tensors:
    """Published predictor → :class:`~boltzformer_monai.networks.decoder.BoltzFormerDecoder`."""
    return {_rename(name, _DECODER, what="decoder"): w for name, w in weights.items() if not _UNUSED.search(name)}


def convert_pixel_decoder(weights: Mapping[str, Tensor]) -> _Tensors:
    """Published pixel decoder → :class:`~boltzformer_monai.networks.pixel_decoder.PixelDecoder`."""
    levels = max((int(m[1]) for name in weights if (m := re.match(r"layer_(\d+)\.", name))), default=4)
    converted: _Tensors = {}
    for name, weight in weights.items():
        if match := re.match(r"(adapter|layer)_(\d+)\.(.*)", name):
            kind, index, rest = match[1], int(match[2]), match[3]
            # Published: 1 = finest. Here both lists go from coarse to fine, and the coarsest level has no lateral.
            place = f"lateral.{levels - 1 - index}" if kind == "adapter" else f"smooth.{levels - index}"
            converted[f"{place}.{'conv.weight' if rest == 'weight' else rest}"] = weight
        else:
            table = (
                (r"mask_features\.", "semantic_map."),
                (r"input_proj\.", "input_proj."),
                (r"transformer\.encoder\.layers\.", "encoder."),
            )
            converted[_rename(name, table, what="pixel decoder")] = weight
    return converted


def convert_text_encoder(weights: Mapping[str, Tensor]) -> _Tensors:
    """Published language encoder → :class:`~boltzformer_monai.networks.text_encoder.TextEncoder`."""
    converted: _Tensors = {}
    for name, weight in weights.items():
        if _UNUSED.search(name):
            continue
        if name == "lang_proj":
            converted["lang_proj.weight"] = weight.T.contiguous()
            continue
        renamed = _rename(name.removeprefix("encoder_transformer."), _TEXT, what="text encoder")
        if match := re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", renamed):
            for part, chunk in zip("qkv", weight.chunk(3), strict=True):
                converted[f"model.{match[1]}{part}_proj.{match[2]}"] = chunk.contiguous()
        else:
            converted[f"model.{renamed}"] = weight
    return converted


def convert_pigma(weights: Mapping[str, Tensor]) -> _Tensors:
    """Published output convolutions → :class:`~boltzformer_monai.networks.pigma.PiGMA`."""
    table = ((r"output_deconv\.", "deconv."), (r"output_conv\.", "conv."))
    return {_rename(name, table, what="PiGMA"): weight for name, weight in weights.items()}


def convert_hiera(weights: Mapping[str, Tensor]) -> _Tensors:
    """SAM 2's trunk and neck → :class:`~boltzformer_monai.networks.backbone.FeaturePyramidNeck` over timm's Hiera."""
    count = sum(1 for name in weights if re.fullmatch(r"neck\.convs\.\d+\.conv\.weight", name))
    converted: _Tensors = {}
    for name, weight in weights.items():
        if match := re.fullmatch(r"neck\.convs\.(\d+)\.conv\.(weight|bias)", name):
            converted[f"convs.{count - 1 - int(match[1])}.{match[2]}"] = weight
        elif name.startswith("trunk."):
            timm_name = name.removeprefix("trunk.").replace("mlp.layers.0.", "mlp.fc1.")
            converted[f"backbone.model.model.{timm_name.replace('mlp.layers.1.', 'mlp.fc2.')}"] = weight
        else:
            msg = f"published backbone weight {name!r} has no place in this network"
            raise CheckpointError(msg)
    return converted


def convert_focal(weights: Mapping[str, Tensor]) -> _Tensors:
    """Published Focal-L → :class:`~boltzformer_monai.networks.backbone.TimmBackbone` with output norms."""
    converted: _Tensors = {}
    for name, weight in weights.items():
        if match := re.fullmatch(r"norm(\d)\.(weight|bias)", name):
            converted[f"norms.{match[1]}.{match[2]}"] = weight
            continue
        if match := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
            renamed = f"layers_{int(match[1]) + 1}.downsample.{match[2]}"
        else:
            renamed = _rename(name, _FOCAL, what="backbone")
        # timm writes the position-wise linear layers as 1×1 convolutions.
        is_linear = weight.dim() == 2 and re.search(r"(modulation\.(f|proj)|mlp\.fc[12])\.weight$", renamed)
        converted[f"model.{renamed}"] = weight[:, :, None, None] if is_linear else weight
    return converted


def convert_published(weights: Mapping[str, Tensor]) -> _Tensors:
    """A complete published state dict → state dict of :class:`~boltzformer_monai.networks.boltzformer.BoltzFormer`.

    Published weights contain no normalisation buffers, so the result has none.

    Raises:
        CheckpointError: a weight has no counterpart here.
    """
    groups: dict[str, _Tensors] = {}
    prefixes = {
        "backbone.": "backbone",
        "sem_seg_head.pixel_decoder.": "pixel_decoder",
        "sem_seg_head.predictor.language_encoder.": "text_encoder",
        "sem_seg_head.predictor.": "decoder",
        "output_": "aggregation",
    }
    for name, weight in weights.items():
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is None:
            msg = f"published weight {name!r} has no place in this network"
            raise CheckpointError(msg)
        local = name if prefix == "output_" else name.removeprefix(prefix)
        groups.setdefault(prefixes[prefix], {})[local] = weight
    backbone = groups.get("backbone", {})
    is_hiera = any(name.startswith("trunk.") for name in backbone)
    parts = {
        "backbone": convert_hiera(backbone) if is_hiera else convert_focal(backbone),
        "pixel_decoder": convert_pixel_decoder(groups.get("pixel_decoder", {})),
        "text_encoder": convert_text_encoder(groups.get("text_encoder", {})),
        "decoder.query_decoder": convert_decoder(groups.get("decoder", {})),
        "decoder.aggregation": convert_pigma(groups.get("aggregation", {})),
    }
    return {f"{part}.{name}": weight for part, tensors in parts.items() for name, weight in tensors.items()}
