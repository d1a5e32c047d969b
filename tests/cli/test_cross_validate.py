"""``boltzformer cross-validate``: every fold once, pooled over all patients; a second run goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from boltzformer_monai.cli import cross_validate, main
from boltzformer_monai.cli.run_settings import run_settings
from boltzformer_monai.data.slices.folds import choose_fold
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.tables import read_description
from boltzformer_monai.networks.weights import load_checkpoint
from tests.cli.test_train import SMALL_NETWORK
from tests.engines.cases import write_dataset

pytestmark = pytest.mark.usefixtures("bundle_in_process")


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("slices"), patients=5)


def _cross_validate(slices: Path, output: Path, *more: str) -> int:
    small = ["--set", "image_size=64", "--set", f"network_overrides={SMALL_NETWORK}"]
    arguments = ["--data", str(slices), "--output", str(output), "--preset", "tiny", "--device", "cpu"]
    return main(["cross-validate", *arguments, "--folds", "2", "--epochs", "1", *small, *more])


def _models(output: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in sorted(output.glob("fold_*/model.pt"))]


@pytest.mark.slow
def test_every_patient_is_scored_by_the_model_that_did_not_see_it(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"

    # Stopped in the second fold's training: the first is not done again.
    from boltzformer_monai.engines import publish

    save, models = publish.save_model, []

    def interrupt(*arguments: Any, **settings: Any) -> Any:
        models.append(arguments)
        if len(models) == 2:
            raise KeyboardInterrupt
        return save(*arguments, **settings)

    monkeypatch.setattr(publish, "save_model", interrupt)
    assert _cross_validate(slices, output) == 130
    assert "the same command goes on" in capsys.readouterr().err
    (first,) = [path.stat().st_mtime_ns for path in output.glob("fold_0/model.pt")]
    monkeypatch.undo()
    assert _cross_validate(slices, output) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == str(output / "metrics.json")
    assert "fold 1 of 0 to 1: training" in err
    assert "fold 0 of 0 to 1: training" not in err
    assert _models(output)[0] == first

    metrics = json.loads((output / "metrics.json").read_text())
    own = [json.loads((output / f"fold_{fold}/evaluation/metrics.json").read_text()) for fold in range(2)]
    cases = [case for each in own for case in each["volumes"]["cases"]]
    key = lambda case: (case["volume"], case["target"])  # noqa: E731
    assert metrics["volumes"]["cases"] == sorted(cases, key=key)
    assert len({case["patient"] for case in cases}) == 5
    for part in ("slices", "volumes"):
        for target in ("liver", "spleen"):
            entry = metrics[part]["by_target"][target]["dice"]
            assert entry["patients"] == 5
            weights = [each[part]["by_target"][target]["dice"]["cases"] for each in own]
            means = [each[part]["by_target"][target]["dice"]["mean"] for each in own]
            assert entry["mean"] == pytest.approx(np.average(means, weights=weights))
            assert entry["low"] <= entry["mean"] <= entry["high"]
        assert [fold[part] for fold in metrics["folds"]] == [each[part]["overall"] for each in own]
    assert [(fold["model"]["fold"], fold["patients"]) for fold in metrics["folds"]] == [(0, 3), (1, 2)]
    reader = SliceReader(slices)
    for fold, each in enumerate(own):
        held_out = {row.patient for row in choose_fold(reader, folds=2, fold=fold).select(split="val")}
        assert {case["patient"] for case in each["volumes"]["cases"]} == held_out
        _, description = load_checkpoint(output / f"fold_{fold}" / "model.pt")
        assert description.data["training_data"]["fold"]["fold"] == fold
    assert len((output / "scores.csv").read_text().splitlines()) == 1 + 5 * 2 * 4
    page = (output / "report.html").read_text()
    assert "Cross-validation, 2 folds" in page
    assert page.count("By fold: its model on its validation patients") == 2
    assert "| fold 1 |" in err

    # Everything is there: nothing is trained or evaluated again, and the numbers are the same.
    before = _models(output), (output / "fold_0/evaluation/metrics.json").stat().st_mtime_ns
    (output / "metrics.json").unlink()
    assert _cross_validate(slices, output) == 0
    assert (_models(output), (output / "fold_0/evaluation/metrics.json").stat().st_mtime_ns) == before
    assert json.loads((output / "metrics.json").read_text()) == metrics
    capsys.readouterr()

    # Another training, another dataset, another process in the folder.
    assert _cross_validate(slices, output, "--seed", "3", "--set", "batch_size=2") == 2
    assert "was begun with other settings: --set, --seed; repeat them" in capsys.readouterr().err
    assert _cross_validate(write_dataset(tmp_path / "other", patients=6), output) == 2
    assert "other settings: the dataset; repeat" in capsys.readouterr().err
    (output / "cross-validation.json").unlink()
    assert _cross_validate(tmp_path / "other", output) == 2
    assert "was trained on fold 0 of 2, not on fold 0 of 2 of the dataset as it is now" in capsys.readouterr().err
    with FileLock(output / ".lock"):
        assert _cross_validate(slices, output) == 2
    assert "another process works here" in capsys.readouterr().err

    # Evaluations of one patient by two models are no cross-validation.
    (output / "cross-validation.json").unlink()
    for name in ("metrics.json", "scores.csv"):
        shutil.copy(output / "fold_0/evaluation" / name, output / "fold_1/evaluation" / name)
    from boltzformer_monai.errors import DatasetError
    from boltzformer_monai.evaluation.pooling import pool_evaluations

    with pytest.raises(DatasetError, match="evaluated the same patient"):
        pool_evaluations([output / "fold_0/evaluation", output / "fold_1/evaluation"])
    with pytest.raises(DatasetError, match="cannot be read"):
        pool_evaluations([output / "fold_0/evaluation", tmp_path])


@pytest.mark.parametrize("way", ["--set", "--config"])
def test_a_model_of_some_planes_is_evaluated_along_them(
    way: str, slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = tmp_path / "planes.json"
    overlay.write_text(json.dumps({"planes": ["axial"]}))
    runs: list[dict[str, Any]] = []
    monkeypatch.setattr(cross_validate, "_is_trained", lambda *_: True)
    monkeypatch.setattr(cross_validate, "_pool", lambda *_: None)
    monkeypatch.setattr(cross_validate, "run_bundle", lambda name, options, settings: runs.append(settings))
    given = ["--config", str(overlay)] if way == "--config" else ["--set", "planes=['axial']"]
    assert _cross_validate(slices, tmp_path / "run", *given) == 0
    assert [settings["planes"] for settings in runs] == [["axial"], ["axial"]]


def test_another_split_is_another_run(slices: Path, tmp_path: Path) -> None:
    from argparse import Namespace

    shared = {"bundle_root": None, "output": tmp_path / "run", "config": [], "seed": 0, "settings": [], "plugins": []}
    resplit = write_dataset(tmp_path / "resplit", patients=5, val=1)
    one, other = (run_settings(Namespace(data=data, **shared), {}) for data in (slices, resplit))
    assert read_description(slices)["volumes"] == read_description(resplit)["volumes"]
    assert one["data"] != other["data"]


def test_mistakes_are_told_before_anything_is_written(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, said in (
        (["--folds", "1"], "--folds: must be at least 2"),
        (["--config", "none.json"], "none.json: cannot be read"),
        (["--set", "fold"], "'fold' is not KEY=VALUE"),
    ):
        assert _cross_validate(slices, tmp_path / "run", *more) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    for more, said in (
        (["--set", "fold=1"], "--set fold: this command has an option for it"),
        (["--folds", "6"], "has 5 labelled patients in train and val, too few for 6 folds"),
    ):
        assert _cross_validate(slices, tmp_path / "run", *more) == 2
        assert said in capsys.readouterr().err
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
