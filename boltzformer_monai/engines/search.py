"""A search over settings as an Optuna study in a folder, which any number of processes share.

A point (Optuna: trial) belongs to the process that holds its lock, and the system takes the lock from a process that
dies, however it dies. So a point that is under way and whose lock is free was lost, and the next process does it again,
in the same folder, where its training goes on. Everything else happens under one lock of the study.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from boltzformer_monai.engines.search_space import Space
from boltzformer_monai.errors import ConfigError, DivergenceError, memory_line, user_error, why
from boltzformer_monai.storage import writing

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

__all__ = ["Point", "Search"]

_log = logging.getLogger(__name__)

_NAME = "search"
_MOST_DEATHS = 3
"""A point whose process died so often without any progress is given up: it may be what kills it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a search.

    Attributes:
        number: in the study.
        settings: key → value.
        value: of the objective; None unless it is done.
        state: ``"done"``, ``"failed"`` or ``"running"``.
        reason: why it failed.
        minutes: from its start to its end; None while it runs.
    """

    number: int
    settings: Mapping[str, Any]
    value: float | None
    state: str
    reason: str = ""
    minutes: float | None = None


class Search:
    """A study of a space.

    Args:
        folder: of the study; every point has a folder ``point_0``, … in it.
        space: what is searched.
        points: number of points that Optuna draws; None: all combinations of the space's choices.
        minimise: whether lower values are better.
        seed: of the draws. They depend on the finished points too, so on the order in which several processes finish.
        poll: seconds between looks at points of other processes.

    Raises:
        ConfigError: Optuna is not installed, or a grid has no choices.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        *,
        points: int | None,
        minimise: bool,
        seed: int = 0,
        poll: float = 2.0,
    ) -> None:
        self.folder = folder
        self.space = space
        self.grid = space.grid() if points is None else []
        self.count = len(self.grid) if points is None else points
        self.minimise = minimise
        self.seed = seed
        self.poll = poll
        self._journal = folder / "study.journal"
        self._locks = folder / ".locks"
        with writing(folder):
            self._locks.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._locks / "study")

    def work(self, objective: Callable[[Mapping[str, Any], Path], float]) -> None:
        """Do points until all are done, those that other processes lost included.

        Args:
            objective: settings and folder of a point → its value. It is called again for the same point and folder
                after a process died in it.

        Raises:
            Exception: the objective's, other than that its training diverged or had too little memory: these fail
                their point. The point stays open, for a later run.
        """
        waited = False
        while True:
            claimed = self._claim()
            if claimed is not None:
                waited = False
                self._do(*claimed, objective)
                continue
            running = [point.number for point in self.points() if point.state == "running"]
            if not running:
                return
            if not waited:
                _log.info("waiting for other processes: %s", ", ".join(f"point {number}" for number in running))
                waited = True
            time.sleep(self.poll)

    def points(self) -> list[Point]:
        """All points so far, the best first, failed ones last."""
        with self._lock:
            study = self._open()
            points = [self._point(study, trial) for trial in self._trials(study)]
        order = {"done": 0, "running": 1, "failed": 2}
        sign = 1 if self.minimise else -1
        return sorted(points, key=lambda point: (order[point.state], sign * (point.value or 0.0), point.number))

    def place(self, number: int) -> Path:
        """The folder of a point."""
        return self.folder / f"point_{number}"

    def _do(
        self,
        number: int,
        settings: Mapping[str, Any],
        lock: FileLock,
        objective: Callable[[Mapping[str, Any], Path], float],
    ) -> None:
        said = ", ".join(f"{key} {value}" for key, value in settings.items())
        _log.info("point %d of 0 to %d: %s", number, self.count - 1, said)
        try:
            value = objective(settings, self.place(number))
            if not math.isfinite(value):
                raise DivergenceError(f"its value is {value}")
            self._tell(number, value)
            _log.info("point %d: %.6g", number, value)
        except Exception as error:
            known = user_error(error)
            line = str(known) if isinstance(known, DivergenceError) else memory_line(error)
            if line is None:
                self._stopped(number)
                raise
            self._fail(number, line)
        except BaseException:
            self._stopped(number)
            raise
        finally:
            lock.release()

    def _claim(self) -> tuple[int, Mapping[str, Any], FileLock] | None:
        """Take a lost point, or a new one; None if there is none, or others do the rest."""
        from optuna.trial import TrialState

        with self._lock:
            study = self._open()
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                lock = FileLock(self._locks / f"point_{trial.number}")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue  # its process lives
                if not self._is_whole(trial):  # killed while it was drawn
                    study.tell(trial.number, state=TrialState.FAIL)
                elif (deaths := self._deaths(study, trial.number)) >= _MOST_DEATHS:
                    self._fail(trial.number, f"its process died {deaths} times")
                else:
                    _log.info("point %d was left open; going on with it", trial.number)
                    return trial.number, trial.params, lock
                lock.release()
            return self._draw(study)

    def _deaths(self, study: Study, number: int) -> int:
        """How often a point's process died since its last progress, now included: its lock is free, and it is open."""
        before = study.user_attrs.get(f"deaths {number}", {"count": 0, "progress": 0.0})
        written = [path.stat().st_mtime for path in self.place(number).rglob("*.pt")]  # weights and states
        progress = max(written, default=0.0)
        count = before["count"] + 1 if progress == before["progress"] else 1
        if study.user_attrs.get(f"stopped {number}"):  # it was asked to stop, and said so
            count = 0
            study.set_user_attr(f"stopped {number}", False)
        study.set_user_attr(f"deaths {number}", {"count": count, "progress": progress})
        return count

    def _draw(self, study: Study) -> tuple[int, Mapping[str, Any], FileLock] | None:
        from optuna.trial import TrialState

        known = self._trials(study)
        if self.grid:
            left = [point for point in self.grid if point not in [trial.params for trial in known]]
            if not left:
                return None
            if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                study.enqueue_trial(left[0])
        elif len(known) >= self.count:
            return None
        trial = study.ask(self.space.distributions())
        lock = FileLock(self._locks / f"point_{trial.number}")
        lock.acquire()
        return trial.number, trial.params, lock

    def _stopped(self, number: int) -> None:
        """Leave a point open whose process ends of its own."""
        with self._lock:
            self._open().set_user_attr(f"stopped {number}", True)

    def _tell(self, number: int, value: float) -> None:
        with self._lock:
            self._open().tell(number, value)

    def _fail(self, number: int, reason: str) -> None:
        from optuna.trial import TrialState

        _log.warning("point %d failed: %s", number, reason)
        with self._lock:
            study = self._open()
            study.set_user_attr(f"reason {number}", reason)
            study.tell(number, state=TrialState.FAIL)

    def _open(self) -> Study:
        """The study as it is now; the study's lock is held."""
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise ConfigError("a search needs Optuna; pip install 'boltzformer-monai[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            with writing(self._journal):
                _drop_torn_line(self._journal)
                storage = JournalStorage(JournalFileBackend(str(self._journal), lock_obj=_Held()))  # type: ignore[arg-type]
            direction: Literal["minimize", "maximize"] = "minimize" if self.minimise else "maximize"
            study = optuna.create_study(storage=storage, study_name=_NAME, direction=direction, load_if_exists=True)
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{self._journal}: is no journal of a search, or damaged ({why(error)}); choose another --output"
            raise ConfigError(msg) from None
        # Every draw has a seed of its own: processes that share one would draw the same points.
        study.sampler = optuna.samplers.TPESampler(seed=(self.seed + len(study.get_trials(deepcopy=False))) % 2**32)
        return study

    def _trials(self, study: Study) -> Sequence[FrozenTrial]:
        """Trials but those that were killed while they were drawn, or wait."""
        return [trial for trial in study.get_trials(deepcopy=False) if self._is_whole(trial)]

    def _is_whole(self, trial: FrozenTrial) -> bool:
        return trial.params.keys() == self.space.dimensions.keys()

    @staticmethod
    def _point(study: Study, trial: FrozenTrial) -> Point:
        state = {"COMPLETE": "done", "FAIL": "failed"}.get(trial.state.name, "running")
        return Point(
            number=trial.number,
            settings=trial.params,
            value=trial.value if state == "done" else None,
            state=state,
            reason=study.user_attrs.get(f"reason {trial.number}", ""),
            minutes=None if trial.duration is None else trial.duration.total_seconds() / 60,
        )


class _Held:
    """The lock of the journal's file: that of the study is held already, and is lost with its process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _drop_torn_line(path: Path) -> None:
    """Remove what a killed process left of its last line: the next one would be appended to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
            file.flush()
            os.fsync(file.fileno())
