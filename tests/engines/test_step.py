"""One step on a global batch: micro-batches and processes change nothing but rounding."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from boltzformer_monai.engines.sampler import Draw, EpochSampler
from boltzformer_monai.engines.step import StepLoader, global_batch_of
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.weights import read_weights
from tests.engines import ranks
from tests.engines.cases import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 slices to train on, so that the last of five steps has only two, and 3 to validate."""
    return write_dataset(tmp_path_factory.mktemp("ranks") / "slices", patients=7, slices=3)


@pytest.fixture(scope="module")
def whole(dataset: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """Weights and history of one process that has the global batch in its memory."""
    ranks.train(dataset, dataset.parent / "whole", batch_size=4)
    return outcome(dataset.parent / "whole")


def outcome(output: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    weights = read_weights(output / "last.pt")["model"].values()
    flat = torch.cat([each.double().flatten() for each in weights if each.is_floating_point()])
    (epoch,) = json.loads((output / "history.json").read_text())
    return flat, epoch


def assert_same(found: tuple[torch.Tensor, dict[str, Any]], expected: tuple[torch.Tensor, dict[str, Any]]) -> None:
    assert float((found[0] - expected[0]).norm() / expected[0].norm()) < 1e-6
    for name in ("train_loss", "val_loss", "val_dice"):
        assert found[1][name] == pytest.approx(expected[1][name], rel=1e-5), name


@pytest.mark.parametrize("batch_size", [2, 1])
def test_accumulation_equals_the_whole_batch(batch_size: int, dataset: Path, whole: Any, tmp_path: Path):
    ranks.train(dataset, tmp_path, batch_size=batch_size)
    assert_same(outcome(tmp_path), whole)


@pytest.mark.slow
def test_two_processes_equal_one(dataset: Path, whole: Any, tmp_path: Path):
    for process in (started := ranks.processes(dataset, tmp_path)):
        process.wait(200)
    assert [process.returncode for process in started] == [0, 0], [each.stderr.read() for each in started]
    assert_same(outcome(tmp_path), whole)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_a_process_that_dies_ends_the_other_within_seconds(dataset: Path, tmp_path: Path):
    survivor, victim = ranks.processes(dataset, tmp_path, epochs=10_000)
    try:
        end = time.monotonic() + 200
        while not (tmp_path / "model.pt").is_file():
            assert survivor.poll() is None, survivor.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.1)
        victim.kill()
        killed = time.monotonic()
        said = survivor.communicate(timeout=60)[1]
        assert time.monotonic() - killed < 30  # a busy machine; Gloo itself waits for half an hour
    finally:
        survivor.kill()
        victim.kill()
    assert survivor.returncode not in (0, None)
    assert "error: process 0: another process of this training ended" in said.splitlines()[-1]
    assert read_weights(tmp_path / "model.pt")["model"]


def test_global_batches_that_do_not_fit(monkeypatch: pytest.MonkeyPatch):
    assert global_batch_of(None, batch_size=12) == 12
    assert global_batch_of(384, batch_size=12) == 384
    with pytest.raises(ConfigError, match="global_batch 30 is no multiple of batch_size 12; take 24 or 36"):
        global_batch_of(30, batch_size=12)
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 4)
    assert global_batch_of(None, batch_size=12) == 48
    with pytest.raises(ConfigError, match="batch_size 12 × 4 processes; take 48, or a smaller batch_size"):
        global_batch_of(30, batch_size=12)


class _Indices(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, draw: Draw) -> int:
        return draw[0]


def test_steps_of_micro_batches():
    sampler = EpochSampler(10, seed=0, global_batch=4)
    order = [draw[0] for draw in sampler.epoch(0)]
    steps = StepLoader(torch.utils.data.DataLoader(_Indices(), batch_size=2, sampler=sampler))
    assert (len(steps), steps.micro_batches) == (3, 2)
    batches = [[batch.tolist() for batch in step] for step in steps]
    assert batches == [[order[0:2], order[2:4]], [order[4:6], order[6:8]], [order[8:10]]]
    other = StepLoader(torch.utils.data.DataLoader(_Indices(), batch_size=4))
    assert (len(other), other.micro_batches) == (3, 1)
    with pytest.raises(ConfigError, match="4 examples of a step on each process are no multiple of the batch size 3"):
        StepLoader(torch.utils.data.DataLoader(_Indices(), batch_size=3, sampler=sampler))


def test_weights_decide_how_often_an_example_is_drawn_on_all_processes():
    weights = [3.0 if n % 10 == 0 else 1.0 for n in range(100)]
    drawn = torch.zeros(100)
    for rank in range(3):
        sampler = EpochSampler(weights, seed=1, global_batch=12, rank=rank, world=3)
        for _ in range(60):
            for index, _ in sampler:
                drawn[index] += 1
    heavy = float(drawn[::10].sum() / drawn.sum())
    assert heavy == pytest.approx(30 / 120, abs=0.02)
    assert int(drawn.sum()) == 60 * 102  # the last step is filled up
