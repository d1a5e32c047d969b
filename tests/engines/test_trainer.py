"""What the training run is made of: optimiser, schedule, checkpoints and curves."""

from __future__ import annotations

import errno
import json
import operator
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from boltzformer_monai.engines import (
    SETTINGS,
    make_optimizer,
    make_scheduler,
)
from boltzformer_monai.engines.key_metric import VAL_DICE, VAL_LOSS
from boltzformer_monai.engines.trainer import Checkpoints, History
from boltzformer_monai.errors import StorageError


def test_all_weights_decay_as_in_the_paper():
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    (group,) = make_optimizer(network, learning_rate=2e-5, weight_decay=1e-2).param_groups
    assert len(group["params"]) == 4
    assert (group["lr"], group["weight_decay"]) == (2e-5, 1e-2)


def test_norms_and_biases_can_be_kept_from_decaying():
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    network[1].bias.requires_grad_(False)
    groups = make_optimizer(network, learning_rate=1e-3, weight_decay=0.1, decay_norms=False).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (2, 0.0)]
    assert groups[0]["params"][0] is network[0].weight


def rates(schedule: str, warm_up: float, steps: int = 20) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    settings = replace(SETTINGS["tiny"], schedule=schedule, warm_up=warm_up)
    scheduler = make_scheduler(optimizer, settings=settings, steps=steps)
    values = []
    for _ in range(steps + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_schedules():
    assert set(rates("constant", 0.1)) == {1.0}
    cosine = rates("cosine", 0.2)
    assert cosine[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert cosine[4:] == sorted(cosine[4:], reverse=True)
    assert cosine[12] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx(0.0)


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def _evaluator() -> Engine:
    """As MONAI's, with the validation loss as its key metric."""
    evaluator = Engine(lambda *_: None)
    evaluator.state.key_metric_name = VAL_LOSS
    evaluator.metric_cmp_fn = operator.lt
    return evaluator


def test_only_a_better_validation_loss_replaces_the_best_checkpoint(tmp_path: Path):
    network = _Network()
    checkpoints = Checkpoints(tmp_path, network, SimpleNamespace(state_dict=lambda: {"a": 1}))
    evaluator = _evaluator()
    kept = []
    for epoch, loss in enumerate([3.0, 2.0, 2.5, float("nan"), 1.0]):
        network.weight.data.fill_(float(epoch))
        evaluator.state.metrics[VAL_LOSS] = loss
        checkpoints._validated(evaluator)
        checkpoints.save_last()
        best, last = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "last.pt"))
        kept.append(int(best["model"]["weight"]))
        assert int(last["model"]["weight"]) == epoch
        assert last["description"] == {"a": 1}
    assert kept == [0, 1, 1, 1, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "model.pt"]


def test_the_best_checkpoint_of_an_interrupted_training_is_the_one_to_beat(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, _Network(), SimpleNamespace(state_dict=dict))
    checkpoints.load_state_dict({"best": 1.0, "digest": ""})
    evaluator = _evaluator()
    for loss, written in ((1.5, False), (1.0, False), (0.5, True)):
        evaluator.state.metrics[VAL_LOSS] = loss
        checkpoints._validated(evaluator)
        assert (tmp_path / "model.pt").exists() == written


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(tmp_path, _Network(), SimpleNamespace(state_dict=dict))
    checkpoints.save_last()
    before = (tmp_path / "last.pt").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"last\.pt: cannot be written \(No space left on device\)"):
        checkpoints.save_last()
    trainer, evaluator = Engine(lambda _, loss: [{"loss": loss}]), _evaluator()
    History(tmp_path / "history.json").attach(trainer, evaluator)
    with pytest.raises(StorageError, match=r"history\.json: cannot be written \(No space left on device\)"):
        trainer.run([0.5], max_epochs=1)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_curves_are_written_after_every_epoch(tmp_path: Path):
    losses = iter([4.0, 2.0, 1.0, 1.0])
    trainer = Engine(lambda *_: {"loss": next(losses)})
    evaluator = _evaluator()
    History(tmp_path / "history.json").attach(trainer, evaluator)
    evaluator.state.epoch = 2
    evaluator.state.metrics.update({VAL_LOSS: 0.5, VAL_DICE: torch.tensor(0.75)})
    trainer.run([0, 1], max_epochs=2)
    assert json.loads((tmp_path / "history.json").read_text()) == [
        {"epoch": 1.0, "train_loss": 3.0},
        {"epoch": 2.0, "train_loss": 1.0, VAL_LOSS: 0.5, VAL_DICE: 0.75},
    ]
