"""Our weights under the names of others, written out by hand: the way back of ``networks/published``."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from boltzformer_monai.networks import BoltzFormer

_DECODER = {
    "inter.": "transformer_self_attention_layers.{}.",
    "cross.": "transformer_cross_attention_layers.{}.",
    "ffn.": "transformer_ffn_layers.{}.",
}
_PARTS = {
    "prior_inter.": "initial_self_attention_layer.",
    "prior_ffn.": "initial_ffn_layer.",
    "mask_head.norm.": "decoder_norm.",
    "mask_head.layers.": "mask_embed.layers.",
}
_TEXT_BLOCK = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}


def published_state(network: BoltzFormer) -> dict[str, Tensor]:
    """State dict of a network with a Hiera backbone and neck, as the published code would save it."""
    ours = network.state_dict()
    state: dict[str, Tensor] = {
        "sem_seg_head.predictor.class_embed": torch.zeros(2, 2),
        "sem_seg_head.predictor.language_encoder.logit_scale": torch.ones([]),
    }
    for name, weight in ours.items():
        part, _, local = name.partition(".")
        if part == "decoder" and local.startswith("aggregation."):
            state[f"output_{local.removeprefix('aggregation.')}"] = weight
        elif part == "decoder" and local.startswith("query_decoder."):
            state[f"sem_seg_head.predictor.{_decoder(local.removeprefix('query_decoder.'))}"] = weight
        elif part == "pixel_decoder":
            state[f"sem_seg_head.pixel_decoder.{_pixel_decoder(local)}"] = weight
        elif part == "backbone" and local.startswith(("backbone.", "convs.")):
            state[f"backbone.{hiera_name(local)}"] = weight
    text = {f"encoder_transformer.{name}": weight for name, weight in text_tower(ours).items()}
    text["lang_proj"] = text.pop("encoder_transformer.lang_proj")
    return state | {f"sem_seg_head.predictor.language_encoder.{name}": weight for name, weight in text.items()}


def biomedparse_v2_state(network: BoltzFormer) -> dict[str, Tensor]:
    """State dict of a network with a FocalNet and BiomedParse's decoder, as the published code would save it."""
    ours = network.state_dict()
    state = published_state(network)
    for kind in ("query_feat", "query_embed"):
        state[f"sem_seg_head.predictor.{kind}_.weight"] = state.pop(f"sem_seg_head.predictor.{kind}.weight")
    for name, weight in ours.items():
        if name.startswith("backbone."):
            local = focal_name(name.removeprefix("backbone."))
            # This slice, the one before, the one after; ours before, this, after.
            weight = weight[:, [1, 0, 2]] if local == "patch_embed.proj.weight" else weight
            linear = weight.dim() == 4 and re.search(r"(modulation\.(f|proj)|mlp\.fc[12])\.weight$", local)
            state[f"backbone.{local}"] = weight[:, :, 0, 0] if linear else weight
        elif name.startswith("decoder.presence."):
            local = name.removeprefix("decoder.presence.")
            local = re.sub(r"^layers\.(\d+)\.cross\.", r"classifier_cross_attention_layers.\1.", local)
            local = re.sub(r"^layers\.(\d+)\.ffn\.", r"classifier_ffn_layers.\1.", local)
            local = local.replace("query.", "classifier_query.").replace("head.", "classifier.")
            state[f"sem_seg_head.predictor.{local}"] = weight
    return state | {f"pixel_{name}": 255 * ours[name][:, [1, 0, 2]] for name in ("mean", "std")}


def _decoder(local: str) -> str:
    if match := re.fullmatch(r"layers\.(\d+)\.(\w+\.)(.*)", local):
        return _DECODER[match[2]].format(match[1]) + match[3]
    for place, name in _PARTS.items():
        if local.startswith(place):
            return name + local.removeprefix(place)
    return local


def _pixel_decoder(local: str) -> str:
    # Four strides: ours count coarse to fine from 0, the published fine to coarse from 1.
    if match := re.fullmatch(r"(lateral|smooth)\.(\d)\.(conv\.weight|norm\..*)", local):
        number = 3 - int(match[2]) if match[1] == "lateral" else 4 - int(match[2])
        kind = "adapter" if match[1] == "lateral" else "layer"
        return f"{kind}_{number}.{match[3].removeprefix('conv.')}"
    return local.replace("semantic_map.", "mask_features.").replace("encoder.", "transformer.encoder.layers.")


def hiera_name(local: str) -> str:
    """SAM 2's name of a weight of its trunk or neck."""
    if match := re.fullmatch(r"convs\.(\d)\.(.*)", local):
        return f"neck.convs.{3 - int(match[1])}.conv.{match[2]}"
    trunk = local.removeprefix("backbone.model.model.")
    return "trunk." + trunk.replace("mlp.fc1.", "mlp.layers.0.").replace("mlp.fc2.", "mlp.layers.1.")


def focal_name(local: str) -> str:
    """FocalNet's name of a weight of timm's features-only model with output norms."""
    if match := re.fullmatch(r"norms\.(\d)\.(.*)", local):
        return f"norm{match[1]}.{match[2]}"
    local = local.removeprefix("model.").replace("stem.", "patch_embed.")
    if match := re.fullmatch(r"layers_(\d)\.downsample\.(.*)", local):
        return f"layers.{int(match[1]) - 1}.downsample.{match[2]}"
    local = re.sub(r"^layers_(\d)\.", r"layers.\1.", local)
    return re.sub(r"norm(\d)_post\.", r"norm\1.", re.sub(r"ls(\d)\.gamma$", r"gamma_\1", local))


def text_tower(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder of a network's state dict in OpenAI's names, the projection as ``lang_proj``."""
    ours = {n.removeprefix("text_encoder."): w for n, w in ours.items() if n.startswith("text_encoder.")}
    state = {
        "lang_proj": ours["lang_proj.weight"].T.contiguous(),
        "positional_embedding": ours["model.embeddings.position_embedding.weight"],
        "token_embedding.weight": ours["model.embeddings.token_embedding.weight"],
    }
    layers = {match[1] for name in ours if (match := re.match(r"model\.encoder\.layers\.(\d+)\.", name))}
    for kind in ("weight", "bias"):
        state[f"ln_final.{kind}"] = ours[f"model.final_layer_norm.{kind}"]
        for layer in layers:
            source, target = f"model.encoder.layers.{layer}.", f"resblocks.{layer}."
            for place, name in _TEXT_BLOCK.items():
                state[f"{target}{name}{kind}"] = ours[f"{source}{place}{kind}"]
            parts = [ours[f"{source}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            state[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)
    return state
