"""A search that several processes share: every point once, whoever dies; no training here."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.engines.search import Search
from boltzformer_monai.engines.search_space import PAPER, Space
from boltzformer_monai.errors import ConfigError, DivergenceError

RANGES = {
    "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "batch_size": {"type": "int", "low": 2, "high": 16},
    "augmentation": {"type": "choice", "values": ["light", "none"]},
}


FOUR = {"learning_rate": {"type": "choice", "values": [1, 2, 3, 4]}}


def _start(folder: Path, seconds: float) -> BaseProcess:
    """A worker on the paper's grid. It appends a line for the start and the end of every point, each at once."""

    def say(what: str, number: str) -> None:
        with (folder / "events.txt").open("a") as file:
            file.write(f"{what} {number} {os.getpid()}\n")

    def objective(settings: Mapping[str, Any], place: Path) -> float:
        number = place.name.removeprefix("point_")
        say("start", number)
        time.sleep(seconds)
        say("end", number)
        return settings["learning_rate"] * 1e5 + abs(settings["weight_decay"] - 1e-3)

    def work() -> None:
        Search(folder, Space(PAPER), points=None, minimise=True, poll=0.05).work(objective)

    # Forked: a new interpreter would need seconds to import what is here already.
    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    return worker


def _events(folder: Path) -> list[tuple[str, int, int]]:
    path = folder / "events.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(what, int(number), int(process)) for what, number, process in map(str.split, lines)]


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it does not come")


def test_twelve_points_two_workers_one_killed(tmp_path: Path) -> None:
    """The paper's grid: the killed worker's point is done again by the other, every other point once."""
    first, second = _start(tmp_path, 0.3), _start(tmp_path, 0.3)

    def in_its_second_point() -> bool:
        own = [what for what, _, process in _events(tmp_path) if process == first.pid]
        return own.count("start") >= 2 and own[-1] == "start"

    try:
        _until(in_its_second_point)
        first.kill()
        second.join(60)
        assert second.exitcode == 0
    finally:
        first.kill()
        second.kill()
    events = _events(tmp_path)
    lost = [event for event in events if event[2] == first.pid][-1]
    ends = Counter(number for what, number, _ in events if what == "end")
    starts = Counter(number for what, number, _ in events if what == "start")
    if lost[0] == "start":
        assert ends == dict.fromkeys(range(12), 1)
        assert starts == {**dict.fromkeys(range(12), 1), lost[1]: 2}
    else:  # killed after its point and before it could tell
        assert set(ends) == set(range(12))
        assert starts.total() <= 13
    assert {event[2] for event in events} == {first.pid, second.pid}

    search = Search(tmp_path, Space(PAPER), points=None, minimise=True)
    points = search.points()
    assert [point.state for point in points] == ["done"] * 12
    assert sorted(point.number for point in points) == list(range(12))
    assert sorted(tuple(point.settings.values()) for point in points) == sorted(
        (rate, decay) for rate in (2e-5, 4e-5, 5e-5, 1e-4) for decay in (1e-4, 1e-3, 1e-2)
    )
    assert points[0].settings == {"learning_rate": 2e-5, "weight_decay": 1e-3}
    assert [point.value for point in points] == sorted(point.value or 0 for point in points)
    search.work(lambda settings, place: pytest.fail("everything is done"))


def test_a_study_outlives_any_number_of_kills(tmp_path: Path) -> None:
    """One worker after the other is killed at any moment, drawing and telling included."""
    generator = random.Random(0)
    kills = 0
    while kills < 20:
        worker = _start(tmp_path, 0.005)
        worker.join(generator.uniform(0.01, 0.1))
        if not worker.is_alive():
            break
        worker.kill()
        worker.join()
        kills += 1
    assert kills >= 2
    worker = _start(tmp_path, 0.0)
    worker.join(60)
    assert worker.exitcode == 0
    points = Search(tmp_path, Space(PAPER), points=None, minimise=True).points()
    assert len({tuple(point.settings.values()) for point in points}) == len(points) == 12
    assert all(point.state == "done" or "its process died" in point.reason for point in points)


def test_a_line_that_was_torn_by_a_kill_is_dropped(tmp_path: Path) -> None:
    search = Search(tmp_path, Space(PAPER), points=None, minimise=True)
    done: list[Mapping[str, Any]] = []

    def objective(settings: Mapping[str, Any], place: Path) -> float:
        done.append(settings)
        with (tmp_path / "study.journal").open("ab") as file:
            file.write(b'{"op_code":6,"worker_id":"x","tr')
        return 1.0

    search.work(objective)
    assert len(done) == len(search.points()) == 12


def test_a_point_that_fails_and_one_that_stops_the_search(tmp_path: Path) -> None:
    search = Search(tmp_path, Space(FOUR), points=None, minimise=False)

    def objective(settings: Mapping[str, Any], place: Path) -> float:
        if settings["learning_rate"] == 1:
            raise DivergenceError("the loss became infinite")
        if settings["learning_rate"] == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if settings["learning_rate"] == 3:
            try:
                raise DivergenceError("wrapped by MONAI")
            except DivergenceError as error:
                raise RuntimeError("Failed to evaluate") from error
        raise ConfigError("a misspelt key")

    with pytest.raises(ConfigError, match="a misspelt key"):
        search.work(objective)
    states = {point.settings["learning_rate"]: (point.state, point.reason) for point in search.points()}
    assert states[1] == ("failed", "the loss became infinite")
    assert states[2][1].startswith("not enough memory")
    assert states[3] == ("failed", "wrapped by MONAI")
    assert states[4] == ("running", "")
    seen = []
    search.work(lambda settings, place: seen.append((settings, place)) or 7.0)  # type: ignore[func-returns-value]
    assert seen == [({"learning_rate": 4}, tmp_path / "point_3")]  # in the same folder
    assert [point.value for point in search.points()] == [7.0, None, None, None]


def _killed(folder: Path, objective: Callable[[Mapping[str, Any], Path], float]) -> None:
    """Work in a process that kills itself."""

    def work() -> None:
        Search(folder, Space(FOUR), points=None, minimise=True).work(objective)

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL


def test_a_point_that_kills_every_process_is_given_up(tmp_path: Path) -> None:
    def kills(settings: Mapping[str, Any], place: Path) -> float:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    for _ in range(3):
        _killed(tmp_path, kills)
    Search(tmp_path, Space(FOUR), points=None, minimise=True).work(lambda settings, place: settings["learning_rate"])
    points = Search(tmp_path, Space(FOUR), points=None, minimise=True).points()
    assert [(point.settings["learning_rate"], point.reason) for point in points] == [
        (2, ""), (3, ""), (4, ""), (1, "its process died 3 times"),
    ]  # fmt: skip


def test_processes_that_get_on_or_are_asked_to_stop_may_come_and_go(tmp_path: Path) -> None:
    def asked(settings: Mapping[str, Any], place: Path) -> float:
        raise SystemExit(75)

    def kills(settings: Mapping[str, Any], place: Path) -> float:
        states = list(place.glob("states/*.pt"))
        (place / "states").mkdir(parents=True, exist_ok=True)
        (place / "states" / f"{len(states)}.pt").touch()
        os.utime(place / "states" / f"{len(states)}.pt", (len(states), len(states)))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    search = Search(tmp_path, Space(FOUR), points=None, minimise=True)
    for _ in range(5):
        with pytest.raises(SystemExit):
            search.work(asked)
    for _ in range(5):
        _killed(tmp_path, kills)
    search.work(lambda settings, place: settings["learning_rate"])
    assert [point.state for point in search.points()] == ["done"] * 4


def test_a_free_search_draws_its_points_within_the_ranges(tmp_path: Path) -> None:
    search = Search(tmp_path / "a", Space(RANGES), points=15, minimise=False, seed=1)
    search.work(lambda settings, place: -abs(settings["batch_size"] - 5) - (settings["augmentation"] == "none"))
    points = search.points()
    assert len(points) == 15
    for point in points:
        assert 1e-5 <= point.settings["learning_rate"] <= 1e-2
        assert 2 <= point.settings["batch_size"] <= 16
        assert isinstance(point.settings["batch_size"], int)
        assert point.settings["augmentation"] in ("light", "none")
    assert len({point.settings["learning_rate"] for point in points}) == 15
    assert points[0].value == max(point.value or 0 for point in points)
    again = Search(tmp_path / "b", Space(RANGES), points=15, minimise=False, seed=1)
    again.work(lambda settings, place: -abs(settings["batch_size"] - 5) - (settings["augmentation"] == "none"))
    assert [point.settings for point in again.points()] == [point.settings for point in points]
    # More points of the same study.
    more = Search(tmp_path / "b", Space(RANGES), points=17, minimise=False, seed=1)
    numbers = []
    more.work(lambda settings, place: numbers.append(place.name) or 0.0)  # type: ignore[func-returns-value]
    assert numbers == ["point_15", "point_16"]


def test_a_damaged_journal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("no journal\n")
    with pytest.raises(ConfigError, match="is no journal of a search, or damaged"):
        Search(tmp_path, Space(PAPER), points=None, minimise=True).points()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "there is no key to search over"),
        ([], "it must be a mapping"),
        ({"a": 3}, "a: "),
        ({"a": {"type": "flot", "low": 1, "high": 2}}, "'flot'"),
        ({"a": {"type": "float", "low": 3, "high": 2}}, "low 3.0 is above high 2.0"),
        ({"a": {"type": "float", "low": 0, "high": 2, "log": True}}, "log needs a low above 0"),
        ({"a": {"type": "int", "low": 1.5, "high": 2}}, "a#int#low: "),
        ({"a": {"type": "int", "low": 1, "high": 2, "steps": 3}}, "a#int#steps: Extra inputs"),
        ({"a": {"type": "choice", "values": []}}, "a#choice#values: "),
        ({"a": {"type": "choice", "values": [1, 2, 1.0]}}, "1.0 is among the values twice"),
        ({"a": {"type": "choice", "values": [[1]]}}, "a#choice#values#0"),
    ],
)
def test_what_is_no_space(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "space.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError) as refused:
        Space.read(tmp_path / "space.json")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "space.json: is no search space (" in str(refused.value)


def test_a_grid_has_every_combination_of_choices_only() -> None:
    assert len(Space(PAPER).grid()) == 12
    with pytest.raises(ConfigError, match="learning_rate: a grid needs choices; take --space"):
        Space(RANGES).grid()
    many = {name: {"type": "choice", "values": list(range(100))} for name in "abc"}
    with pytest.raises(ConfigError, match="the grid has 1000000 points"):
        Space(many).grid()
    assert list(Space(RANGES).corners()) == [
        {"learning_rate": 1e-5, "batch_size": 2, "augmentation": "light"},
        {"learning_rate": 1e-2, "batch_size": 16, "augmentation": "none"},
    ]
