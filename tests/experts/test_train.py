"""Experts that are trained and scored, by Python and by command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from boltzformer_monai.cli import main
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines.resume import weights_digest
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.tables import read_scores_csv
from boltzformer_monai.experts.evaluate import predict
from boltzformer_monai.experts.plan import Plan
from boltzformer_monai.experts.prepare import normalised
from boltzformer_monai.experts.scans import Stack, list_scans, read_stack
from boltzformer_monai.experts.settings import ExpertSettings
from boltzformer_monai.experts.train import train_expert
from boltzformer_monai.networks.weights import read_weights
from tests.experts.test_plan import planned
from tests.experts.test_scans import originals

CPU = torch.device("cpu")
SMALL = {
    "filters": 4, "budget": 2 * 16**3, "epoch_steps": 10, "validation_patches": 6, "learning_rate": 0.05,
    "momentum": 0.9, "augmentation": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(task: Path, slices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 3-D expert for both targets, trained on the original scans by the command."""
    output = tmp_path_factory.mktemp("trained")
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    source = ["--recipe", "msd", "--scans", str(task), "--device", "cpu"]
    assert main(["expert", "train", "--data", str(slices), "--output", str(output), "--steps", "40", *settings,
                 *source]) == 0  # fmt: skip
    return output


def test_training_lowers_the_loss(trained: Path) -> None:
    history = json.loads((trained / "history.json").read_text())
    assert len(history) == 4
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]
    assert history[-1]["val_dice"] > 0.5
    plan = Plan.of(json.loads((trained / "plan.json").read_text()), source="plan.json")
    assert plan.original
    assert plan.targets == ("anterior hippocampus", "posterior hippocampus")
    assert (trained / "training.html").is_file()


def test_the_command_scores_as_evaluate_does(task: Path, slices: Path, trained: Path, tmp_path: Path) -> None:
    where = ["--data", str(slices), "--checkpoint", str(trained / "model.pt"), "--device", "cpu"]
    assert main(["expert", "evaluate", *where, "--output", str(tmp_path / "a"), "--recipe", "msd", "--scans",
                 str(task)]) == 0  # fmt: skip
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["volumes"]["overall"]["dice"]["mean"] > 0.6
    assert metrics["slices"]["overall"]["dice"]["cases"] > 10
    assert {case["volume"] for case in metrics["volumes"]["cases"]} == {
        row.volume for row in SliceReader(slices).select(split="val")
    }
    scores = read_scores_csv(tmp_path / "a" / "scores.csv")
    assert len(scores) == 2 * 20
    truth = {(score.image, score.target): score.truth for score in scores}
    assert truth[("images/" + scores[0].image.partition("/")[2], scores[0].target)] == scores[0].truth
    assert (tmp_path / "a" / "report.html").is_file()


def test_an_expert_is_scored_on_what_it_was_trained_on(
    slices: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(slices), "--checkpoint", str(trained / "model.pt"), "--device", "cpu"]
    assert main(["expert", "evaluate", *where, "--output", str(tmp_path)]) == 2
    assert "was trained on the original scans; evaluate it with --recipe and --scans" in capsys.readouterr().err


def small(**settings: object) -> ExpertSettings:
    return ExpertSettings(**{**SMALL, **settings})  # type: ignore[arg-type]


def test_a_stopped_training_goes_on_to_the_same_weights(slices: Path, tmp_path: Path) -> None:
    reader = SliceReader(slices)
    settings = small(dimensions=2, filters=2, steps=6, epoch_steps=2, budget=2**11, augmentation=True)
    whole = train_expert(reader, settings, output_dir=tmp_path / "whole", device=CPU, seed=3)
    states = sorted((tmp_path / "whole" / "states").iterdir())
    (tmp_path / "again" / "states").mkdir(parents=True)
    assert len(states) == 2
    (tmp_path / "again" / "states" / states[0].name).write_bytes(states[0].read_bytes())
    train_expert(reader, settings, output_dir=tmp_path / "again", device=CPU, seed=3, resume="auto")
    digests = [
        weights_digest(read_weights(whole.parent.parent / run / "last.pt")["model"]) for run in ("whole", "again")
    ]
    assert digests[0] == digests[1]


def test_an_expert_for_one_target_in_slices(slices: Path, tmp_path: Path) -> None:
    where = ["--data", str(slices), "--device", "cpu"]
    settings = {**SMALL, "budget": 2**13, "epoch_steps": 40, "validation_patches": 2}
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    assert main(["expert", "train", *where, "--output", str(tmp_path), "--dimensions", "2", "--steps", "40", "--target",
                 "posterior hippocampus", "--folds", "2", "--fold", "1", *given]) == 0  # fmt: skip
    where += ["--checkpoint", str(tmp_path / "last.pt")]
    assert main(["expert", "evaluate", *where, "--output", str(tmp_path / "eval"), "--no-mirror"]) == 0
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert list(metrics["slices"]["by_target"]) == ["posterior hippocampus"]
    assert len(metrics["volumes"]["cases"]) in (2, 3)  # the fold's, not the dataset's one
    assert metrics["slices"]["overall"]["dice"]["mean"] > 0.4


class _Echo(torch.nn.Module):
    """Logits are the image."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


@pytest.mark.parametrize("dimensions", [2, 3])
def test_predictions_lie_where_the_image_is(slices: Path, dimensions: int) -> None:
    stack = read_stack(list_scans(SliceReader(slices))[0], whole=True)
    plan = planned((20, 28, 24), (1.5, 1.0, 1.0), dimensions=dimensions, budget=2**12)
    found = predict(_Echo(), plan, stack, device=CPU)[0].numpy()  # type: ignore[arg-type]
    assert abs(found - normalised(stack.image, plan)).max() < 1e-4
    from dataclasses import replace

    finer = replace(plan, spacing=(0.75, 0.5, 0.5))
    smooth = Stack(stack.label.astype("float32"), stack.label, stack.spacing, stack.indices)
    again = predict(_Echo(), finer, smooth, device=CPU)[0].numpy()  # type: ignore[arg-type]
    assert abs(again - normalised(smooth.image, plan)).mean() < 0.05


def test_scans_without_all_targets_do_not_train(slices: Path, tmp_path: Path) -> None:
    reader = SliceReader(slices)
    for number, entry in enumerate(reader.volumes.values()):
        if number != 2:
            entry["targets"] = {"anterior hippocampus": "1"}
    with pytest.raises(
        DatasetError, match="no (train|val) scan of the dataset annotates anterior hippocampus, posterior"
    ):
        train_expert(reader, small(), output_dir=tmp_path, device=CPU)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "momentun=0.5"], "unknown expert setting 'momentun'; did you mean 'momentum'"),
        (["--set", "steps=3"], "--set steps: this command has an option for it"),
        (["--target", "liver"], "unknown target 'liver'"),
        (["--recipe", "msd"], "--recipe and --scans go together"),
        (["--folds", "2"], "--folds needs --fold too"),
        (["--set", "plane=coronal"], "has no slices along coronal"),
    ],
)
def test_wrong_options_are_one_line(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    where = ["--data", str(slices), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["expert", "train", *where, *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not (tmp_path / "run" / "states").exists()


def test_the_originals_fit_every_plane(task: Path, slices: Path) -> None:
    reader = SliceReader(slices)
    assert set(originals(task, reader)) == set(reader.volumes)
