"""Training on corrected labels: resumed where it stopped, and no threshold hides what was drawn."""

from __future__ import annotations

import json
import random
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.data.windows import NAMED_WINDOWS  # noqa: E402
from boltzformer_monai.engines.sampler import EpochSampler  # noqa: E402
from boltzformer_monai.errors import ConfigError  # noqa: E402
from boltzformer_monai.evaluation import metrics  # noqa: E402
from boltzformer_monai.evaluation.metrics import Metric, register_metric  # noqa: E402
from boltzformer_monai.evaluation.presence_rule import PresenceRule  # noqa: E402
from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.label.learning import fine_tune as module  # noqa: E402
from boltzformer_monai.label.learning.corrected_labels import CorrectedLabel, write_slices  # noqa: E402
from boltzformer_monai.networks import create_boltzformer, network_config  # noqa: E402
from boltzformer_monai.networks.weights import Description, load_checkpoint  # noqa: E402
from tests import sizes  # noqa: E402
from tests.label.conftest import AFFINE, scan  # noqa: E402
from tests.label.day import write_block  # noqa: E402
from tests.offline import offline  # noqa: E402
from tests.warm_python import run_copy  # noqa: E402

KILLS = sizes.count(2, thorough=5)
TARGET = {"target": "liver", "modality": "CT", "site": "abdomen", "window": NAMED_WINDOWS["abdomen"].to_dict()}
LEARNED = {"names": ["Bright Block"], "labels": ["1"]}


def checkpoint_with(folder: Path, rule: PresenceRule | None) -> Path:
    """Random weights with a presence head, and masks that are everywhere, so that they meet the label."""
    torch.manual_seed(0)
    config = network_config("tiny", image_size=64, mask_bias=20.0, presence=True)
    data = {"plane": "axial", "targets": [TARGET]} | ({} if rule is None else {"presence": rule.as_dict()})
    path = folder / "model.pt"
    model = create_boltzformer(config)
    torch.save({"model": model.state_dict(), "description": Description(config, data).state_dict()}, path)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """One scan with one corrected label."""
    image = tmp_path / "scan.nii.gz"
    write_image_file(scan(0), AFFINE, image)
    label = CorrectedLabel("scan", image, write_block(tmp_path / "label.nii.gz", 3), {3: "Bright Block"}, "d" * 64)
    folder = tmp_path / "dataset"
    assert write_slices([label], folder, data={"plane": "axial", "targets": [TARGET]}, modality="CT", neighbours=0)
    return folder


def tune(tmp_path: Path, dataset: Path, checkpoint: Path, *, epochs: int = 1) -> Path:
    tuned(tmp_path, dataset, checkpoint, epochs=epochs)
    return tmp_path / "out" / "model.pt"


def tuned(tmp_path: Path, dataset: Path, checkpoint: Path, **settings: Any) -> float | None:
    return module.fine_tune(
        checkpoint=checkpoint,
        dataset=dataset,
        folder=tmp_path / "training",
        output=tmp_path / "out" / "model.pt",
        device=torch.device("cpu"),
        precision="fp32",
        learning_rate=1e-5,
        learned=LEARNED,
        **settings,
    )


def test_the_key_metric_selects_the_epoch(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count()
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))
    register_metric(Metric(name="age", compute=lambda _: next(calls), dimensions=(2,), better="lower"))
    best = tuned(tmp_path, dataset, checkpoint_with(tmp_path, None), epochs=2, key_metric="age")
    assert best is not None
    assert best < next(calls) / 2  # the mean of numbers of the first epoch


def test_an_unknown_key_metric_is_refused(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key_metric 'dise'; did you mean 'dice'\?"):
        tuned(tmp_path, dataset, tmp_path / "none.pt", epochs=1, key_metric="dise")


@pytest.mark.parametrize(
    ("before", "falls"),
    [(PresenceRule(high=0.9999, low=0.9998), True), (PresenceRule(high=0.4, low=0.0002), False), (None, False)],
)
def test_presence_thresholds_fall_but_never_rise(
    tmp_path: Path, dataset: Path, before: PresenceRule | None, falls: bool
) -> None:
    """A threshold that would hide the label is lowered, to a half at least; one that does not stays."""
    after = PresenceRule.of(load_checkpoint(tune(tmp_path, dataset, checkpoint_with(tmp_path, before)))[1].data)
    if before is None:
        assert after is None
        return
    assert after is not None
    if falls:
        assert 0.5 <= after.high < before.high
        assert after.low < before.low
    else:
        assert after.high == before.high
        assert after.low <= before.low


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_checkpoint(path)[0].state_dict() for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def interrupted(folder: Path, dataset: Path, checkpoint: Path, patches: pytest.MonkeyPatch, **settings: Any) -> None:
    """A training whose power is cut in its third step (of three, one an epoch)."""
    steps = count(1)
    seed_step = EpochSampler.seed_step

    def power_cut(sampler: EpochSampler, step: int) -> None:
        if next(steps) == 3:
            raise SystemError("cut")
        seed_step(sampler, step)

    with patches.context() as patch:
        patch.setattr(EpochSampler, "seed_step", power_cut)
        with pytest.raises(SystemError, match="cut"):
            tuned(folder, dataset, checkpoint, epochs=3, **settings)


@pytest.mark.slow
def test_a_stopped_training_ends_as_one_that_was_not(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_with(tmp_path, None)
    best = tuned(tmp_path, dataset, checkpoint, epochs=3)
    (tmp_path / "out" / "model.pt").replace(tmp_path / "whole.pt")
    interrupted(tmp_path, dataset, checkpoint, monkeypatch)
    (job,) = (tmp_path / "training").iterdir()
    assert len(json.loads((job / "history.json").read_text())) == 2
    assert not (tmp_path / "out" / "model.pt").exists()
    started = count()
    seed_step = EpochSampler.seed_step
    monkeypatch.setattr(EpochSampler, "seed_step", lambda *a: (next(started), seed_step(*a))[1])
    assert tuned(tmp_path, dataset, checkpoint, epochs=3) == best
    assert next(started) == 1  # step was left
    assert same_weights(tmp_path / "out" / "model.pt", tmp_path / "whole.pt")
    assert not (tmp_path / "training").exists()
    assert load_checkpoint(tmp_path / "out" / "model.pt")[1].data["learned"] == LEARNED


@pytest.mark.slow
def test_another_job_begins_anew(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_with(tmp_path, None)
    interrupted(tmp_path, dataset, checkpoint, monkeypatch)
    (old,) = (tmp_path / "training").iterdir()
    interrupted(tmp_path, dataset, checkpoint, monkeypatch, key_metric="dice")
    (new,) = (tmp_path / "training").iterdir()
    assert old != new


@pytest.mark.slow
def test_damaged_states_begin_anew(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = checkpoint_with(tmp_path, None)
    interrupted(tmp_path, dataset, checkpoint, monkeypatch)
    for state in (tmp_path / "training").glob("*/states/*.pt"):
        state.write_bytes(state.read_bytes()[:1000])
    tune(tmp_path, dataset, checkpoint, epochs=3)
    assert "no state can be read" in caplog.text
    assert "the training begins anew" in caplog.text
    assert load_checkpoint(tmp_path / "out" / "model.pt")[1].data["learned"] == LEARNED


def in_process(checkpoint: Path, dataset: Path, folder: Path, moment: dict[str, Any] | None = None) -> int:
    """A fine-tuning in a process of its own; its exit code."""
    folder.mkdir(exist_ok=True)
    words = ["-m", "tests.label.learning.small_tuning", checkpoint, dataset, folder, json.dumps(moment)]
    log = folder.parent / "connections.txt"
    ended = run_copy([str(word) for word in words], folder=folder.parent, environment=offline(log))
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, dataset: Path) -> None:
    checkpoint = checkpoint_with(tmp_path, PresenceRule(high=0.9, low=0.5))
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert in_process(checkpoint, dataset, whole) == 0
    rng, kills = random.Random(1), 0
    while kills < KILLS:
        moment = {"signal": "SIGKILL", "after": rng.uniform(0.0, 0.8)}
        if in_process(checkpoint, dataset, run, moment) == -signal.SIGKILL:
            kills += 1
        else:  # it was done before
            assert same_weights(run / "out.pt", whole / "out.pt")
            run = tmp_path / f"run{kills}"
    assert in_process(checkpoint, dataset, run) == 0
    assert same_weights(run / "out.pt", whole / "out.pt")
    assert load_checkpoint(run / "out.pt")[1].data == load_checkpoint(whole / "out.pt")[1].data
    assert (run / "best.json").read_text() == (whole / "best.json").read_text()
    assert not (run / "training").exists()
