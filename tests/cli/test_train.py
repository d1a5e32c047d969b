"""``boltzformer train`` and ``evaluate``: the bundle behind options, and mistakes told before PyTorch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.cli import bundle_command, main
from boltzformer_monai.data.slices.folds import choose_fold
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines import calibrate_checkpoint
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.weights import load_checkpoint
from tests.cli.test_segment_plan import RUNNER
from tests.engines.cases import write_dataset
from tests.needs import need_module
from tests.networks.cases import SMALL

pytestmark = pytest.mark.usefixtures("bundle_in_process")

SMALL_NETWORK = {key: value for key, value in SMALL.items() if key != "image_size"}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("slices"))


def _train(slices: Path, output: Path, *more: str) -> int:
    small = ["--set", "image_size=64", "--set", f"network_overrides={SMALL_NETWORK}"]
    arguments = ["--data", str(slices), "--output", str(output), "--preset", "tiny", "--device", "cpu"]
    return main(["train", *arguments, *small, *more])


def test_train_and_evaluate_far_from_the_checkout(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle is found by itself; options, --set and --config reach the configuration."""
    monkeypatch.chdir(tmp_path)
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({"batch_size": 3, "prompts_per_image": 2}))
    more = ["--epochs", "2", "--config", str(overlay), "--set", "prompts_per_image=1"]
    assert _train(slices, tmp_path / "run", *more) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run" / "model.pt")
    network, description = load_checkpoint(tmp_path / "run" / "model.pt")
    assert (description.network.image_size, description.network.dim) == (64, SMALL["dim"])
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())) == 2

    checkpoint = ["--checkpoint", str(tmp_path / "run" / "model.pt"), "--set", "resamples=10"]
    output = tmp_path / "scores"
    assert main(["evaluate", "--data", str(slices), "--output", str(output), "--split", "train", *checkpoint]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(output / "metrics.json")
    volumes = {case["volume"] for case in json.loads((output / "metrics.json").read_text())["volumes"]["cases"]}
    assert volumes == {"case1", "case2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "run", "scores"]


def test_a_fold_trains_and_is_evaluated_on_its_own_patients(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its validation patients decide, are said by the model, and are what evaluate takes as val."""
    reader = SliceReader(slices)
    validated = []
    for fold in range(3):
        run = tmp_path / f"fold{fold}"
        assert _train(slices, run, "--epochs", "1", "--folds", "3", "--fold", str(fold)) == 0
        assert f"fold {fold} of 0 to 2: 2 patients train, 1 validate" in capsys.readouterr().err
        scores = ["--checkpoint", str(run / "model"), "--output", str(run / "scores"), "--set", "resamples=10"]
        assert main(["evaluate", "--data", str(slices), "--device", "cpu", *scores]) == 0
        assert f"the split is that of the model's training: fold {fold} of 3" in capsys.readouterr().err
        metrics = json.loads((run / "scores" / "metrics.json").read_text())
        assert (metrics["model"]["fold"], metrics["model"]["folds"]) == (fold, 3)
        (volume,) = {case["volume"] for case in metrics["volumes"]["cases"]}
        assert {row.volume for row in choose_fold(reader, folds=3, fold=fold).select(split="val")} == {volume}
        assert (
            f"- fold {fold} of 3, counted from 0, validated the training" in (run / "model" / "README.md").read_text()
        )
        assert main(["info", str(run / "model")]) == 0
        assert f"fold {fold} of 3" in capsys.readouterr().out
        validated.append(volume)
    assert sorted(validated) == ["case0", "case1", "case2"]
    other = write_dataset(tmp_path / "other", patients=4)
    assert main(["evaluate", "--data", str(other), "--device", "cpu", *scores]) == 0
    assert "warning: the model was trained on fold 2 of 3 of another dataset" in capsys.readouterr().err


def test_the_overlay_is_laid_over_and_set_over_both(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def run(trainer: Any, *_: object, **settings: Any) -> None:
        seen.update(batch=trainer.data_loader.batch_size, prompts=settings["settings"].prompts_per_image)

    monkeypatch.setattr("boltzformer_monai.engines.run_training", run)
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("batch_size: 3\nprompts_per_image: 2\n")
    assert _train(slices, tmp_path / "run", "--config", str(overlay), "--set", "prompts_per_image=1") == 0
    assert seen == {"batch": 3, "prompts": 1}


@pytest.mark.slow
def test_a_training_is_tracked_in_the_output_folder(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_module("mlflow")
    places: list[str] = []

    def run(*_: object, handlers: list[Any], **settings: Any) -> None:
        places.extend(each.client.tracking_uri for each in handlers if type(each).__name__ == "MLFlowHandler")

    monkeypatch.setattr("boltzformer_monai.engines.run_training", run)
    assert _train(slices, tmp_path / "run", "--tracking", "mlflow") == 0
    assert places == [f"sqlite:///{tmp_path}/run/mlruns.db"] * 2  # of trainer and evaluator


def test_ctrl_c_keeps_the_last_state(slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("boltzformer_monai.engines.trainer.History._epoch", interrupt)
    assert _train(slices, tmp_path / "run") == 130
    assert load_checkpoint(tmp_path / "run" / "last.pt")
    assert "The training was stopped" in (tmp_path / "run" / "training.html").read_text(encoding="utf-8")


def test_a_presence_head_that_cannot_be_calibrated_is_a_warning(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def calibrate(evidence: object) -> None:
        raise ConfigError("presence cannot be calibrated; train longer")

    monkeypatch.setattr(sys.modules[calibrate_checkpoint.__module__], "calibrate", calibrate)
    head = f"network_overrides={ {**SMALL_NETWORK, 'presence': True} }"
    assert _train(slices, tmp_path / "run", "--epochs", "1", "--set", head) == 0
    assert "warning: presence cannot be calibrated; train longer" in capsys.readouterr().err
    for name in ("model.pt", "last.pt"):
        assert "presence" not in load_checkpoint(tmp_path / "run" / name)[1].data


def test_mistakes_are_told_before_pytorch_is_imported(slices: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"")
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.yaml").write_text("- 1")
    data, out = ["--data", str(slices)], ["--output", str(tmp_path / "out")]
    train, evaluate = ["train", *data, *out], ["evaluate", *data, *out, "--checkpoint"]
    wanted = {
        "no such folder": ["train", "--data", str(tmp_path / "none"), *out],
        "not a slice data": ["train", "--data", str(tmp_path), *out],
        "cannot write into": ["train", *data, "--output", str(tmp_path / "a file" / "run")],
        "--epochs: must be at least 1": [*train, "--epochs", "0"],
        "--seed: must be at least 0": [*train, "--seed", "-1"],
        "--folds needs --fold too": [*train, "--folds", "5"],
        "--fold must be from 0 to 4": [*train, "--folds", "5", "--fold", "5"],
        "--folds: must be at least 2": [*train, "--folds", "1", "--fold", "0"],
        "invalid whole number value: 'x'": [*train, "--epochs", "x"],
        "'batch_size' is not KEY=VALUE": [*train, "--set", "batch_size"],
        "--set dataset_dir: this command has an option for it": [*train, "--set", "dataset_dir=here"],
        "none.json: cannot be read (No such file": [*train, "--config", str(tmp_path / "none.json")],
        "broken.json: cannot be read": [*train, "--config", str(tmp_path / "broken.json")],
        "list.yaml: cannot be read (it must be a mapping": [*train, "--config", str(tmp_path / "list.yaml")],
        "a .json, .yaml or .yml file": [*train, "--config", str(tmp_path / "model.pt")],
        "no bundle at": [*train, "--bundle-root", str(tmp_path)],
        "no checkpoint at": [*evaluate, str(tmp_path / "none.pt")],
        "no such folder;": ["evaluate", "--data", "none", *out, "--checkpoint", str(tmp_path / "model.pt")],
    }
    command = [sys.executable, "-c", RUNNER, json.dumps(list(wanted.values()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for said, (code, line, torch_there) in zip(wanted, answers, strict=True):
        assert (code, torch_there, line.count("\n")) == (2, False, 1), (said, line)
        assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "epoch=3"], "error: unknown override --epoch; did you mean --epochs?"),
        (["--set", "trian#dataset#cache_rate=0.5"], "error: an override leads nowhere"),
        (["--set", "train=3"], "error: the referring item "),
        (["--set", "run=x"], "error: --set run: this command relies on it"),
        (["--set", "network_overrides={1: 2}"], "error: network_overrides must be a mapping"),
        (["--preset", "$1/0"], "error: preset must not be empty or begin with $ or @"),
        (["--device", "meta"], "error: no device 'meta' here"),
        (["--set", "config_file=x"], "error: unknown override --config_file; "),
        (["--set", "network_overrides={'querys': 3}"], "did you mean 'queries'?"),
        (["--set", "network_overrides={'presence': 'false'}"], "network_overrides#presence is the text 'false'"),
        (["--set", 'network_overrides={"presence": 0}'], "error: presence must be true or false, got 0"),
        (["--set", "settings_overrides={'decay_norms': 'False'}"], "error: decay_norms must be true or false"),
        (["--device", "gpu"], "error: no device 'gpu' here"),
        (["--folds", "4", "--fold", "0"], "has 3 labelled patients in train and val, too few for 4 folds"),
        (["--set", "fold=0"], "error: --set fold: this command has an option for it"),
        (["--preset", "tyny"], "did you mean 'tiny'?"),
        (["--set", "init_from={'backbon': 'x.pt'}"], "unknown part to start from (init_from) 'backbon'; did you mean"),
        (["--set", "init_from={'model': 'gone.pt'}"], "error: no weights at gone.pt; "),
        (["--set", "freeze=['decoder']"], "error: freeze: the decoder would stay at random"),
    ],
)
def test_wrong_settings_are_one_line(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert _train(slices, tmp_path / "run", *more) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert said in line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", 3),
        ("a={'presence': False}", {"presence": False}),
        ('a={"presence": false, "mask_bias": null}', {"presence": False, "mask_bias": None}),
        ("a=false", False),
        ("a=$@b + 1", "$@b + 1"),
        ("a=fp32", "fp32"),
    ],
)
def test_a_value_is_a_python_literal_or_json_or_a_text(text: str, value: object) -> None:
    assert bundle_command.parse_setting(text) == ("a", value)


def test_without_the_extra_the_line_names_it(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundle_command.importlib.util, "find_spec", lambda name: None)
    assert _train(slices, tmp_path / "run") == 2
    assert "pip install 'boltzformer-monai[train]'" in capsys.readouterr().err


def test_a_damaged_slice_in_a_worker_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slices = write_dataset(tmp_path / "slices")
    for image in (slices / "images").iterdir():
        image.write_bytes(b"no picture")
    more = ["--set", "workers=1", "--set", "settings_overrides={'cache': False}"]
    assert _train(slices, tmp_path / "run", *more) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert ".png" in line
