"""What names a model: a path, or the id of one in the hub's cache; nothing is fetched to find out."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.models.convert import convert
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.models.place import hub_id, locate


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        (Path("owner/some.model_2-1"), ("owner/some.model_2-1", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3")),
        ("runs/model.pt", None),
        ("runs/weights.safetensors", None),
        ("tests/models", None),  # a folder of that name is there
        ("tests/nothing", None),
        ("name", None),
        ("/owner/name", None),
        ("../owner/name", None),
        ("a/b/c", None),
        ("owner/", None),
    ],
)
def test_ids_of_the_hub(place: str | Path, expected: tuple[str, str | None] | None) -> None:
    assert hub_id(place) == expected


def test_a_fetched_model_is_used_by_its_id(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="boltzformer weights fetch owner/name"):
        load_model("owner/name")
    cached = tmp_path / "models--owner--name"
    convert(checkpoint, cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    assert locate("owner/name").path == cached / "snapshots" / ("a" * 40)
    assert load_model("owner/name").description.data["plane"] == "coronal"
    assert load_model(f"owner/name@{'a' * 40}").description.data["plane"] == "coronal"
    with pytest.raises(CheckpointError, match="owner/name@v2: no such folder, and it was not fetched"):
        load_model("owner/name@v2")


def test_places_of_a_training(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "run" / "model")
    assert locate(tmp_path / "run").path == tmp_path / "run" / "model"
    assert locate(tmp_path / "run" / "model" / "model.safetensors").path == tmp_path / "run" / "model"
    assert locate(checkpoint).files == (checkpoint,)
    with pytest.raises(CheckpointError, match="is no model: it lacks config.json or model.safetensors"):
        locate(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere.pt; give the model.pt"):
        locate("nowhere.pt")
