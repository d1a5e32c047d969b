"""A model folder: the same network, refused when it was changed, and never half there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from boltzformer_monai.errors import CheckpointError, StorageError
from boltzformer_monai.models.config import read_config
from boltzformer_monai.models.convert import convert
from boltzformer_monai.models.folder import load_model, read_model, save_model
from boltzformer_monai.models.safetensors_file import write_safetensors
from boltzformer_monai.networks.weights import load_checkpoint, read_weights
from boltzformer_monai.storage import file_sha256
from tests.models.conftest import DATA, RESTRICTED, write_model
from tests.networks.cases import images, prompts


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("folders") / "mine"
    convert(checkpoint, target)
    return target


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(images(2), prompts(4, 3, batch=2))


def test_the_way_there_and_back_changes_no_bit(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "back.pt")
    expected, description = load_checkpoint(checkpoint)
    for place in (folder, tmp_path / "back.pt", folder / "model.safetensors"):
        found = load_model(place)
        assert torch.equal(logits(found.network), logits(expected)), place
        assert found.description.network == description.network
        assert found.description.data == DATA
    first, last = read_model(checkpoint), read_model(tmp_path / "back.pt")
    assert first["description"] == last["description"]
    assert list(first["model"]) == sorted(first["model"], key=list(first["model"]).index)
    assert all(torch.equal(first["model"][name], last["model"][name]) for name in first["model"])


def test_a_folder_says_what_it_is(checkpoint: Path, folder: Path) -> None:
    assert sorted(each.name for each in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = read_config(folder)
    assert config.weights_sha256 == file_sha256(folder / "model.safetensors")
    assert config.checkpoint_sha256 == file_sha256(checkpoint)
    assert config.parameters == sum(each.numel() for each in load_file(folder / "model.safetensors").values())
    assert load_model(folder).sha256 == config.sha256
    assert load_model(checkpoint).sha256 == file_sha256(checkpoint)


def _edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _description(name: str, **values: Any) -> Any:
    return lambda content: content["description"][name].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda at: _flip(at / "model.safetensors"), "model.safetensors is not the file that config.json describes"),
        (lambda at: os.truncate(at / "model.safetensors", 999), "is not the file that config.json describes"),
        (lambda at: _edit(at / "config.json", _description("data", plane="axial")), "was changed after it was written"),
        (lambda at: _edit(at / "config.json", _description("network", queries=4)), "was changed after it was written"),
        (lambda at: _edit(at / "config.json", lambda c: c.update(weights_sha256="0" * 64)), "is not the file"),
        (lambda at: _edit(at / "config.json", lambda c: c.update(version=2)), "is of version '2', and this package"),
        (lambda at: _edit(at / "config.json", lambda c: c.update(format="x")), "none of a model of this package"),
        (lambda at: _edit(at / "config.json", lambda c: c.pop("parameters")), "has not the form of a model's"),
        (lambda at: (at / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda at: (at / "config.json").unlink(), "it lacks config.json or model.safetensors"),
        (lambda at: (at / "model.safetensors").unlink(), "it lacks config.json or model.safetensors"),
    ],
)
def test_what_was_changed_is_refused(copy: Path, change: Any, words: str) -> None:
    change(copy)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(copy)
    assert "\n" not in str(caught.value)


def test_a_description_that_fits_its_hash_but_not_its_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = read_model(checkpoint)
    content["description"]["network"]["queries"] = 4
    save_model(content, tmp_path / "odd")
    with pytest.raises(CheckpointError, match="does not fit this network: weights .* of another shape"):
        load_model(tmp_path / "odd")


def test_a_second_model_takes_the_place_of_the_first_whole(copy: Path, tmp_path: Path) -> None:
    (copy / "metrics.json").write_text("{}")
    convert(write_model(tmp_path / "other.pt", seed=8), copy)
    assert not (copy / "metrics.json").exists()  # of the first one
    assert load_model(copy).description.data == DATA
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy", "other.pt"]


def test_a_failed_writing_leaves_the_older_one(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_model(copy).sha256
    other = write_model(tmp_path / "other.pt", seed=8)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("boltzformer_monai.models.folder.write_card", refuse)
        with pytest.raises(StorageError, match="No space left"):
            convert(other, copy)
    assert load_model(copy).sha256 == before
    real = os.replace

    def once(source: Any, target: Any) -> None:
        if Path(target) == copy and ".boltzformer-" in str(source):
            raise OSError(5, os.strerror(5))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", once)
        with pytest.raises(StorageError, match="Input/output"):
            convert(other, copy)
    assert load_model(copy).sha256 == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy", "other.pt"]


@pytest.mark.parametrize("kind", ["file", "stranger", "notes"])
def test_nothing_of_the_user_s_is_replaced(checkpoint: Path, folder: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    elif kind == "notes":
        shutil.copytree(folder, target)
        (target / "notes.txt").write_text("mine")
    else:
        target.mkdir()
        (target / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match="which would be lost"):
        convert(checkpoint, target)
    with pytest.raises(CheckpointError, match="it is the input"):
        convert(checkpoint, checkpoint)
    (tmp_path / "a.pt").mkdir()
    with pytest.raises(CheckpointError, match="it is a folder"):
        convert(checkpoint, tmp_path / "a.pt")


def test_a_licence_goes_with_the_model(tmp_path: Path) -> None:
    write_model(tmp_path / "model.pt", licence=RESTRICTED.as_dict())
    convert(tmp_path / "model.pt", tmp_path / "mine")
    assert load_model(tmp_path / "model.pt").licence == load_model(tmp_path / "mine").licence == RESTRICTED
    write_model(tmp_path / "model.pt", licence={"name": "x"})
    with pytest.raises(CheckpointError, match="licence cannot be used"):
        load_model(tmp_path / "model.pt")


def test_safetensors_are_what_the_library_reads(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    weights = {
        "view": base[1:3, ::2],
        "same": base,
        "again": base,
        "scalar": torch.tensor(5),
        "empty": torch.zeros(0, 3),
        "odd": torch.arange(3, dtype=torch.uint8),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "truth": torch.tensor([True, False, True]),
        "double": torch.rand(2, dtype=torch.float64),
    }
    write_safetensors(weights, tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(weights)
    for name, weight in weights.items():
        assert found[name].dtype == weight.dtype, name
        assert torch.equal(found[name], weight), name
    with pytest.raises(CheckpointError, match=r"weight 'c' is of the type torch.complex64"):
        write_safetensors({"c": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "b.safetensors")


@pytest.mark.parametrize("kind", ["model.pt", "mine"])
def test_a_file_that_is_replaced_while_it_is_read_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The hash in the results would be that of another model."""
    place = tmp_path / kind
    if kind == "mine":
        save_model(read_model(checkpoint), place)
    else:
        shutil.copy(checkpoint, place)
    file = place / "model.safetensors" if kind == "mine" else place

    def replaced_after(path: Path, **settings: Any) -> Any:
        content = read_weights(path, **settings)
        shutil.copy(file, tmp_path / "new")
        (tmp_path / "new").replace(file)
        return content

    for module in ("networks.weights", "models.folder"):
        monkeypatch.setattr(f"boltzformer_monai.{module}.read_weights", replaced_after)
    with pytest.raises(CheckpointError, match="was changed while it was read; run the command again"):
        load_model(place)
