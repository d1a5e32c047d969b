"""X-Decoder, SEEM and BiomedParse v1: names as their code has them, made by renaming; no file of theirs was seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.networks import BoltzFormer
from boltzformer_monai.networks.published import import_weights, init_from
from tests.networks.published.layouts import biomedparse_v2_state
from tests.networks.published.test_biomedparse_v2 import small_network

PREDICTOR = "sem_seg_head.predictor."


def seem_state(network: BoltzFormer) -> dict[str, Tensor]:
    state = biomedparse_v2_state(network)
    stem = "backbone.patch_embed.proj.weight"
    kept = {n: w for n, w in state.items() if n.startswith(("backbone.", "sem_seg_head.pixel_decoder."))}
    kept[stem] = kept[stem][:, [1, 0, 2]]  # colours: no other order of channels
    for name, weight in state.items():
        if name.startswith(f"{PREDICTOR}language_encoder."):
            local = name.removeprefix(f"{PREDICTOR}language_encoder.")
            kept[f"{PREDICTOR}lang_encoder.{local.replace('encoder_transformer.', 'lang_encoder.')}"] = weight
    others = ("query_feat.weight", "class_embed", "pn_indicator.weight", "lang_encoder.biomed_encoder.pooler.weight")
    return {**kept, **{f"{PREDICTOR}{name}": torch.zeros(2) for name in others}}


def test_its_encoders_are_initial_weights(tmp_path: Path):
    source, target = small_network(1), small_network(2)
    path = tmp_path / "seem.pt"
    torch.save(seem_state(source), path)
    before = target.decoder.state_dict()
    before = {name: weight.clone() for name, weight in before.items()}
    reports = init_from(target, dict.fromkeys(("backbone", "pixel_decoder", "text_encoder"), path))
    assert [len(report.parts) for report in reports] == [1, 1, 1]
    for part in ("backbone", "pixel_decoder", "text_encoder"):
        theirs = getattr(source, part).state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in getattr(target, part).state_dict().items())
    assert all(torch.equal(weight, before[name]) for name, weight in target.decoder.state_dict().items())
    assert "3 (of a decoder that computes another function)" in str(reports[0])
    assert "2 (of a text encoder that the masks do not use)" in str(reports[0])


def test_its_decoder_is_not_taken(tmp_path: Path):
    path = tmp_path / "seem.pt"
    torch.save(seem_state(small_network(1)), path)
    with pytest.raises(CheckpointError, match=r"holds no decoder; it holds backbone, pixel_decoder, text_encoder"):
        init_from(small_network(2), {"model": path})
    assert import_weights(path).config is None


def test_a_strange_weight_is_named(tmp_path: Path):
    torch.save({**seem_state(small_network(1)), "flux.weight": torch.ones(1)}, tmp_path / "seem.pt")
    with pytest.raises(CheckpointError, match="'flux.weight' has no place"):
        init_from(small_network(2), {"backbone": tmp_path / "seem.pt"})


def test_an_encoder_that_normalises_before_is_another_function(tmp_path: Path):
    torch.save(seem_state(small_network(1)), tmp_path / "seem.pt")
    target = small_network(2)
    for layer in target.pixel_decoder.encoder:
        layer.pre_norm = True
    with pytest.raises(
        ConfigError, match="the pixel_decoder of .* computes with pre_norm False, this network with True"
    ):
        init_from(target, {"pixel_decoder": tmp_path / "seem.pt"})
