"""The key metric: which epoch becomes ``model.pt``, by the loss or by a metric of the table."""

from __future__ import annotations

import json
import math
import operator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from boltzformer_monai.cli import main
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines import BoltzFormerLoss, validation_metrics
from boltzformer_monai.engines.key_metric import VAL_DICE, VAL_LOSS, find_key_metric, has_improved
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation import metrics
from boltzformer_monai.evaluation.metrics import Metric, register_metric
from boltzformer_monai.networks.interfaces import Decoded
from boltzformer_monai.networks.weights import load_checkpoint
from tests.engines.cases import write_dataset
from tests.networks.cases import SMALL


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("slices"))


@pytest.fixture(autouse=True)
def _own_metrics(bundle_in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of metrics of each test's own."""
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))


def train(slices: Path, output: Path, *more: str, epochs: int = 1) -> int:
    network = {key: value for key, value in SMALL.items() if key != "image_size"}
    settings = ["image_size=64", "val_interval=1", "precision=fp32", f"network_overrides={network}", *more]
    arguments = ["--data", str(slices), "--output", str(output), "--preset", "tiny", "--device", "cpu"]
    arguments += ["--epochs", str(epochs)]
    return main(["train", *arguments, *(part for each in settings for part in ("--set", each))])


@pytest.mark.slow
def test_a_guest_metric_selects_another_epoch_than_the_loss(slices: Path, tmp_path: Path) -> None:
    calls = count()
    register_metric(Metric(name="age", compute=lambda masks: next(calls), dimensions=(2,), better="lower"))
    by = {}
    for name in ("val_loss", "age"):
        assert train(slices, tmp_path / name, f"key_metric={name}", epochs=3) == 0
        by[name] = [
            load_checkpoint(tmp_path / name / file)[0].state_dict()["mean"].sum()
            + sum(weight.double().sum() for weight in load_checkpoint(tmp_path / name / file)[0].parameters())
            for file in ("model.pt", "last.pt")
        ]
    history = json.loads((tmp_path / "age" / "history.json").read_text())
    losses, ages = ([row[key] for row in history] for key in ("val_loss", "val_age"))
    assert ages == sorted(ages)  # the first epoch is the best, by the metric
    assert losses.index(min(losses)) == 2  # the last one, by the loss
    assert by["val_loss"][0] == by["val_loss"][1] == by["age"][1]  # the same training
    assert by["age"][0] != by["age"][1]


def test_its_value_is_that_of_the_evaluation(slices: Path, tmp_path: Path) -> None:
    """In the slices' own pixels, averaged over the targets; a prompt that fills up a batch counts once."""
    register_metric(Metric(name="mean_probability", dimensions=(2,), compute=lambda masks: masks.probability.mean()))
    assert train(slices, tmp_path, "key_metric=mean_probability") == 0
    checkpoint = ["--checkpoint", str(tmp_path / "last.pt"), "--set", "precision=fp32", "--device", "cpu"]
    assert main(["evaluate", "--data", str(slices), "--output", str(tmp_path / "scores"), *checkpoint]) == 0
    evaluated = json.loads((tmp_path / "scores" / "metrics.json").read_text())["slices"]
    (row,) = json.loads((tmp_path / "history.json").read_text())
    assert 0.01 < row["val_mean_probability"] < 0.99
    assert row["val_mean_probability"] == pytest.approx(evaluated["overall"]["mean_probability"]["mean"], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dise", r"unknown key_metric 'dise'; did you mean 'dice'\?"),
        (
            "surface_dice",
            "'surface_dice' is measured on whole volumes, the validation on slices; known: val_loss, dice",
        ),
        (None, "unknown key_metric None"),
        (["dice"], "unknown key_metric"),
    ],
)
def test_what_cannot_be_one_is_refused_before_the_training(
    name: object, words: str, slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=words):
        find_key_metric(name)
    assert train(slices, tmp_path / "run", f"key_metric={name!r}") == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert "key_metric" in line
    assert not list(tmp_path.glob("run/*"))


def test_a_metric_without_a_value_ends_in_one_line(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_metric(Metric(name="nothing", compute=lambda masks: None, dimensions=(2,)))
    assert train(slices, tmp_path, "key_metric=nothing") == 2
    assert "error: val_nothing had no value in any validation" in capsys.readouterr().err
    assert (tmp_path / "last.pt").is_file()


@pytest.mark.parametrize(("compare", "better", "worse"), [(operator.lt, 0.4, 0.6), (operator.gt, 0.6, 0.4)])
def test_nan_and_infinity_are_never_better(compare: object, better: float, worse: float) -> None:
    state = SimpleNamespace(metrics={}, key_metric_name="m")
    evaluator = SimpleNamespace(state=state, metric_cmp_fn=compare)
    for value, best, expected in (
        (better, 0.5, True), (worse, 0.5, False), (0.5, 0.5, False), (worse, None, True),
        (math.nan, None, False), (math.nan, 0.5, False), (math.inf, None, False), (-math.inf, 0.5, False),
    ):  # fmt: skip
        state.metrics["m"] = value
        assert has_improved(evaluator, best) is expected  # type: ignore[arg-type]


def test_the_presence_head_does_not_decide_which_masks_are_best(slices: Path) -> None:
    loss = BoltzFormerLoss(presence_weight=1.0)
    chosen = validation_metrics(VAL_LOSS, loss=loss, reader=SliceReader(slices), size=64)
    assert (list(chosen.key), list(chosen.additional)) == ([VAL_LOSS], [VAL_DICE])
    assert chosen.improves(0.1, 0.2)
    metric = chosen.key[VAL_LOSS]
    engine = Engine(lambda _, batch: batch)
    metric.attach(engine, VAL_LOSS)
    logits, label = torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8).round()
    wrong = Decoded(logits, torch.full((2, 3), -9.0))
    engine.run([{"pred": wrong, "label": label}])
    assert engine.state.metrics[VAL_LOSS] == pytest.approx(float(loss(logits, label)))
    assert float(loss(wrong, label)) > engine.state.metrics[VAL_LOSS] + 1


def test_the_curves_keep_the_loss_beside_another_key_metric(slices: Path) -> None:
    chosen = validation_metrics("dice", loss=BoltzFormerLoss(), reader=SliceReader(slices), size=64)
    assert (list(chosen.key), list(chosen.additional)) == ([VAL_DICE], [VAL_LOSS])
    assert chosen.improves(0.2, 0.1)


def test_validation_dice_is_that_of_present_targets_at_mask_size(slices: Path) -> None:
    metric = validation_metrics(VAL_LOSS, loss=BoltzFormerLoss(), reader=SliceReader(slices), size=64).additional[
        VAL_DICE
    ]
    metric.attach(Engine(lambda *_: None), VAL_DICE)
    label = torch.zeros(1, 3, 8, 8)
    label[:, 0, :4], label[:, 1, 4:] = 1, 1
    pred = torch.full((1, 3, 8, 8), -5.0)
    pred[:, 0, :4], pred[:, 1, 6:], pred[:, 2] = 5, 5, 5  # right, half, a false alarm on an absent target
    metric.update(metric._output_transform({"pred": pred, "label": label}))
    assert float(metric.compute()) == pytest.approx((1 + 2 / 3) / 2)
    metric.reset()
    half = torch.nn.functional.avg_pool2d(pred, 2)
    metric.update(metric._output_transform({"pred": half, "label": label}))
    assert float(metric.compute()) == pytest.approx((1 + 2 / 3) / 2, abs=0.02)
