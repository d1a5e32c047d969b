"""CLIP's text towers, each made and saved by its own library: against open_clip and transformers themselves.

UniCL's names are made by renaming.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.networks import BoltzFormer, create_boltzformer
from boltzformer_monai.networks.published import PublishedFile, init_from
from boltzformer_monai.networks.published.clip import ClipSource
from boltzformer_monai.networks.text_encoder import TextEncoder
from tests.networks.cases import SMALL, prompts, randomise
from tests.networks.published.layouts import text_tower

VIT_B_32 = {"dim": 512, "heads": 8, "text_width": 512, "text_layers": 12, "text_heads": 8}
TOKENS = torch.tensor([[49406, 2368, 7634, 530, 49407], [49406, 320, 1125, 49407, 49407]])
TINY_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "projection_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-5,
}


def network(**settings: Any) -> BoltzFormer:
    torch.manual_seed(2)
    return create_boltzformer("tiny", **{**SMALL, "text_norm_eps": 1e-5, **settings}).eval()


def embedded(encoder: TextEncoder) -> Tensor:
    """Token embeddings ``(2, 5, d)`` of prompts without padding."""
    with torch.no_grad():
        return encoder(TOKENS[:, None])[0][:, 0]


def randomised(library: torch.nn.Module) -> torch.nn.Module:
    """Weights as large as trained ones: LayerNorm's eps shows where activations are small."""
    return randomise(library, 1, scale=0.1).eval()


@pytest.mark.parametrize(("name", "activation"), [("ViT-B-32", "gelu"), ("ViT-B-32-quickgelu", "quick_gelu")])
def test_open_clips_vit_b_32(tmp_path: Path, name: str, activation: str):
    torch.manual_seed(1)
    config = open_clip.get_model_config(name)
    vision = {"layers": 1, "width": 64, "image_size": 64, "patch_size": 32}  # the image tower does not matter
    library = randomised(open_clip.CLIP(**{**config, "vision_cfg": vision}))
    images = {name for name in library.state_dict() if name.startswith("visual.")} - {"visual.proj"}
    state = {name: weight for name, weight in library.state_dict().items() if name not in images}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    model = network(**VIT_B_32, text_activation=activation)
    (report,) = init_from(model, {"text_encoder": tmp_path})
    last: list[Tensor] = []
    library.ln_final.register_forward_hook(lambda module, args, output: last.append(output))
    with torch.no_grad():
        pooled = library.encode_text(torch.nn.functional.pad(TOKENS, (0, 77 - TOKENS.shape[1])))
        expected = last[0][:, : TOKENS.shape[1]] @ library.text_projection
    ours = embedded(model.text_encoder)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    # What open_clip itself answers is the token at the end of the text.
    torch.testing.assert_close(ours[torch.arange(2), TOKENS.argmax(1)], pooled, rtol=0, atol=1e-5)
    assert not report.parts[0].random
    assert "1 (compared image and text; no mask depends on it), 1 (encoded images)" in str(report)


@pytest.mark.parametrize("layout", ["text", "text with projection", "whole"])
def test_transformers_clip(tmp_path: Path, layout: str):
    torch.manual_seed(1)
    config = CLIPTextConfig(**TINY_CLIP)
    kinds = {"text": CLIPTextModel, "text with projection": CLIPTextModelWithProjection}
    if layout == "whole":
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        }
        library: Any = CLIPModel(
            CLIPModel.config_class(text_config=config.to_dict(), vision_config=vision, projection_dim=16)
        )
    else:
        library = kinds[layout](config)
    library = randomised(library)
    library.save_pretrained(tmp_path)
    model = network(text_width=16, text_layers=2, text_heads=2, dim=16)
    (report,) = init_from(model, {"text_encoder": tmp_path})
    tower = getattr(library, "text_model", library)
    with torch.no_grad():
        hidden = tower(input_ids=TOKENS).last_hidden_state
        ours = model.text_encoder.model(input_ids=TOKENS).last_hidden_state
    torch.testing.assert_close(ours, hidden, rtol=0, atol=1e-5)
    if layout == "text":
        assert report.parts[0].random == {"text_encoder.lang_proj.weight": "the file has no text projection"}
    else:
        assert not report.parts[0].random
        with torch.no_grad():
            expected = library.text_projection(hidden)
        torch.testing.assert_close(embedded(model.text_encoder), expected, rtol=0, atol=1e-5)


def test_unicls_names(tmp_path: Path):
    source, target = network(text_norm_eps=1e-12), network(text_norm_eps=1e-12)
    randomise(source.text_encoder, 4)
    state = {f"lang_encoder.{name}": weight for name, weight in text_tower(source.state_dict()).items()}
    state["text_projection"] = state.pop("lang_encoder.lang_proj")
    state |= {
        "image_encoder.conv.weight": torch.ones(1),
        "image_projection": torch.ones(2),
        "logit_scale": torch.ones([]),
    }
    torch.save(state, tmp_path / "unicl.pth")
    init_from(target, {"text_encoder": tmp_path / "unicl.pth"})
    assert torch.equal(embedded(target.text_encoder), embedded(source.text_encoder))
    with pytest.raises(ConfigError, match="with text_norm_eps 1e-12, this network with 1e-05; set network_overrides"):
        init_from(network(), {"text_encoder": tmp_path / "unicl.pth"})


def tiny_tower(**changed: Tensor) -> dict[str, Tensor]:
    state = text_tower(network().state_dict())
    state["text_projection"] = state.pop("lang_proj")
    names = {n: f"transformer.{n}" if n.startswith("resblocks.") else n for n in state}
    return {**{names[name]: weight for name, weight in state.items()}, **changed}


def test_a_file_that_does_not_say_its_activation(tmp_path: Path):
    torch.save(tiny_tower(), tmp_path / "clip.pt")
    for activation in ("gelu", "quick_gelu"):
        (report,) = init_from(network(text_activation=activation), {"text_encoder": tmp_path / "clip.pt"})
        assert report.notes[0].startswith("the file does not say its activation")
    with pytest.raises(
        ConfigError, match=r"text_norm_eps 1e-05, this network with 1e-12; .*\{'text_norm_eps': 1e-05\}"
    ):
        init_from(network(text_norm_eps=1e-12), {"text_encoder": tmp_path / "clip.pt"})


def test_a_projection_to_other_channels_stays_at_random(tmp_path: Path):
    torch.save(tiny_tower(text_projection=torch.ones(16, 24)), tmp_path / "clip.pt")
    model = network()
    before = model.text_encoder.lang_proj.weight.clone()
    (report,) = init_from(model, {"text_encoder": tmp_path / "clip.pt"})
    assert torch.equal(model.text_encoder.lang_proj.weight, before)
    assert "left at random: 1 (the file's projection maps to another number of channels)" in str(report)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_act": "gelu"}, "computes with text_activation 'gelu', this network with 'quick_gelu'"),
        ({"num_attention_heads": 4}, "computes with text_heads 4, this network with 2"),
        ({"layer_norm_eps": 1e-6}, "computes with text_norm_eps 1e-06"),
        ({"hidden_size": 32}, "of another shape"),
        (
            {"num_hidden_layers": 3},
            r"unknown \(encoder.layers.2.layer_norm1.bias \(here text_encoder.model.encoder.layers.2",
        ),
        (
            {"num_hidden_layers": 1},
            r"missing \(encoder.layers.1.layer_norm1.bias \(here text_encoder.model.encoder.layers.1",
        ),
    ],
)
def test_a_tower_that_computes_otherwise_is_refused(tmp_path: Path, settings: dict[str, Any], words: str):
    CLIPTextModel(CLIPTextConfig(**{**TINY_CLIP, **settings})).save_pretrained(tmp_path)
    model = network(text_width=16, text_layers=2, text_heads=2, dim=16)
    with pytest.raises((ConfigError, CheckpointError), match=words) as caught:
        init_from(model, {"text_encoder": tmp_path})
    assert "\n" not in str(caught.value)


def test_what_has_no_place_is_named(tmp_path: Path):
    torch.save(tiny_tower(flux=torch.ones(1)), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="published weight 'flux' has no place"):
        init_from(network(), {"text_encoder": tmp_path / "clip.pt"})
    assert prompts(3).shape == (1, 1, 3)


_TOWER = {
    "transformers": ("text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"),
    "open_clip": ("token_embedding.weight", "transformer.resblocks.0.ln_1.weight"),
}


@pytest.mark.parametrize(
    ("layout", "about"),
    [
        ("transformers", {"text_config": 5}),
        ("transformers", {"text_config": {"num_attention_heads": "many"}}),
        ("transformers", {"layer_norm_eps": [1]}),
        ("open_clip", {"model_cfg": {"text_cfg": None}}),
        ("open_clip", {"model_cfg": {"text_cfg": {"heads": "many"}}}),
    ],
)
def test_a_configuration_of_another_form_is_one_line(layout: str, about: dict[str, Any]):
    file = PublishedFile(Path("model.safetensors"), dict.fromkeys(_TOWER[layout], torch.ones(1)), about=about)
    with pytest.raises(CheckpointError, match=r"config.json beside the weights cannot be used") as caught:
        ClipSource().convert(file)
    assert "\n" not in str(caught.value)


def test_a_tower_of_transformers_without_its_configuration_says_what_is_not_known():
    weights = dict.fromkeys(_TOWER["transformers"], torch.ones(1))
    (note,) = ClipSource().convert(PublishedFile(Path("pytorch_model.bin"), weights)).notes
    assert "its activation and heads are not known" in note
