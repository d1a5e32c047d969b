"""The benchmark of the sampling's focus: which settings an arm trains with, and what becomes of its metrics."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import focus
from boltzformer_monai.evaluation.focus import FocusScore, LayerFocus, summarise_focus

CALLS: list[tuple[str, dict[str, Any]]] = []


def workflow(name: str, overrides: dict[str, Any], *, root: Path) -> None:
    """What a training and an evaluation leave, without either."""
    CALLS.append((name, overrides))
    if name == "evaluate":
        layers = (LayerFocus(0.5, 0.1, 0.2, 0.0), LayerFocus(0.9, 0.1, 0.2, 0.0))
        scores = [FocusScore("1", "v", "p", "liver lesion", 0.001, layers, 0.8, 0.6)]
        means = {"dice": {"mean": 0.9}, "missed": {"mean": 0.0}, "false_positive_rate": {"mean": 0.1}}
        metrics = {"slices": {"overall": means}, "volumes": {"overall": means}, "focus": summarise_focus(scores)}
        folder = Path(overrides["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def test_an_arm_is_trained_evaluated_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(focus, "run_workflow", workflow)
    CALLS.clear()
    record = tmp_path / "record.json"
    given = {
        "--data": tmp_path,
        "--output": tmp_path / "runs",
        "--arm": "both",
        "--epochs": 3,
        "--network": "base_temperature=2",
        "--training": "layer_supervision_stride=2",
        "--json": record,
    }
    arguments = [str(part) for pair in given.items() for part in pair]
    assert focus.main(arguments) == 0
    (train, settings), (evaluate, evaluation) = CALLS
    assert (train, evaluate) == ("train", "evaluate")
    assert settings["network_overrides"] == {"level_logits": "max", "base_temperature": 2}
    assert settings["settings_overrides"] == {"layer_supervision": 0.5, "layer_supervision_stride": 2}
    assert (settings["epochs"], settings["seed"], evaluation["split"], evaluation["focus"]) == (3, 0, "test", True)
    rows = {row["name"]: row["value"] for row in json.loads(record.read_text(encoding="utf-8"))["results"]}
    assert rows["both 0: liver lesion, focus 2"] == pytest.approx(9)
    assert rows["both 0: below 1 %, another V"] == 0.6
    assert rows["both 0: absent, answered"] == 0.1
    assert "attention is used" in capsys.readouterr().out
    assert focus.main(arguments) == 0
    assert len(CALLS) == 2  # it was done
    assert focus.main([*arguments, "--training", "layer_supervision=1.0"]) == 0
    assert len(CALLS) == 4


def test_arms_are_compared_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus, "run_workflow", workflow)
    dice = {("paper", 0): 0.5, ("paper", 1): 0.6, ("both", 0): 0.7, ("both", 1): 0.7}

    def run(arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
        found = original(arm, seed, arguments)
        found["focus"]["by_target"]["liver lesion"]["dice"]["mean"] = dice[arm, seed]
        return found

    original = focus.run
    monkeypatch.setattr(focus, "run", run)
    record = tmp_path / "record.json"
    arguments = ["--data", str(tmp_path), "--output", str(tmp_path / "runs"), "--json", str(record)]
    assert focus.main([*arguments, "--arm", "paper", "--arm", "both", "--seed", "0", "--seed", "1"]) == 0
    rows = {row["name"]: row["value"] for row in json.loads(record.read_text(encoding="utf-8"))["results"]}
    name = "both − paper: liver lesion, Dice"
    assert rows[f"{name}, mean"] == pytest.approx(0.15)
    assert rows[f"{name}, n"] == 2
    assert rows[f"{name}, low"] < 0 < rows[f"{name}, high"]
    assert rows["both − paper: all, Dice, mean"] == 0


def test_an_arm_may_evaluate_the_training_of_another_or_go_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(focus, "run_workflow", workflow)
    CALLS.clear()
    arguments = [
        "--data",
        str(tmp_path),
        "--output",
        str(tmp_path / "runs"),
        "--arm",
        "both_longer",
        "--arm",
        "fresh_draws",
    ]
    with pytest.raises(SystemExit, match=r"both_longer, seed 3: there is no .*train it first, by --arm both_stride_2"):
        focus.main([*arguments, "--seed", "3"])
    assert not CALLS
    first = tmp_path / "runs" / "both_stride_2_3" / "model.pt"
    first.parent.mkdir(parents=True)
    first.touch()
    assert focus.main([*arguments, "--seed", "3"]) == 0
    assert [name for name, _ in CALLS] == ["train", "evaluate", "evaluate"]
    model = str(first)
    assert CALLS[0][1]["init_from"] == {"model": model}
    assert CALLS[2][1]["checkpoint"] == model
    assert CALLS[2][1]["fresh_draws"] is True
    assert {each for arm in focus.ARMS.values() for each in (arm.trained, arm.start)} <= {None, *focus.ARMS}
