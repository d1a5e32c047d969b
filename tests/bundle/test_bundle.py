"""The bundle as MONAI runs it, on a slice data set of four small phantoms."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from monai.bundle import create_workflow

from boltzformer_monai.demo.demo import ensure_demo_dataset, read_demo_volumes
from boltzformer_monai.errors import CheckpointError, ConfigError, DatasetError, VolumeError
from boltzformer_monai.models.card import add_metrics, eval_metrics
from boltzformer_monai.models.config import read_config
from boltzformer_monai.models.convert import convert
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.networks.weights import load_checkpoint
from boltzformer_monai.storage import file_sha256
from tests.warm_python import run_copy

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "boltzformer"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    ensure_demo_dataset(folder, abdomen=3, chest=0, size=(48, 48, 6))
    return folder


def _workflow(name: str, **overrides: Any) -> Any:
    return create_workflow(
        workflow_type="train" if name == "train" else "infer",
        config_file=str(BUNDLE / "configs" / f"{name}.json"),
        logging_file=False,
        **{"bundle_root": str(BUNDLE), **overrides},
    )


@pytest.fixture(scope="module")
def trained(demo: Path) -> Path:
    """One epoch; the folder with its checkpoints."""
    output = demo / "models"
    settings = {"image_size": 64, "epochs": 1, "batch_size": 4, "device": torch.device("cpu")}
    workflow = _workflow("train", dataset_dir=str(demo / "slices"), output_dir=str(output), preset="tiny", **settings)
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return output


def test_training_leaves_checkpoints_and_curves(trained: Path) -> None:
    for name in ("model.pt", "last.pt"):
        network, description = load_checkpoint(trained / name)
        assert description.network.image_size == 64
        assert {entry["target"] for entry in description.data["targets"]} >= {"liver", "liver lesion"}
        assert not network.training
    history = json.loads((trained / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1]
    assert history[0]["val_loss"] > 0
    assert list((trained / "tensorboard").glob("events*"))


def test_training_leaves_a_model_folder_with_its_card(trained: Path) -> None:
    expected, description = load_checkpoint(trained / "model.pt")
    found = load_model(trained / "model")
    assert found.description.data == description.data
    assert all(torch.equal(found.network.state_dict()[name], each) for name, each in expected.state_dict().items())
    assert found.description.data["training_data"]["splits"]["train"]["patients"] == 1
    card = (trained / "model" / "README.md").read_text(encoding="utf-8")
    assert "| liver lesion | CT | abdomen |" in card
    assert "- train: 1 volume, 1 patient, 6 slices" in card


def test_an_earlier_checkpoint_is_kept(trained: Path, demo: Path, tmp_path: Path) -> None:
    earlier = (trained / "last.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(earlier)
    convert(tmp_path / "model.pt", tmp_path / "model")
    settings = {"image_size": 64, "epochs": 1, "batch_size": 4, "device": "cpu", "preset": "tiny"}
    _workflow("train", dataset_dir=str(demo / "slices"), output_dir=str(tmp_path), **settings).run()
    assert (tmp_path / "model.previous.pt").read_bytes() == earlier
    assert read_config(tmp_path / "model").checkpoint_sha256 == file_sha256(tmp_path / "model.pt")
    assert load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("model", ["model.pt", "model"])
def test_evaluation_writes_metrics_and_a_table(trained: Path, demo: Path, tmp_path: Path, model: str) -> None:
    settings = {"dataset_dir": str(demo / "slices"), "checkpoint": str(trained / model), "output_dir": str(tmp_path)}
    workflow = _workflow("evaluate", focus=model == "model.pt", **settings)
    assert workflow.check_properties() == []
    workflow.run()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["model"] == {"sha256": load_model(trained / model).sha256}
    kept = add_metrics(Path(shutil.copytree(trained / "model", tmp_path / "copy")), tmp_path / "metrics.json")
    assert kept["slices"] == metrics["slices"]
    slices = metrics["slices"]
    dice = {name: of["dice"]["mean"] for name, of in slices["by_target"].items() if of["present"]}
    assert set(dice) == {"liver", "spleen", "right kidney", "left kidney", "aorta", "liver lesion"}
    assert slices["overall"]["dice"]["mean"] == pytest.approx(np.mean(list(dice.values())))
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 6 * 10  # slices × targets of one volume
    volumes = metrics["volumes"]
    assert len(volumes["cases"]) == 10
    assert set(volumes["by_target"]) == {*dice, "heart", "left lung", "right lung", "lung nodule"}
    assert volumes["overall"]["dice"]["low"] is None  # a single patient
    assert "Whole volumes" in (report := (tmp_path / "report.html").read_text())
    assert ("Where the sampling looks" in report) == ("focus" in metrics) == (model == "model.pt")
    if model == "model":
        assert not (tmp_path / "focus.csv").exists()
        return
    focus = metrics["focus"]
    assert set(focus["by_target"]) == set(dice)
    for name, entry in focus["by_target"].items():
        assert entry["dice"]["mean"] == pytest.approx(dice[name])  # the evaluation's own
        assert entry["swapped_dice"]["cases"] == entry["dice"]["cases"] == slices["by_target"][name]["present"]
        assert len(entry["layers"]) == 9
        assert all(0 < layer["by_chance"]["mean"] <= 1 and 0 < layer["size"]["mean"] <= 1 for layer in entry["layers"])
    assert focus["gate"]["least"] == 0.1
    assert len((tmp_path / "focus.csv").read_text().splitlines()) == 1 + slices["overall"]["present"]


@pytest.mark.parametrize("model", ["model.pt", "model"])
def test_card_and_metadata_of_the_bundle_get_the_numbers_of_the_evaluation(
    trained: Path, demo: Path, tmp_path: Path, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    (bundle / "models").mkdir(exist_ok=True)
    shutil.copy(trained / "model.pt", bundle / "models" / "model.pt")
    folder = Path(shutil.copytree(trained / "model", bundle / "models" / "model"))
    (folder / "metrics.json").unlink(missing_ok=True)
    settings = {"dataset_dir": str(demo / "slices"), "checkpoint": str(bundle / "models" / model), "resamples": 10}
    places = {"output_dir": str(tmp_path / "eval"), "bundle_root": str(bundle)}
    with caplog.at_level("INFO"):
        _workflow("evaluate", **settings, **places).run()
    command = f"boltzformer weights card {folder} --metrics {tmp_path / 'eval' / 'metrics.json'}"
    assert f"to put these numbers into the model's card: {command}" in caplog.messages
    assert not (folder / "metrics.json").exists()
    _workflow("evaluate", **settings, **places, update_card=True).run()
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"] == eval_metrics(metrics)
    assert metadata["eval_metrics"]["dice_slices"] == metrics["slices"]["overall"]["dice"]["mean"]
    assert json.loads((folder / "metrics.json").read_text())["slices"] == metrics["slices"]
    results = {each.metric_name: each.metric_value for each in ModelCard.load(folder / "README.md").data.eval_results}
    assert results["Dice (volumes)"] == metrics["volumes"]["overall"]["dice"]["mean"]


def test_a_card_is_missed_before_the_evaluation(trained: Path, demo: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "model.pt", tmp_path / "alone.pt")
    settings = {"dataset_dir": str(demo / "slices"), "checkpoint": str(tmp_path / "alone.pt")}
    with pytest.raises(RuntimeError) as caught:
        _workflow("evaluate", **settings, output_dir=str(tmp_path / "eval"), update_card=True).run()
    cause = _cause(caught.value)
    assert isinstance(cause, ConfigError)
    assert "without a card; boltzformer weights convert makes its folder" in str(cause)
    assert not (tmp_path / "eval" / "metrics.json").exists()


def test_inference_labels_a_scan_on_its_grid(trained: Path, demo: Path, tmp_path: Path) -> None:
    scan = next(volume.image for volume in read_demo_volumes(demo) if volume.image.is_file())
    out = tmp_path / "labels.nii.gz"
    settings = {"checkpoint": str(trained / "model.pt"), "prompts": ["liver", "left kidney"], "output": str(out)}
    workflow = _workflow("inference", image=str(scan), **settings)
    assert workflow.check_properties() == []
    workflow.run()
    labels, image = nibabel.load(out), nibabel.load(scan)
    assert labels.shape == image.shape
    np.testing.assert_allclose(labels.affine, image.affine, atol=1e-5)
    assert set(np.unique(np.asarray(labels.dataobj))) <= {0, 1, 2}


def test_the_bundle_can_be_inspected_before_anything_was_trained(tmp_path: Path) -> None:
    workflow = _workflow("inference", checkpoint=str(tmp_path / "model.pt"))
    assert workflow.check_properties() == []
    assert workflow.network_def(torch.zeros(1, 1, 64, 64)).shape == (1, 1, 32, 32)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.mark.parametrize(
    ("name", "overrides", "kind", "said"),
    [
        ("train", {"epoch": 3}, ConfigError, "did you mean --epochs"),
        ("train", {"train#trainer#max_epoch": 3}, ConfigError, "max_epochs"),
        ("train", {"preset": "hiera_l"}, ConfigError, "did you mean 'hiera_s'"),
        ("train", {"preset": "tiny", "settings_overrides": {"balanc": 1}}, ConfigError, "balance"),
        ("train", {"preset": "tiny", "network_overrides": {"querys": 1}}, ConfigError, "queries"),
        ("train", {"preset": "tiny", "image_size": 100}, ConfigError, "multiple of 32"),
        ("train", {"dataset_dir": "nowhere"}, DatasetError, "nowhere"),
        ("train", {"preset": "tiny", "settings_overrides": {"target_weights": {"livr": 2}}}, ConfigError, "liver"),
        ("train", {"seed": "foo"}, ConfigError, "--seed must be a whole number"),
        ("evaluate", {"batch_size": 0}, ConfigError, "--batch_size must be"),
        ("evaluate", {"epochs": 3}, ConfigError, "unknown override --epochs"),
        ("inference", {"threshold": "abc"}, ConfigError, "--threshold must be a number"),
        ("inference", {"protocol": "biomedpars"}, ConfigError, "did you mean 'biomedparse'"),
        ("inference", {"protocol_settings::supress": False}, ConfigError, "unknown setting 'supress'"),
        ("evaluate", {"checkpoint": "nowhere.pt"}, CheckpointError, "checkpoint"),
        ("inference", {"checkpoint": "nowhere.pt", "image": "scan.nii.gz"}, CheckpointError, "nowhere.pt"),
        ("inference", {"checkpoint": "nowhere.pt"}, VolumeError, "--image"),
    ],
)
def test_mistakes_are_named(demo: Path, name: str, overrides: dict[str, Any], kind: type[Exception], said: str) -> None:
    given = {"dataset_dir": str(demo / "slices"), **overrides} if name != "inference" else overrides
    with pytest.raises(RuntimeError) as caught:
        _workflow(name, **given).run()
    cause = _cause(caught.value)
    assert isinstance(cause, kind)
    assert said in str(cause)
    assert "\n" not in str(cause)


@pytest.mark.slow
def test_from_the_shell_a_mistake_is_one_line_without_traceback(tmp_path: Path) -> None:
    config = str(BUNDLE / "configs" / "train.json")
    command = ["-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file", config]
    flags = ["--bundle_root", str(BUNDLE), "--epoch", "1"]
    done = run_copy([*command, *flags], folder=tmp_path, environment=os.environ)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "error: unknown override --epoch; did you mean --epochs?"
