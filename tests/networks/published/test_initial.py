"""Starting from this package's own checkpoints, whole or in parts, and the table of parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.networks import BoltzFormer, network_config
from boltzformer_monai.networks.published import describe_parts, import_weights, init_from
from boltzformer_monai.networks.weights import Description, save_checkpoint
from tests.networks.cases import SMALL, images, prompts, small_network
from tests.networks.published.layouts import published_state
from tests.networks.published.test_boltzformer import hiera_network
from tests.networks.published.test_sam2 import hiera, sam2_state
from tests.networks.test_weights import as_version_1


def saved(path: Path, network: BoltzFormer, change: Any = None, **settings: Any) -> Path:
    description = Description(network_config("tiny", **{**SMALL, **settings}), {})
    content = {"model": network.state_dict(), "description": description.state_dict()}
    if change is not None:
        change(content)
    save_checkpoint(content, path)
    return path


def differing(one: BoltzFormer, other: BoltzFormer) -> set[str]:
    """Parts with weights that differ."""
    theirs = other.state_dict()
    return {n.split(".")[0] for n, w in one.state_dict().items() if n not in theirs or not torch.equal(w, theirs[n])}


def test_a_whole_checkpoint(tmp_path: Path):
    source, target = small_network(1), small_network(2)
    path = saved(tmp_path / "model.pt", source)
    (report,) = init_from(target, {"model": path})
    assert not differing(source, target)
    image, tokens = images(1), prompts(4, 3)
    assert torch.equal(target(image, tokens), source(image, tokens))
    assert [part.part for part in report.parts] == ["backbone", "pixel_decoder", "text_encoder", "decoder"]
    imported = import_weights(path)
    assert imported.source == "checkpoint"
    assert torch.equal(imported.network()(image, tokens), source(image, tokens))


def test_a_model_folder(tmp_path: Path):
    source, target = small_network(1), small_network(2)
    content = torch.load(saved(tmp_path / "model.pt", source), weights_only=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(content["model"], folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"format": "boltzformer-model", "description": content["description"]})
    )
    init_from(target, {"model": folder})
    assert not differing(source, target)
    with pytest.raises(ConfigError, match="computes with text_heads 2, this network with 4"):
        init_from(small_network(2, text_heads=4), {"text_encoder": folder})


def test_one_of_version_1(tmp_path: Path):
    source, target = small_network(1, presence=True), small_network(2, presence=True)
    init_from(target, {"model": saved(tmp_path / "old.pt", source, as_version_1, presence=True)})
    assert not differing(source, target)


@pytest.mark.parametrize("part", ["backbone", "pixel_decoder", "text_encoder", "decoder"])
def test_one_part_of_it(tmp_path: Path, part: str):
    source, target = small_network(1), small_network(2)
    untouched = differing(source, target) - {part}
    (report,) = init_from(target, {part: saved(tmp_path / "model.pt", source)})
    assert differing(source, target) == untouched
    assert [each.part for each in report.parts] == [part]
    rows = describe_parts(target, [report])
    assert rows[0].split() == ["part", "tensors", "from", "at", "random", "frozen"]
    for row in rows[1:]:
        assert ("model.pt (a checkpoint of this package)" in row) == (row.split()[0] == part)
        assert ("random weights" in row) == (row.split()[0] != part)


def test_a_part_named_beside_the_whole_comes_from_its_own_file(tmp_path: Path):
    first, second, target = (small_network(seed) for seed in (1, 2, 3))
    paths = {"text_encoder": saved(tmp_path / "2.pt", second), "model": saved(tmp_path / "1.pt", first)}
    reports = init_from(target, paths)
    assert differing(target, first) == {"text_encoder"}
    assert "text_encoder" not in differing(target, second)
    assert [part.part for part in reports[0].parts] == ["backbone", "pixel_decoder", "decoder"]


def test_the_table_shows_what_is_random_and_frozen(tmp_path: Path):
    source, target = small_network(1), small_network(2, presence=True)
    (report,) = init_from(target, {"decoder": saved(tmp_path / "model.pt", source)})
    target.text_encoder.requires_grad_(False)
    rows = {row.split()[0]: row for row in describe_parts(target, [report])[1:]}
    presence = len(list(target.decoder.presence.parameters()))
    assert rows["decoder"].split()[-2:] == [str(presence), "–"]
    of_text = str(len(list(target.text_encoder.parameters())))
    assert rows["text_encoder"].split()[-2:] == [of_text, of_text]
    assert f"left at random: {presence} (the checkpoint has no presence head)" in str(report)


def test_a_presence_head_that_the_network_has_not(tmp_path: Path):
    source = small_network(1, presence=True)
    (report,) = init_from(small_network(2), {"decoder": saved(tmp_path / "model.pt", source, presence=True)})
    assert "(the network has no presence head)" in str(report)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (
            {"queries": 4},
            CheckpointError,
            r"of another shape \(decoder.aggregation.deconv.weight, decoder.query_decoder.query_emb",
        ),
        ({"layers": 3}, CheckpointError, r"unknown \(decoder.query_decoder.layers.3"),
        ({"layers": 5}, CheckpointError, r"missing \(decoder.query_decoder.layers.4"),
        ({"heads": 4}, ConfigError, "computes with heads 2, this network with 4"),
        ({"text_heads": 4}, ConfigError, "computes with text_heads 2, this network with 4"),
        (
            {"text_activation": "gelu"},
            ConfigError,
            "computes with text_activation 'quick_gelu', this network with 'gelu'",
        ),
        ({"pre_norm": False}, ConfigError, "computes with pre_norm True, this network with False"),
    ],
)
def test_nothing_is_taken_of_another_network(tmp_path: Path, target: dict[str, Any], error: type, words: str):
    path, network = saved(tmp_path / "model.pt", small_network(1)), small_network(2, **target)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with pytest.raises(error, match=words) as caught:
        init_from(network, {"model": path})
    assert "\n" not in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_a_second_file_that_does_not_fit_takes_the_first_one_with_it(tmp_path: Path):
    good, network = saved(tmp_path / "good.pt", small_network(1)), small_network(2)
    bad = saved(tmp_path / "bad.pt", small_network(1, dim=32, text_width=32), dim=32, text_width=32)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with pytest.raises(CheckpointError, match="bad.pt does not fit"):
        init_from(network, {"backbone": good, "text_encoder": bad})
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_unknown_parts():
    with pytest.raises(ConfigError, match="unknown part to start from 'backbones'; did you mean 'backbone'"):
        init_from(small_network(1), {"backbones": "x"})


def test_images_normalised_otherwise_are_a_note(tmp_path: Path):
    path = saved(tmp_path / "model.pt", small_network(1, mean=(0.4,)), mean=(0.4,))
    (report,) = init_from(small_network(2), {"backbone": path})
    assert report.notes[0].startswith("its images were normalised with {'mean': [0.4]")
    (report,) = init_from(small_network(2), {"text_encoder": path})
    assert not report.notes


def test_a_published_model_starts_a_network_with_a_presence_head(tmp_path: Path):
    torch.save(published_state(hiera_network(1)), tmp_path / "published.pt")
    target = hiera_network(2)
    target.decoder.presence = small_network(0, presence=True).decoder.presence
    (report,) = init_from(target, {"model": tmp_path / "published.pt"})
    assert "(the published model has no presence head)" in str(report)
    image = images(1, 64, 3)
    assert torch.equal(target(image), hiera_network(1)(image))


def test_two_sources_for_one_network(tmp_path: Path):
    torch.save({"model": sam2_state(hiera(1))}, tmp_path / "sam2.pt")
    network = hiera(2)
    own = small_network(3)
    reports = init_from(network, {"backbone": tmp_path / "sam2.pt", "text_encoder": saved(tmp_path / "own.pt", own)})
    assert [report.source for report in reports] == ["SAM 2 (facebookresearch/sam2)", "a checkpoint of this package"]
    table = "\n".join(describe_parts(network, reports))
    assert "sam2.pt (SAM 2 (facebookresearch/sam2))" in table
