"""What one sees of a training: the page, TensorBoard and MLflow, which call nobody."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from boltzformer_monai.engines.mlflow_run import MlflowRun
from boltzformer_monai.errors import ConfigError
from tests.engines.cases import write_dataset
from tests.engines.small_training import BUNDLE, settings
from tests.needs import need_module
from tests.offline import attempts, offline
from tests.warm_python import run_copy

mlflow = need_module("mlflow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked")


def _train(folder: Path, *words: str) -> Any:
    """Two epochs through MONAI's own command, offline."""
    given = settings(folder / "slices", folder / "run", epochs=2, bundle_root=str(BUNDLE))
    options = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    config = str(BUNDLE / "configs" / "train.json")
    command = ["-m", "monai.bundle", "run", "training", "--config_file", config, "--logging_file", "False"]
    connections = folder / "connections.txt"
    done = run_copy([*command, *options, *words], folder=folder, environment=offline(connections))
    assert attempts(connections) == []
    return done


@pytest.fixture(scope="module")
def tracked(folder: Path) -> Path:
    """A training with ``--tracking mlflow``."""
    write_dataset(folder / "slices", patients=4, slices=3)
    done = _train(folder, "--tracking", "mlflow")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "left=" in done.stderr  # of the progress bar
    return folder / "run"


def _runs(folder: Path) -> tuple[Any, list[Any]]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    return client, client.search_runs(experiments)


@pytest.mark.slow
def test_mlflow_has_the_whole_training_in_one_run(tracked: Path) -> None:
    client, runs = _runs(tracked)
    history = json.loads((tracked / "history.json").read_text())
    (run,) = [each for each in runs if each.data.metrics]
    assert run.info.status == "FINISHED"

    def curve(name: str) -> dict[int, float]:
        return {each.step: each.value for each in client.get_metric_history(run.info.run_id, name)}

    losses = curve("train_loss")
    assert list(losses) == list(range(1, 11))
    assert np.mean(list(losses.values())[:5]) == pytest.approx(history[0]["train_loss"], rel=1e-4)
    assert max(curve("lr_group_0").values()) == pytest.approx(1e-3)
    for name in ("val_loss", "val_dice"):
        assert curve(name) == pytest.approx({row["epoch"]: row[name] for row in history})
    assert run.data.params["image_size"] == "64"
    assert run.data.params["seed"] == "0"
    files = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert {"configuration.json", "training_data.json", "history.json", "training.html", "images"} <= files
    pictures = [each.path for each in client.list_artifacts(run.info.run_id, "images") if each.path.endswith(".png")]
    assert len(pictures) == 2


def test_tensorboard_has_curves_configuration_fingerprint_and_overlays(tracked: Path) -> None:
    events = EventAccumulator(str(tracked / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train_loss", "epoch_train_loss", "val_loss", "val_dice", "lr_group_0"} <= set(tags["scalars"])
    assert [each.step for each in events.Images("overlays")] == [1, 2]
    texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in tags["tensors"]}
    assert "| learning_rate | 0.001 |" in texts["configuration/text_summary"]
    assert "sha256" in texts["training_data/text_summary"]


def test_the_page_is_written_at_the_end(tracked: Path) -> None:
    text = (tracked / "training.html").read_text(encoding="utf-8")
    assert "The training is finished: 2 epochs." in text
    assert "1 volume, 1 patient, 3 slices" in text
    assert sorted(path.name for path in (tracked / "overlays").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    assert text.count("<img") >= 2


@pytest.mark.slow
def test_a_training_that_was_stopped_says_so(folder: Path, tracked: Path) -> None:
    words = ["-m", "tests.engines.small_training", str(folder / "slices"), str(folder / "stopped"), "{}"]
    moment = json.dumps({"signal": "SIGTERM", "in": "step", "count": 6})
    environment = offline(folder / "connections.txt")
    assert run_copy([*words, moment], folder=folder, environment=environment).returncode == 75
    page = folder / "stopped" / "training.html"
    assert "The training was stopped in or after epoch 2 of 3; with --resume auto it goes on." in page.read_text()
    resumed = [*words[:-1], json.dumps({"resume": "auto"})]
    assert run_copy(resumed, folder=folder, environment=environment).returncode == 0
    assert "The training is finished: 3 epochs." in page.read_text()
    assert len(list((folder / "stopped" / "overlays").iterdir())) == 3


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[Any]:
    from monai.handlers import MLFlowHandler

    made = MLFlowHandler(f"sqlite:///{tmp_path}/mlruns.db", experiment_name="unit")
    yield made
    made.close()


def test_a_training_that_goes_on_keeps_its_run(tmp_path: Path, handler: Any) -> None:
    first = MlflowRun(handler, tmp_path)
    first.start(resumed=False, parameters={"epochs": "2", "odd: name": "x" * 9999})
    first.log_metrics({"loss": 1.0}, step=1)
    first.end("KILLED")
    second = MlflowRun(handler, tmp_path)
    second.start(resumed=True, parameters={"epochs": "3", "seed": "0"})
    assert second.run_id == first.run_id
    assert handler.client.get_run(first.run_id).info.status == "RUNNING"
    second.log_metrics({"loss": 0.5}, step=2)
    data = handler.client.get_run(first.run_id).data
    assert (data.params["epochs"], data.params["seed"], data.metrics["loss"]) == ("2", "0", 0.5)
    # Its process is killed, and another training begins in the folder.
    third = MlflowRun(handler, tmp_path)
    third.start(resumed=False, parameters={})
    statuses = {run: handler.client.get_run(run).info.status for run in (first.run_id, third.run_id)}
    assert list(statuses.values()) == ["KILLED", "RUNNING"]


def test_a_failure_of_mlflow_ends_no_training(
    tmp_path: Path, handler: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = MlflowRun(handler, tmp_path)
    run.start(resumed=False, parameters={})
    calls = []

    def away(*_: object, **__: object) -> None:
        calls.append(1)
        raise mlflow.exceptions.MlflowException("the server is away")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(handler.client, "log_batch", away)
        for step in (1, 2, 3):
            run.log_metrics({"loss": 1.0}, step=step)
        run.begin_epoch()
        run.log_metrics({"loss": 1.0}, step=4)
    assert len(calls) == 2
    assert [record.getMessage() for record in caplog.records if "the server is away" in record.getMessage()]
    run.begin_epoch()
    run.log_metrics({"loss": 1.0}, step=5)
    assert [each.step for each in handler.client.get_metric_history(run.run_id, "loss")] == [5]


def test_what_mlflow_refuses_at_the_start_is_one_line(
    tmp_path: Path, handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = handler.client.create_experiment("gone")
    handler.client.delete_experiment(deleted)
    handler.experiment_name = "gone"
    with pytest.raises(ConfigError, match="experiment was deleted in MLflow"):
        MlflowRun(handler, tmp_path).start(resumed=False, parameters={})
    monkeypatch.setattr(handler.client, "get_experiment_by_name", _refuse)
    with pytest.raises(ConfigError, match=r"--tracking mlflow: MLflow cannot be used \(no permission\)"):
        MlflowRun(handler, tmp_path).start(resumed=False, parameters={})


def _refuse(*_: object) -> None:
    raise mlflow.exceptions.MlflowException("no permission")


@pytest.mark.slow
def test_an_evaluation_is_a_run_of_its_own(folder: Path, tracked: Path) -> None:
    output, connections = folder / "evaluation", folder / "connections.txt"
    words = ["-m", "monai.bundle", "run", "evaluating", "--config_file", str(BUNDLE / "configs" / "evaluate.json")]
    words += ["--bundle_root", str(BUNDLE), "--dataset_dir", str(folder / "slices"), "--output_dir", str(output)]
    words += ["--checkpoint", str(tracked / "model.pt"), "--device", "cpu", "--logging_file", "False"]
    done = run_copy([*words, "--tracking", "mlflow"], folder=folder, environment=offline(connections))
    assert done.returncode == 0, done.stderr[-2000:]
    assert attempts(connections) == []
    metrics = json.loads((output / "metrics.json").read_text())
    client, (run,) = _runs(output)
    assert run.info.status == "FINISHED"
    for part in ("slices", "volumes"):
        assert run.data.metrics[f"{part}/all/dice"] == pytest.approx(metrics[part]["overall"]["dice"]["mean"])
        assert f"{part}/liver/dice" in run.data.metrics
    assert run.data.params["model.sha256"] == metrics["model"]["sha256"]
    assert {"metrics.json", "report.html"} <= {each.path for each in client.list_artifacts(run.info.run_id)}
