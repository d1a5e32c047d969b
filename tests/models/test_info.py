"""What a model is, from its files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.models.config import read_config
from boltzformer_monai.models.convert import convert
from boltzformer_monai.models.info import info_text, model_info
from boltzformer_monai.storage import file_sha256
from tests.models.conftest import RESTRICTED, write_model

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


def test_weights_without_a_description(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="weights convert"):
        model_info(tmp_path / "a.pt")
    write_model(tmp_path / "b.pt", targets=[{"target": "x", "window": {"kind": "?"}}])
    with pytest.raises(CheckpointError, match="description of its targets cannot be used"):
        model_info(tmp_path / "b.pt")
