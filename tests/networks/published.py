"""Our weights under the names of the published code, written out by hand: the way back of ``networks/reference.py``."""

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
        if name in ("mean", "std"):
            continue
        part, _, local = name.partition(".")
        if part == "decoder" and local.startswith("aggregation."):
            state[f"output_{local.removeprefix('aggregation.')}"] = weight
        elif part == "decoder":
            state[f"sem_seg_head.predictor.{_decoder(local.removeprefix('query_decoder.'))}"] = weight
        elif part == "pixel_decoder":
            state[f"sem_seg_head.pixel_decoder.{_pixel_decoder(local)}"] = weight
        elif part == "backbone":
            state[f"backbone.{_hiera(local)}"] = weight
    state.update(_language({n.removeprefix("text_encoder."): w for n, w in ours.items() if n.startswith("text_enc")}))
    return state


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


def _hiera(local: str) -> str:
    if match := re.fullmatch(r"convs\.(\d)\.(.*)", local):
        return f"neck.convs.{3 - int(match[1])}.conv.{match[2]}"
    trunk = local.removeprefix("backbone.model.model.")
    return "trunk." + trunk.replace("mlp.fc1.", "mlp.layers.0.").replace("mlp.fc2.", "mlp.layers.1.")


def _language(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "sem_seg_head.predictor.language_encoder."
    text = f"{prefix}encoder_transformer."
    state = {f"{prefix}lang_proj": ours["lang_proj.weight"].T}
    state[f"{text}positional_embedding"] = ours["model.embeddings.position_embedding.weight"]
    state[f"{text}token_embedding.weight"] = ours["model.embeddings.token_embedding.weight"]
    for kind in ("weight", "bias"):
        state[f"{text}ln_final.{kind}"] = ours[f"model.final_layer_norm.{kind}"]
    layers = {match[1] for name in ours if (match := re.match(r"model\.encoder\.layers\.(\d+)\.", name))}
    for layer in layers:
        source, target = f"model.encoder.layers.{layer}.", f"{text}resblocks.{layer}."
        for kind in ("weight", "bias"):
            for place, name in _TEXT_BLOCK.items():
                state[f"{target}{name}{kind}"] = ours[f"{source}{place}{kind}"]
            parts = [ours[f"{source}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            state[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)
    return state
