"""``boltzformer search``: trainings of seconds, their table, and the best as a configuration for ``train``."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.cli import search as command
from boltzformer_monai.errors import DivergenceError
from boltzformer_monai.networks.weights import load_checkpoint
from tests.cli.test_train import SMALL_NETWORK
from tests.engines.cases import write_dataset

pytestmark = pytest.mark.usefixtures("bundle_in_process")

SMALL = ["--set", "image_size=64", "--set", f"network_overrides={SMALL_NETWORK}", "--preset", "tiny"]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("slices"))


def _space(folder: Path, **dimensions: Any) -> Path:
    path = folder / "space.json"
    path.write_text(json.dumps({key.replace("__", "#"): value for key, value in dimensions.items()}))
    return path


def _search(slices: Path, output: Path, *more: str) -> int:
    return main(["search", "--data", str(slices), "--output", str(output), "--device", "cpu", *SMALL, *more])


def _table(output: Path) -> list[dict[str, str]]:
    with (output / "points.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_search_ends_with_a_table_and_settings_to_train_with(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = {"type": "choice", "values": [0.5, 1.0]}
    rates = {"type": "choice", "values": [1e-3, 1e-5]}
    grid = _space(tmp_path, learning_rate=rates, settings_overrides__clip=clip)
    output = tmp_path / "search"
    options = ["--grid", str(grid), "--epochs", "2", "--set", "batch_size=2"]
    assert _search(slices, output, *options, "--workers", "2") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == str(output / "best.json")
    rows = _table(output)
    assert {row["state"] for row in rows} == {"done"}
    assert {(row["learning_rate"], row["settings_overrides#clip"]) for row in rows} == {
        (rate, clip) for rate in ("0.001", "1e-05") for clip in ("0.5", "1.0")
    }
    assert "| point | learning_rate | settings_overrides#clip | val_loss | state |" in err
    for row in rows:
        history = json.loads((output / f"point_{row['point']}" / "history.json").read_text())
        assert float(row["val_loss"]) == pytest.approx(
            min(each["val_loss"] for each in history if "val_loss" in each), rel=1e-4
        )
    assert [float(row["val_loss"]) for row in rows] == sorted(float(row["val_loss"]) for row in rows)
    overlay = json.loads((output / "best.json").read_text())
    best = rows[0]
    assert overlay == {
        "preset": "tiny", "epochs": 2, "image_size": 64, "network_overrides": SMALL_NETWORK, "batch_size": 2,
        "learning_rate": float(best["learning_rate"]),
        "settings_overrides#clip": float(best["settings_overrides#clip"]),
    }  # fmt: skip
    assert (output / "worker_1.log").is_file()

    # Training with the overlay is the training of the point.
    train = ["train", "--data", str(slices), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*train, "--config", str(output / "best.json")]) == 0
    ours, theirs = (
        load_checkpoint(place / "model.pt")[0] for place in (tmp_path / "run", output / f"point_{best['point']}")
    )
    assert all(a.equal(b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    capsys.readouterr()

    # Started again, it has nothing to do; with other settings it is refused.
    (output / "best.json").unlink()
    assert _search(slices, output, *options) == 0
    assert "point 0 of" not in capsys.readouterr().err
    assert json.loads((output / "best.json").read_text()) == overlay
    assert _search(slices, output, *options[:-2], "--seed", "1") == 2
    assert "was begun with other settings: --set, --seed; repeat them" in capsys.readouterr().err


def test_points_that_diverge_and_none_that_does_not(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def training(*arguments: Any, **settings: Any) -> Any:
        def train(point: Mapping[str, Any], folder: Path) -> float:
            raise DivergenceError("the loss became infinite and no checkpoint was written; try a lower rate")

        return train

    monkeypatch.setattr(command, "_training", training)
    space = _space(tmp_path, learning_rate={"type": "float", "low": 1e-5, "high": 1e-3, "log": True})
    assert _search(slices, tmp_path / "search", "--space", str(space), "--points", "3") == 2
    assert "error: no point of the search came to an end; " in capsys.readouterr().err
    assert [row["state"] for row in _table(tmp_path / "search")] == ["failed"] * 3
    assert {row["reason"] for row in _table(tmp_path / "search")} == {
        "the loss became infinite and no checkpoint was written; try a lower rate"
    }
    assert not (tmp_path / "search" / "best.json").exists()


@pytest.mark.parametrize(
    ("dimensions", "more", "said"),
    [
        ({"learning_rat": [1e-3]}, [], "unknown override --learning_rat; did you mean --learning_rate?"),
        ({"settings_overrides__clop": [1.0]}, [], "did you mean 'clip'?"),
        ({"network_overrides__querys": [3]}, [], "unknown network setting 'querys'; did you mean 'queries'?"),
        ({"augmentation": ["light", "papr"]}, [], "augmentation must be one of"),
        ({"learning_rate": [1e-3, -1e-3]}, [], "learning_rate must be at least 0, got -0.001"),
        ({"output_dir": ["x"]}, [], "output_dir is the same for all points of a search"),
        ({"key_metric": ["dice"]}, [], "key_metric is the same for all points"),
        ({"epochs": [1, 2]}, ["--epochs", "3"], "epochs is in the space, and given as an option too"),
        ({"batch_size": [1, 2]}, ["--set", "batch_size=3"], "batch_size is in the space, and given as an option too"),
        ({"settings_overrides__balance": [1.0]}, [], "changes what the validation loss measures"),
        ({"learning_rate": [1e-3]}, ["--set", "key_metric=dise"], "unknown key_metric 'dise'"),
        ({"learning_rate": [1e-3]}, ["--points", "3"], "--points is for --space"),
        ({"learning_rate": [1e-3]}, ["--fold", "3"], "--fold needs --folds too"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    dimensions: dict[str, list[Any]], more: list[str], said: str,
) -> None:  # fmt: skip
    space = _space(tmp_path, **{key: {"type": "choice", "values": values} for key, values in dimensions.items()})
    assert _search(slices, tmp_path / "search", "--grid", str(space), *more) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert said in line
    assert not (tmp_path / "search" / "search.json").exists()


def test_a_space_that_is_none_and_an_extra_that_is_missing(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _search(slices, tmp_path / "search", "--grid", "papers") == 2
    assert "papers: is no search space (No such file" in capsys.readouterr().err
    assert _search(slices, tmp_path / "search") == 2
    assert "one of the arguments --grid --space is required" in capsys.readouterr().err
    found = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "optuna" else found(name))
    assert _search(slices, tmp_path / "search", "--grid", "paper") == 2
    assert "a search needs optuna; pip install 'boltzformer-monai[search]'" in capsys.readouterr().err
