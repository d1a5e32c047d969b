"""BiomedParse v2: a small network's weights come back, and the released model's complete list of keys has its places.

The released file itself is not at hand: its keys and shapes are recorded, its numbers made up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.weights_memory import measure
from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks import BoltzFormer, network_config
from boltzformer_monai.networks.biomedparse import biomedparse_decoder
from boltzformer_monai.networks.pixel_decoder import PixelDecoder
from boltzformer_monai.networks.published import Converted, PublishedFile, load_published
from boltzformer_monai.networks.published.biomedparse_v2 import BiomedParseV2Source
from boltzformer_monai.networks.published.importing import import_file
from boltzformer_monai.networks.text_encoder import clip_text_encoder
from tests.golden.biomedparse_network import focal_backbone
from tests.networks.cases import images, prompts, randomise
from tests.networks.published.layouts import biomedparse_v2_state

LOSS = ("loss_function.loss_fn.dice_loss.class_weight", "loss_function.cls_loss_fn.pos_weight")
ATTENTION = "sem_seg_head.predictor.transformer_self_attention_layers.4.self_attn.in_proj_weight"
NORM = "sem_seg_head.predictor.decoder_norm.weight"


def small_network(seed: int) -> BoltzFormer:
    """BiomedParse v2 with everything small."""
    torch.manual_seed(seed)
    backbone = focal_backbone(embed_dim=4, depths=[1, 1, 2, 1])
    sizes = {"dim": 16, "heads": 2, "hidden": 20, "layers": 3, "queries": 5}
    config = network_config("biomedparse_v2", image_size=64, **sizes)
    network = BoltzFormer(
        backbone=backbone,
        pixel_decoder=PixelDecoder(in_channels=backbone.channels, dim=16, heads=2, hidden=20, layers=2),
        text_encoder=clip_text_encoder(dim=16, width=12, layers=2, heads=2),
        decoder=biomedparse_decoder(config, edge_queries=2, attend_padding=True),
        mean=(0.1 + seed, 0.2, 0.3),
        std=(1, 2 + seed, 3),
        default_tokens=(1, 2),
    )
    randomise(network, seed)
    return network.eval()


def converted(state: dict[str, Tensor]) -> Converted:
    return BiomedParseV2Source().convert(PublishedFile(Path("recording"), state))


def lightning(state: dict[str, Tensor], optimizer_numbers: int = 10) -> dict[str, Any]:
    """As Lightning writes a training."""
    moments = {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(optimizer_numbers)}}
    return {
        "epoch": 9,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**{f"model.{name}": w for name, w in state.items()}, **dict.fromkeys(LOSS, torch.ones(1))},
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-5, "params": [0]}]}],
        "hyper_parameters": {"lr": 1e-5},
    }


def test_a_small_networks_weights_come_back(tmp_path: Path):
    source, target = small_network(1), small_network(2)
    path, image, tokens = tmp_path / "small.ckpt", images(2, 64, 3), prompts(4, 6, batch=2)
    expected = source(image, tokens, with_presence=True)
    for content in (lightning(biomedparse_v2_state(source)), biomedparse_v2_state(source)):
        target = small_network(2)
        torch.save(content, path)
        report = load_published(target, path)
        for ours, theirs in zip(target(image, tokens, with_presence=True), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # mean and std went through the 0–255 scale
        assert "classified masks" in str(report)
    assert torch.equal(target.backbone.model.stem.proj.weight, source.backbone.model.stem.proj.weight)


def test_an_extra_weight_for_the_place_of_another_is_refused(tmp_path: Path):
    state = biomedparse_v2_state(small_network(1))
    state["sem_seg_head.predictor.query_feat.weight"] = torch.zeros(1)  # the real one ends in query_feat_
    torch.save(lightning(state), tmp_path / "small.ckpt")
    with pytest.raises(CheckpointError, match=r"two published weights are .*query_feat\.weight' here"):
        load_published(small_network(2), tmp_path / "small.ckpt")


def test_the_report_of_a_lightning_file(tmp_path: Path):
    path = tmp_path / "small.ckpt"
    torch.save(lightning(biomedparse_v2_state(small_network(1))), path)
    lines = load_published(small_network(2), path).lines()
    assert lines[0] == f"{path}: BiomedParse v2 (microsoft/BiomedParse)"
    assert lines[-1].startswith("beside the weights, not read: epoch, ")
    assert "2 (of the training loss)" in lines[-2]


@pytest.fixture(scope="module")
def keys(golden: Path) -> dict[str, list[int]]:
    """The released model's keys and shapes."""
    path = golden.with_name("golden_biomedparse") / "keys_biomedparse_v2.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return json.loads(path.read_text())


def shapes_alone(keys: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights of these shapes that take no memory."""
    return {name: torch.full((), 114.495).expand(shape) for name, shape in keys.items()}


def released(state: dict[str, Tensor]) -> PublishedFile:
    return PublishedFile(Path("model.ckpt"), lightning(state)["state_dict"])


def test_every_key_of_the_released_model_has_its_place(keys: dict[str, list[int]]):
    imported = import_file(released(shapes_alone(keys)))
    assert imported.source == "biomedparse_v2"
    assert imported.config == network_config("biomedparse_v2", std=(0.449,) * 3)  # as all numbers of the file
    assert len(imported.report.dropped) == 4
    assert sum(part.numbers for part in imported.report.parts) == 371_798_784 - 512 * 512 - 1 - 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: state.pop(NORM),
            rf"1 missing \(model.{NORM} \(here decoder.query_decoder.mask_head.norm.weight\)\)",
        ),
        (
            lambda state: state.pop("sem_seg_head.predictor.classifier.bias"),
            r"1 missing \(model.sem_seg_head.predictor.classifier.bias \(here decoder.presence.head.bias\)\)",
        ),
        (
            lambda state: state.pop("backbone.layers.2.blocks.11.modulation.f.bias"),
            r"1 missing \(model.backbone.layers.2.blocks.11.modulation.f.bias \(here backbone.model.layers_2.",
        ),
        (
            lambda state: state.pop("sem_seg_head.predictor.query_embed_.weight"),
            r"1 missing \(model.sem_seg_head.predictor.query_embed_.weight \(here ",
        ),
        (
            lambda state: state.pop(ATTENTION),
            rf"1 missing \(model.{ATTENTION} \(here decoder.query_decoder.layers.4.inter.",
        ),
        (lambda state: state.pop("pixel_std"), "published weight 'pixel_std' is missing"),
        (lambda state: state.pop("sem_seg_head.predictor.query_feat_.weight"), "weights of no known source"),
        (
            lambda state: state.update({"sem_seg_head.predictor.flux.weight": torch.ones(3)}),
            "published weight 'model.sem_seg_head.predictor.flux.weight' has no place",
        ),
        (lambda state: state.update(flux=torch.ones(3)), "published weight 'model.flux' has no place"),
        (
            lambda state: state.update({NORM: torch.ones(511)}),
            rf"1 of another shape \(model.{NORM} \(here ",
        ),
        (
            lambda state: state.update({"backbone.patch_embed.proj.weight": torch.ones(192, 4, 7, 7)}),
            r"1 of another shape \(model.backbone.patch_embed.proj.weight \(here backbone.model.stem.proj.weight",
        ),
        (lambda state: state.update(pixel_mean=torch.ones(1)), r"'pixel_mean' is of shape \[1\]"),
        (
            lambda state: state.update({"sem_seg_head.predictor.query_embed_.weight": torch.ones(15, 512)}),
            r"1 of another shape \(model.sem_seg_head.predictor.query_embed_.weight \(here ",
        ),
    ],
)
def test_one_key_amiss_is_refused_by_name(keys: dict[str, list[int]], change: Any, words: str):
    state = shapes_alone(keys)
    change(state)
    with pytest.raises(CheckpointError, match=words) as caught:
        import_file(released(state))
    assert "\n" not in str(caught.value)


@pytest.fixture
def released_size(keys: dict[str, list[int]], tmp_path: Path) -> Iterator[Path]:
    """A file of the released size with random weights and half as much of the optimizer's."""
    path, generator = tmp_path / "model.ckpt", torch.Generator().manual_seed(0)
    numbers = sum(torch.Size(shape).numel() for shape in keys.values())
    # Random numbers cost more time than memory: the same ones, in another place for each weight.
    pool = torch.randn(1 << 24, generator=generator)
    repeated = pool.repeat(numbers // len(pool) + 1)
    ends = torch.tensor([0, *(torch.Size(shape).numel() for shape in keys.values())]).cumsum(0).tolist()
    state = {
        name: repeated[start:end].view(shape)
        for (name, shape), start, end in zip(keys.items(), ends[:-1], ends[1:], strict=True)
    }
    state |= {name: torch.full((1, 3, 1, 1), value) for name, value in (("pixel_mean", 114.495), ("pixel_std", 57.63))}
    torch.save(lightning(state, numbers // 2), path)
    del repeated, state
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="measures memory by /proc")
def test_a_file_of_the_released_size_takes_little_more_than_its_weights(released_size: Path):
    """Pages of mapped files included; a conversion with all libraries, a network in memory above these."""
    model = released_size.with_name("model")
    try:
        found = measure(released_size, model, steps=("convert", "load"))
        size, config = (model / "model.safetensors").stat().st_size, json.loads((model / "config.json").read_text())
    finally:
        shutil.rmtree(model, ignore_errors=True)
    weights = 4 * config["parameters"]
    assert weights > 1.48e9
    assert weights < size < 1.001 * weights
    assert released_size.stat().st_size > 1.45 * weights  # the optimizer's state is in it
    above = {step: (each["peak"] - each["libraries"]) / weights for step, each in found.items()}
    assert found["convert"]["peak"] < 1.3 * weights, found
    assert above["convert"] < 0.3
    assert 0.9 < above["load"] < 1.3
