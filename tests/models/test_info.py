"""What a model is, from its files alone."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.models.config import ModelConfig, read_config
from boltzformer_monai.models.convert import convert
from boltzformer_monai.models.info import info_text, model_info
from boltzformer_monai.storage import file_sha256
from tests.models.conftest import DATA, RESTRICTED, write_model

_INFO = """
import sys
from boltzformer_monai.cli import main
code = main(["info", sys.argv[1], "--json"])
assert "torch" not in sys.modules, "PyTorch was imported"
sys.exit(code)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "model.pt", licence=RESTRICTED.as_dict(), learned={"names": ["left ureter"]})
    convert(folder / "model.pt", folder / "mine")
    return folder


@pytest.mark.parametrize("name", ["model.pt", "mine"])
def test_everything_that_a_model_says(models: Path, name: str) -> None:
    info = model_info(models / name)
    assert json.loads(json.dumps(info)) == info
    assert info["kind"] == ("checkpoint" if name == "model.pt" else "model folder")
    assert [each["target"] for each in info["targets"]] == ["lung nodule", "liver | lesion"]
    assert info["targets"][0] == {
        "target": "lung nodule", "modality": "CT", "site": "chest", "window": "level -160, width 1500 HU"
    }  # fmt: skip
    assert info["presence"] == {"high": 0.625, "low": 0.25}
    assert info["licence"] == RESTRICTED.as_dict()
    assert info["network"]["backbone"] == "tiny"
    assert info["network"]["image_size"] == 64
    assert info["network"]["parameters"] == read_config(models / "mine").parameters
    file = models / name if name == "model.pt" else models / name / "model.safetensors"
    assert info["bytes"] == file.stat().st_size
    assert info["sha256"] == (file_sha256(file) if name == "model.pt" else read_config(models / name).sha256)
    text = info_text(info)
    for words in (
        "licence: CC-BY-NC-SA-4.0, research only, https://example.org/licence (restricted)",
        "  lung nodule     CT        chest    level -160, width 1500 HU",
        "presence thresholds: high 0.625, low 0.250",
        "plane: coronal",
        "  train: 3 volumes, 2 patients, 17 slices",
        f"  backbone: facebook/sam2-hiera-small, sha256 {'9' * 64}, licence Apache-2.0",
        "learned from corrected labels: left ureter",
        info["sha256"],
    ):
        assert words in text, words


def test_a_folder_is_read_without_pytorch_in_two_seconds(models: Path) -> None:
    command = [sys.executable, "-c", _INFO, str(models / "mine")]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plane"] == "coronal"
    assert time.monotonic() - started < 10  # 2 s on an idle machine; the tests share theirs


def test_changed_weights_are_noticed(models: Path, tmp_path: Path) -> None:
    convert(models / "model.pt", tmp_path / "odd")
    with (tmp_path / "odd" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(CheckpointError, match="is not the file that config.json describes: its sha256 is"):
        model_info(tmp_path / "odd")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"plane": "sagittal"}, "plane: sagittal"),
        ({"plane": "axial", "planes": ["axial", "coronal"]}, "plane: axial, coronal"),
        ({"protocol": "biomedparse", "plane": ""}, "plane: as the protocol chooses; protocol: biomedparse"),
        ({"protocol": "biomedparse", "presence": None}, "presence thresholds: those of the protocol biomedparse"),
        ({"presence": None}, "presence thresholds: none, though the network has a presence head"),
        ({"presence": {"high": 0.5, "low": 0.125}}, "presence thresholds: high 0.500, low 0.125"),
        ({}, "modalities: CT, MR"),
        ({"modalities": ["US", "pet"]}, "modalities: CT, MR, PET, US"),
        ({"targets": [], "modalities": ["MR"]}, "modalities: MR"),
        ({"targets": []}, "targets: not stated; any prompt is taken, and none is known to be understood"),
        ({"initial_weights": []}, "initial weights: random, or not stated"),
        ({}, "metrics: none; boltzformer evaluate, then boltzformer weights card"),
    ],
)
def test_lines_for_people(info: dict[str, Any], data: dict[str, Any], line: str) -> None:
    """Of a description as ``config.json`` holds it."""
    assert line in info_text(told(info, **data)).splitlines()


def test_without_a_presence_head(info: dict[str, Any]) -> None:
    info["network"]["presence"] = False
    assert "presence head: none" in info_text(told(info, presence=None)).splitlines()


@pytest.fixture(scope="module")
def trained(models: Path) -> dict[str, Any]:
    return json.loads((models / "mine" / "config.json").read_text())


@pytest.fixture
def info(trained: dict[str, Any]) -> dict[str, Any]:
    """The description of the model, to be changed."""
    return copy.deepcopy(trained["description"])


def told(description: dict[str, Any], **data: Any) -> dict[str, Any]:
    """What ``info`` says of a folder with this description, its data changed; without the weights."""
    description["data"] |= data
    config = ModelConfig(description=description, weights_sha256="0" * 64, parameters=1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model.safetensors").write_bytes(b"")
        config = dataclasses.replace(config, weights_sha256=file_sha256(folder / "model.safetensors"))
        (folder / "config.json").write_text(config.as_json())
        return model_info(folder)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (DATA["targets"], '--prompts "lung nodule" --modality CT --checkpoint NAME'),
        (DATA["targets"][1:], '--prompts "liver | lesion" --checkpoint NAME'),
        ([], '--prompts "liver" --modality CT --checkpoint NAME'),
    ],
)
def test_the_example_of_the_card_runs_as_it_stands(tmp_path: Path, targets: list[Any], words: str) -> None:
    """NIfTI states no modality: it is in the command unless the training knew one alone."""
    convert(write_model(tmp_path / "model.pt", targets=targets), tmp_path / "mine")
    assert words.replace("NAME", "mine") in (tmp_path / "mine" / "README.md").read_text()


@pytest.mark.parametrize(
    "data",
    [
        {"training_data": {"fold": 5}},
        {"training_data": {"splits": [1]}},
        {"training_data": {"modalities": "CT"}},
        {"training_data": {"pixel_spacing_mm": [1]}},
        {"training_data": {"slice_spacing_mm": ["a", "b", "c"]}},
        {"modalities": 5},
        {"planes": 5},
        {"learned": {"names": 5}},
        {"learned": "names"},
        {"initial_weights": [{"licence": {"url": "x"}, "part": "x"}]},
        {"presence": {"high": "x"}},
    ],
)
def test_a_strange_description_is_one_line(info: dict[str, Any], data: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be used|presence thresholds") as caught:
        info_text(told(info, **data))
    assert "\n" not in str(caught.value)


def test_half_a_character_is_one_line(models: Path, tmp_path: Path, trained: dict[str, Any]) -> None:
    trained = {**trained, "description": {"data": {"a": "\ud800"}}}
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).write_bytes((models / "mine" / file).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(trained))
    with pytest.raises(CheckpointError, match="has not the form of a model's"):
        model_info(tmp_path)


def test_weights_without_a_description(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="weights convert"):
        model_info(tmp_path / "a.pt")
    write_model(tmp_path / "b.pt", targets=[{"target": "x", "window": {"kind": "?"}}])
    with pytest.raises(CheckpointError, match="description of its targets cannot be used"):
        model_info(tmp_path / "b.pt")
