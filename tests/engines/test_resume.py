"""A training that is killed, stopped or refused room ends, resumed, as one that nobody disturbed: bit by bit."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from boltzformer_monai.engines import bundle
from boltzformer_monai.engines.bundle import run_workflow
from boltzformer_monai.engines.resume import StateFiles, read_state
from boltzformer_monai.engines.sampler import EpochSampler
from boltzformer_monai.errors import CheckpointError, ConfigError, StorageError, user_error
from tests.engines.cases import write_dataset
from tests.engines.small_training import BUNDLE, EPOCHS, settings
from tests.offline import offline
from tests.sizes import cases, count
from tests.warm_python import run_copy, start_copy

KILLS = count(3, thorough=20)
STEPS = 4 * EPOCHS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight slices to train on."""
    return write_dataset(tmp_path_factory.mktemp("slices"), patients=5)


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert process(dataset, folder).returncode == 0
    return folder


def process(dataset: Path, folder: Path, moment: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """A training in a process of its own, with a signal at some moment."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = ["-m", "tests.engines.small_training", dataset, folder, json.dumps(overrides), json.dumps(moment)]
    return run_copy(
        [str(word) for word in words], folder=folder.parent, environment=offline(folder.parent / "connections.txt")
    )


def timeless(epochs: list[dict[str, float]]) -> list[dict[str, float]]:
    """Curves without what is measured of a run."""
    measured = {"images_per_second", "data_wait", "peak_memory_gb"}
    return [{name: value for name, value in epoch.items() if name not in measured} for epoch in epochs]


def assert_same(folder: Path, whole: Path) -> None:
    """Weights, descriptions, curves, best and the last state are alike to the bit."""
    for name in ("model.pt", "last.pt"):
        one, other = (torch.load(place / name, weights_only=True) for place in (folder, whole))
        assert one["description"] == other["description"]
        assert one["model"].keys() == other["model"].keys()
        for key, weight in one["model"].items():
            assert torch.equal(weight, other["model"][key]), (name, key)
    first, second = (json.loads((place / "history.json").read_text()) for place in (folder, whole))
    assert timeless(first) == timeless(second)
    one, other = (read_state(StateFiles(place / "states").newest_first()[0]) for place in (folder, whole))
    for part in ("training", "checkpoints", "early_stopping", "scheduler"):
        assert one[part] == other[part]
    assert timeless(one["history"]["epochs"]) == timeless(other["history"]["epochs"]) == timeless(first)
    for name, moments in one["optimizer"].items():
        assert all(torch.equal(value, other["optimizer"][name][key]) for key, value in moments.items())
    assert one["training"]["finished"]
    assert not [path for path in folder.rglob(".boltzformer-*") if path.parent.name != "states"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(workers: int, dataset: Path, whole: Path, tmp_path: Path):
    rng, kills, launches = random.Random(workers), 0, 0
    run = tmp_path / "run"
    while kills < KILLS:
        moment = {"signal": "SIGKILL", "after": rng.uniform(0.0, 1.2)}
        ended = process(dataset, run, moment, workers=workers, resume="auto")
        launches += 1
        assert launches < 5 * KILLS, ended.stderr
        if ended.returncode == -signal.SIGKILL:
            kills += 1
        else:  # it was done before
            assert ended.returncode == 0, ended.stderr
            assert_same(run, whole)
            run = tmp_path / f"run{launches}"
    ended = process(dataset, run, workers=workers, resume="auto")
    assert ended.returncode == 0, ended.stderr
    assert_same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place", "number", "step"),
    cases(
        [("SIGUSR1", "step", 8, 8), ("SIGTERM", "validation", 1, 4), ("SIGINT", "step", 3, 3)],
        thorough=[("SIGTERM", "step", 6, 6), ("SIGINT", "validation", 2, 8)],
    ),
)
def test_stopped_by_a_signal(name: str, place: str, number: int, step: int, dataset: Path, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    moment = {"signal": name, "in": place, "count": number}
    ended = process(dataset, run, moment, save_steps=0)
    assert ended.returncode == (75 if name != "SIGINT" else -signal.SIGINT), ended.stderr
    assert f"stopped by {name} after step {step}; --resume auto goes on from " in ended.stderr
    assert "rror" not in ended.stderr
    assert "Traceback" not in ended.stderr
    states = [path.name for path in StateFiles(run / "states").newest_first()]
    assert states[0] == f"state_{step:08d}.pt"
    ended = process(dataset, run, save_steps=0, resume="auto")
    assert ended.returncode == 0, ended.stderr
    assert_same(run, whole)


def processes(dataset: Path, folder: Path, moment: dict[str, Any] | None = None, **overrides: Any) -> list[int]:
    """A training in two processes, as torchrun starts them, of which the second gets the signal; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    copies = []
    for rank in range(2):
        words = ["-m", "tests.engines.small_training", dataset, folder, json.dumps(overrides)]
        words.append(json.dumps(moment if rank else None))
        place = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
        environment = {**offline(folder.parent / "connections.txt"), **place, "MASTER_ADDR": "127.0.0.1"}
        log = folder.parent / f"{folder.name}-{rank}.log"
        copies.append(start_copy([str(word) for word in words], folder=folder.parent, log=log, environment=environment))
    return [copy.wait(300) for copy in copies]


@pytest.mark.slow
def test_processes_stop_and_go_on_together(dataset: Path, tmp_path: Path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert processes(dataset, whole) == [0, 0]
    moment = {"signal": "SIGTERM", "in": "step", "count": 3}
    assert processes(dataset, run, moment) == [75, 75]
    assert StateFiles(run / "states").newest_first()[0].name == "state_00000003.pt"
    assert processes(dataset, run, resume="auto") == [0, 0]
    assert_same(run, whole)


class Interrupted(Exception):
    pass


def train(dataset: Path, folder: Path, *, cut: int | None = None, **overrides: Any) -> None:
    """Train here; ``cut`` ends it in a step."""
    seed_step = EpochSampler.seed_step  # at the start of a step

    def counted(self: EpochSampler, step: int) -> None:
        if step == cut:
            raise Interrupted
        seed_step(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochSampler, "seed_step", counted)
        try:
            run_workflow("train", settings(dataset, folder, **overrides), root=BUNDLE)
        except RuntimeError as error:  # MONAI wraps what an expression raises
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, Interrupted):
                cause = cause.__cause__
            raise cause or user_error(error) or error from None


@pytest.fixture(scope="module")
def _cut(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that ended in its seventh step."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    with pytest.raises(Interrupted):
        train(dataset, folder, cut=7)
    return folder


@pytest.fixture
def cut(_cut: Path, tmp_path: Path, bundle_in_process: None) -> Path:
    """A copy of it."""
    import shutil

    shutil.copytree(_cut, tmp_path / "run")
    return tmp_path / "run"


def test_nothing_to_go_on_from(
    dataset: Path, tmp_path: Path, bundle_in_process: None, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "boltzformer_monai")
    with pytest.raises(Interrupted):
        train(dataset, tmp_path / "run", cut=2, resume="auto")
    assert "holds no state to go on from: the training begins" in caplog.text
    assert len(StateFiles(tmp_path / "run" / "states").newest_first()) == 1
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(ConfigError, match=rf"--resume .*{place}: (there is no state|no such file)"):
            train(dataset, tmp_path / "run", resume=str(tmp_path / place))


def test_another_configuration_is_named_and_refused(dataset: Path, cut: Path):
    with pytest.raises(ConfigError) as refused:
        train(dataset, cut, resume="auto", learning_rate=2e-3, epochs=5, seed=1)
    assert "is of another training: epochs 5 (was 3), learning_rate 0.002 (was 0.001), seed 1 (was 0);" in str(
        refused.value
    )
    other = write_dataset(cut.parent / "other", patients=6)
    with pytest.raises(ConfigError, match="data set #"):
        train(other, cut, resume="auto")
    resplit = write_dataset(cut.parent / "resplit", patients=5, val=1)  # as many of each, the same records
    with pytest.raises(ConfigError, match="data set #"):
        train(resplit, cut, resume="auto")
    with pytest.raises(ConfigError, match=r"augmentation 'paper' \(was 'light'\);"):
        train(dataset, cut, resume="auto", augmentation="paper")
    with pytest.raises(ConfigError, match=r"loss\.balance 3\.0 \(was 50\.0\)"):
        train(dataset, cut, resume="auto", **{"loss#balance": 3.0})
    assert len(StateFiles(cut / "states").newest_first()) == 2


@pytest.mark.slow
def test_what_changes_no_number_may_differ(dataset: Path, cut: Path, whole: Path):
    moved = cut.rename(cut.parent / "moved")
    train(dataset, moved, resume="auto", workers=1, save_steps=3, settings_overrides={"cache": False})
    assert_same(moved, whole)


@pytest.mark.slow
def test_the_average_of_the_weights_goes_on_too(dataset: Path, whole: Path, tmp_path: Path, bundle_in_process: None):
    averaged = {"settings_overrides": {"ema": 0.5}}
    train(dataset, tmp_path / "whole", **averaged)
    with pytest.raises(Interrupted):
        train(dataset, tmp_path / "run", cut=7, **averaged)
    train(dataset, tmp_path / "run", resume="auto", **averaged)
    assert_same(tmp_path / "run", tmp_path / "whole")
    state = read_state(StateFiles(tmp_path / "whole" / "states").newest_first()[0])
    last, plain = (torch.load(place / "last.pt", weights_only=True)["model"] for place in (tmp_path / "whole", whole))
    for name, weight in last.items():
        assert torch.equal(weight, state["average"][f"module.{name}"])
        assert torch.equal(plain[name], state["network"][name])  # the average does not change the training itself
    assert any(not torch.equal(weight, plain[name]) for name, weight in last.items())
    with pytest.raises(ConfigError, match=r"ema 0\.9 \(was 0\.5\)"):
        train(dataset, tmp_path / "run", resume="auto", settings_overrides={"ema": 0.9})


def test_another_number_of_threads_is_named(dataset: Path, cut: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "boltzformer_monai")
    torch.set_num_threads(2)
    with pytest.raises(Interrupted):
        train(dataset, cut, cut=8, resume="auto")
    assert "is of 1 threads, here are 2: sums differ in rounding" in caplog.text


@pytest.mark.slow
def test_a_path_goes_on_with_other_settings(dataset: Path, cut: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "boltzformer_monai")
    state = cut / "states" / "state_00000005.pt"
    best = read_state(state)["checkpoints"]["best"]
    train(dataset, cut, resume=str(state), epochs=4, learning_rate=1e-5, settings_overrides={"decay_norms": True})
    assert "going on after step 5, epoch 1" in caplog.text
    said = "differs from the training before: epochs 4 (was 3), learning_rate 1e-05 (was 0.001), decay_norms True"
    assert said in caplog.text
    history = json.loads((cut / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    last = read_state(StateFiles(cut / "states").newest_first()[0])
    assert last["training"]["step"] == 16
    assert last["scheduler"]["base_lrs"] == [1e-5]
    assert last["checkpoints"]["best"] <= best


def test_a_finished_training_says_so_and_can_be_made_longer(
    dataset: Path, whole: Path, tmp_path: Path, bundle_in_process: None, caplog: pytest.LogCaptureFixture
):
    import shutil

    caplog.set_level("INFO", "boltzformer_monai")
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    train(dataset, run, cut=1, resume="auto")
    assert "the training is finished already, after 3 epochs" in caplog.text
    assert_same(run, whole)
    best = read_state(StateFiles(run / "states").newest_first()[0])["checkpoints"]["best"]
    weights = torch.load(run / "model.pt", weights_only=True)["model"]
    # Elsewhere the best checkpoint goes along, whatever was written into it after the training.
    other = tmp_path / "longer"
    train(dataset, other, resume=str(run), epochs=4, learning_rate=0.0)
    assert [row["epoch"] for row in json.loads((other / "history.json").read_text())] == [1, 2, 3, 4]
    last = read_state(StateFiles(other / "states").newest_first()[0])
    assert last["checkpoints"]["best"] <= best
    if last["checkpoints"]["best"] == best:
        longer = torch.load(other / "model.pt", weights_only=True)["model"]
        assert all(torch.equal(weights[key], longer[key]) for key in weights)


def test_another_network_is_refused(dataset: Path, cut: Path):
    network = settings(dataset, cut)["network_overrides"]
    for resume in ("auto", str(cut)):
        with pytest.raises(ConfigError, match=r"another (network|training): network\.queries 5 \(was "):
            train(dataset, cut, resume=resume, network_overrides={**network, "queries": 5})


def test_a_damaged_state_gives_way_to_the_one_before(
    dataset: Path, cut: Path, whole: Path, caplog: pytest.LogCaptureFixture
):
    newest, older = StateFiles(cut / "states").newest_first()
    newest.write_bytes(newest.read_bytes()[:5000])
    train(dataset, cut, resume="auto")
    assert len(re.findall("trying the state before", caplog.text)) == 1
    assert_same(cut, whole)
    assert not older.exists()
    for state in StateFiles(cut / "states").newest_first():
        state.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no state can be read; start anew without --resume"):
        train(dataset, cut, resume="auto")
    with pytest.raises(CheckpointError, match="is no state of a training"):
        train(dataset, cut, resume=str(cut / "last.pt"))


def test_without_resume_the_states_are_kept_aside(dataset: Path, cut: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "boltzformer_monai")
    before = [path.name for path in StateFiles(cut / "states").newest_first()]
    with pytest.raises(Interrupted):
        train(dataset, cut, cut=2)
    assert "the states of the earlier one are kept as" in caplog.text
    assert [path.name for path in StateFiles(cut / "states.previous").newest_first()] == before
    assert [path.name for path in StateFiles(cut / "states").newest_first()] == ["state_00000001.pt"]
    assert (cut / "model.previous.pt").is_file()


@pytest.mark.slow
def test_a_full_disk_leaves_the_older_state(dataset: Path, cut: Path, whole: Path, caplog: pytest.LogCaptureFixture):
    resource = pytest.importorskip("resource")
    before = {path.name: path.read_bytes() for path in (cut / "states").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 << 20, limits[1]))  # the weights have room, a state has not
    try:
        with pytest.raises(StorageError, match=r"state_00000007\.pt: cannot be written \(File too large\); free space"):
            train(dataset, cut, resume="auto")
        assert "terminating due to exception" not in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in (cut / "states").iterdir()} == before
    train(dataset, cut, resume="auto")
    assert_same(cut, whole)


def test_curves_in_tensorboard_have_no_step_twice(dataset: Path, cut: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    state = cut / "states" / "state_00000005.pt"
    train(dataset, cut, resume=str(state))
    events = EventAccumulator(str(cut / "tensorboard"))
    events.Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["train_loss"] == list(range(1, STEPS + 1))


def test_other_samplers_cannot_be_resumed(dataset: Path, cut: Path):
    with pytest.raises(ConfigError, match="SequentialSampler"):
        train(
            dataset, cut, resume=str(cut), **{"train#sampler": "$torch.utils.data.SequentialSampler(@train#examples)"}
        )


def test_the_command_line_has_it(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from boltzformer_monai.cli import main

    given: list[dict[str, Any]] = []
    monkeypatch.setattr(bundle, "run_workflow", lambda name, keys, **_: given.append(dict(keys)))
    monkeypatch.chdir(tmp_path)
    for resume in ("auto", "states/state_00000001.pt"):
        assert main(["train", "--data", str(dataset), "--output", "run", "--resume", resume]) == 0
    assert [keys["resume"] for keys in given] == ["auto", str(tmp_path / "states" / "state_00000001.pt")]
