"""Which files are read, which refused, and who recognises them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.networks.published import SOURCES, PublishedFile, import_weights
from boltzformer_monai.networks.published.reading import read_published
from boltzformer_monai.networks.published.source import find_source
from tests.networks.published.layouts import biomedparse_v2_state, published_state
from tests.networks.published.test_biomedparse_v2 import lightning
from tests.networks.published.test_biomedparse_v2 import small_network as biomedparse
from tests.networks.published.test_boltzformer import hiera_network
from tests.networks.published.test_clip import tiny_tower
from tests.networks.published.test_sam2 import hiera, sam2_state
from tests.networks.published.test_seem import seem_state

WEIGHTS = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch(tmp_path: Path, suffix: str, key: str | None, zipped: bool):
    path = tmp_path / f"weights{suffix}"
    content: dict[str, Any] = WEIGHTS if key is None else {key: WEIGHTS, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    file = read_published(path)
    assert {name: weight.tolist() for name, weight in file.weights.items()} == {
        n: w.tolist() for n, w in WEIGHTS.items()
    }
    assert file.left == (() if key is None else ("epoch", "optimizer"))


def test_names_that_data_parallel_wrote(tmp_path: Path):
    torch.save({f"module.{name}": weight for name, weight in WEIGHTS.items()}, tmp_path / "a.pt")
    assert set(read_published(tmp_path / "a.pt").weights) == set(WEIGHTS)


def test_a_folder_with_its_configuration(tmp_path: Path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"layer_norm_eps": 1e-6}))
    file = read_published(tmp_path)
    assert file.path == tmp_path / "model.safetensors"
    assert file.about == {"layer_norm_eps": 1e-6}
    # A file of another name may lie in a folder of others' configurations.
    save_file(WEIGHTS, tmp_path / "mine.safetensors")
    assert read_published(tmp_path / "mine.safetensors").about == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json cannot be read"):
        read_published(tmp_path)


def test_weights_that_repeat_a_few_bytes_are_refused(tmp_path: Path):
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds fewer bytes than its weights claim"):
        read_published(tmp_path / "a.pt")


class Strange:
    """What weights_only does not load."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": 5}, "its 'state_dict' is a int, not named weights"),
        ({"model": {}}, "its 'model' is a dict, not named weights"),
        ({"a": 5}, "its entry 'a' is a int, not a tensor"),
        ({"state_dict": {"a": torch.ones(1), "b": [1]}}, "its entry 'b' is a list, not a tensor"),
        ({3: torch.ones(1)}, "its entry 3 is a Tensor"),
        (torch.ones(3), "holds a Tensor, not a checkpoint"),
        (
            {"state_dict": WEIGHTS, "hyper_parameters": Strange()},
            r"loading its \S*Strange could run code; save its weights",
        ),
    ],
)
def test_what_is_no_file_of_weights(tmp_path: Path, content: Any, words: str):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=words) as caught:
        read_published(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_folders_and_files_that_are_not_there(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no weights in the folder .*model.safetensors"):
        read_published(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_published(tmp_path / "nothing.pt")


def timm_names() -> dict[str, torch.Tensor]:
    return hiera(1).backbone.backbone.model.model.state_dict()


FILES: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "boltzformer": lambda: published_state(hiera_network(1)),
    "biomedparse_v2": lambda: lightning(biomedparse_v2_state(biomedparse(1)))["state_dict"],
    "sam2": lambda: sam2_state(hiera(1)),
    "timm": timm_names,
    "seem": lambda: seem_state(biomedparse(1)),
    "clip": tiny_tower,
    "checkpoint": lambda: hiera(1).state_dict(),
    "focalnet": lambda: {
        "patch_embed.proj.weight": torch.ones(1),
        "layers.0.blocks.0.modulation.f.weight": torch.ones(1),
    },
}


@pytest.mark.parametrize("source", SOURCES.names())
def test_every_source_recognises_its_own_alone(source: str):
    names = set(FILES[source]())
    assert [each for each in SOURCES.names() if SOURCES.make(each, settings={}).recognises(names)] == [source]


def test_weights_of_nobody(tmp_path: Path):
    torch.save(WEIGHTS, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"holds weights of no known source \(a, b, …\); known are biomedparse_v2"
    ):
        import_weights(tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="unknown source of weights 'sam3'; did you mean 'sam2'"):
        import_weights(tmp_path / "a.pt", source="sam3")
    with pytest.raises(CheckpointError, match="published weight 'a' has no place"):
        import_weights(tmp_path / "a.pt", source="sam2")


def test_a_source_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    class Mine:
        title = "mine"

        def recognises(self, names: Any) -> bool:
            return "mine.weight" in names

    monkeypatch.setitem(SOURCES._factories, "mine", Mine)
    assert find_source(PublishedFile(Path("x"), {"mine.weight": torch.ones(1)}))[0] == "mine"
    both = {"mine.weight": torch.ones(1), "image_encoder.trunk.x": torch.ones(1)}
    with pytest.raises(CheckpointError, match="looks like weights of mine and sam2"):
        find_source(PublishedFile(Path("x"), both))
