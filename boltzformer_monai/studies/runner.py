"""Do the runs of a study: in this process, in several, or on a Dask cluster; stopped or killed, they go on.

A run has a folder named by its key and is done when its ``result.json`` is there, which is written last. Its lock is
lost with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from filelock import FileLock, Timeout

from boltzformer_monai.data.slices.folds import choose_fold
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.tables import read_description, read_manifest
from boltzformer_monai.engines.stop import TrainingStopped
from boltzformer_monai.errors import (
    BoltzFormerError,
    ConfigError,
    DatasetError,
    StorageError,
    memory_line,
    reject_unknown,
    user_error,
    why,
)
from boltzformer_monai.limits import read_json
from boltzformer_monai.parallel import run_jobs
from boltzformer_monai.registry import place_of, reason_of
from boltzformer_monai.storage import write_json, writing
from boltzformer_monai.studies.kinds import KINDS, MAKERS, OWN_DATA, Place, make_data
from boltzformer_monai.studies.plan import BOLTZFORMER, Run, Study, runs_of, settings_of
from boltzformer_monai.studies.provenance import provenance
from boltzformer_monai.studies.scores import write_rows

__all__ = [
    "Ended", "check_data", "check_study", "do_runs", "missing_data", "planned_runs", "prepare_data", "read_failure",
    "read_result", "require_same_data", "run_folder",
]  # fmt: skip

_log = logging.getLogger(__name__)

RESULT = "result.json"
_STOP = getattr(signal, "SIGUSR1", signal.SIGTERM)  # Windows has no SIGUSR1
_FAILURE = "failed.json"
_DATA = "data.json"


class Ended(NamedTuple):
    """How a run ended.

    Attributes:
        key: of the run.
        state: ``"elsewhere"``: another process does it; ``"stopped"``: it goes on with the next start.
        reason: why it failed.
    """

    key: str
    state: Literal["done", "failed", "stopped", "elsewhere"]
    reason: str = ""


def check_study(study: Study, *, root: Path) -> None:
    """Check kinds, makers and the settings of all arms, before anything is made or trained.

    Raises:
        BoltzFormerError: something is unknown or cannot be used; the message names the arm.
    """
    for name, source in study.data.items():
        if source.maker is not None:
            _reject(f"data.{name}", source.maker, [*MAKERS, *OWN_DATA], "maker")
        if source.maker in OWN_DATA and source.training:
            msg = "training has no part in data that its kind of run makes; give it to the experiment"
            raise ConfigError(f"data.{name}: {msg}")
    checked: set[str] = set()
    for name, experiment in study.experiments.items():
        kinds = {study.arms[arm].kind or experiment.kind for arm in experiment.arms}
        if experiment.folds and (own_data := kinds & {*OWN_DATA}):
            raise ConfigError(f"experiments.{name}: a run of the kind {min(own_data)!r} has no patients for folds")
        for arm in experiment.arms:
            own = study.arms[arm]
            kind, where = own.kind or experiment.kind, f"arms.{arm}, experiments.{name}"
            _reject(where, kind, KINDS, "kind of run")
            foreign = ["settings"] if kind == BOLTZFORMER else [] if kind in OWN_DATA else ["network", "training"]
            for field in foreign:
                if getattr(own, field):
                    raise ConfigError(f"{where}: {field} has no part in a run of the kind {kind!r}; leave it out")
            for data in experiment.data:
                maker = study.data[data].maker
                if (maker in OWN_DATA or kind in OWN_DATA) and maker != kind:
                    raise ConfigError(f"{where}: a run of the kind {kind!r} cannot have the data {data!r}")
                settings = settings_of(study, name, data, arm)
                if (text := json.dumps([kind, settings], sort_keys=True, default=str)) in checked:
                    continue
                checked.add(text)
                try:
                    KINDS[kind].check(settings, root)
                except (BoltzFormerError, RuntimeError) as error:
                    if (known := user_error(error)) is None:
                        raise ConfigError(f"{where}, data.{data}: {_unusable(error)}") from error
                    raise type(known)(f"{where}, data.{data}: {known}") from error
        if experiment.settings and kinds == {BOLTZFORMER}:
            raise ConfigError(f"experiments.{name}: settings has no part in a run of the kind {BOLTZFORMER!r}")


def _unusable(error: BaseException) -> str:
    """What is wrong with settings, such as an expression (``$…``), in a line; MONAI wraps what that raises."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    return f"its settings cannot be used ({reason_of(root)})"


def _reject(where: str, name: str, known: Iterable[str], what: str) -> None:
    try:
        reject_unknown([name], known, what=what)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def missing_data(study: Study) -> dict[str, str]:
    """Name of a data set that is no slice dataset yet → why, in one line."""
    missing = {}
    for name, source in study.data.items():
        if source.maker is None:
            try:
                read_description(Path(str(source.folder)))
            except BoltzFormerError as error:
                missing[name] = str(error)
    return missing


def prepare_data(study: Study, folder: Path, experiments: Collection[str]) -> dict[str, Path | None]:
    """Make the data sets that are made, in ``data/NAME`` of the study's folder.

    Args:
        study: the study.
        folder: its results.
        experiments: that need their data; that of others may be missing.

    Returns:
        Name → slice dataset; None for data that a kind makes itself; nothing for data that are missing.

    Raises:
        BoltzFormerError: data are missing, a maker does not take its settings, or its folder cannot be written.
    """
    used = {name for experiment in study.experiments.values() for name in experiment.data}
    missing = missing_data(study)
    for name in (each for experiment in experiments for each in study.experiments[experiment].data):
        if name in missing:
            raise DatasetError(f"data.{name}: {missing[name]}")
    places: dict[str, Path | None] = {}
    for name, source in study.data.items():
        if name in missing:
            continue
        if name not in used or source.maker in OWN_DATA:
            places[name] = None
        elif source.maker is None:
            places[name] = Path(str(source.folder))
        else:
            try:
                places[name] = make_data(source.maker, folder / "data" / name, source.settings)
            except (ConfigError, DatasetError) as error:
                raise type(error)(f"data.{name}: {error}") from None
    return places


def require_same_data(study: Study, places: Mapping[str, Path | None], folder: Path) -> None:
    """Refuse data whose runs would be taken for those of others, as a run's key holds of its data the volumes alone.

    What the folder's data were is kept in its ``data.json``.

    Args:
        study: the study.
        places: of :func:`prepare_data`.
        folder: of the study's results.

    Raises:
        ConfigError: two data sets have the same volumes, or one has other labels or another split than before.
    """
    path = folder / _DATA
    try:
        known = read_json(path)
    except FileNotFoundError:
        known = {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({why(error)}); choose another --output") from None
    if not isinstance(known, dict):
        raise ConfigError(f"{path}: is no description of a study's data; choose another --output")
    origins: dict[str, tuple[str, Any]] = {}
    for name, place in places.items():
        if place is None:
            continue
        source, volumes = study.data[name], _fingerprint(place)
        origin = place.resolve() if source.maker is None else (source.maker, source.settings)
        first, same = origins.setdefault(volumes, (name, origin))
        if same != origin:
            msg = f"data.{name}: has the volumes of data.{first}, and runs are not told apart by labels or split"
            raise ConfigError(f"{msg}; make it a study of its own, with another --output")
        rows = sorted(json.dumps(row, sort_keys=True) for row in read_manifest(place))
        digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        if known.setdefault(volumes, digest) != digest:
            msg = f"data.{name}: {place} has other labels or another split than the runs in {folder} had"
            raise ConfigError(f"{msg}; choose another --output")
    write_json(path, known)


def check_data(study: Study, places: Mapping[str, Path | None], experiments: Collection[str]) -> None:
    """Check that data have the slices to train on and to evaluate, and patients for the folds.

    Args:
        study: the study.
        places: of :func:`prepare_data`.
        experiments: that shall be run.

    Raises:
        BoltzFormerError: they do not; the message names data and experiment.
    """
    readers: dict[str, SliceReader] = {}
    for name in experiments:
        experiment = study.experiments[name]
        for data in experiment.data:
            if (place := places[data]) is None:
                continue
            reader = readers.setdefault(data, SliceReader(place))
            where = f"experiments.{name}, data.{data}"
            for arm in experiment.arms:
                kind = KINDS[study.arms[arm].kind or experiment.kind]
                try:
                    kind.check_data(settings_of(study, name, data, arm), reader)
                except BoltzFormerError as error:
                    raise type(error)(f"arms.{arm}, {where}: {error}") from None
            if experiment.folds:
                try:
                    choose_fold(reader, folds=experiment.folds, fold=0)
                except BoltzFormerError as error:
                    raise type(error)(f"{where}: {error}") from None
                continue
            labelled = {row.split for row in reader.rows if row.label is not None}
            for split in ("train", "val", study.data[data].split):
                if split is not None and split not in labelled:
                    there = ", ".join(sorted(labelled)) or "none"
                    raise DatasetError(
                        f"{where}: {place} has no labelled slices in the split {split!r}; there: {there}"
                    )


def planned_runs(study: Study, places: Mapping[str, Path | None]) -> dict[str, list[Run]]:
    """Name of an experiment whose data are there → its runs. Experiments share runs whose keys are equal."""
    fingerprints = {name: _fingerprint(place) for name, place in places.items()}
    return {
        name: list(runs_of(study, name, fingerprints))
        for name, experiment in study.experiments.items()
        if {*experiment.data} <= {*places}
    }


def run_folder(folder: Path, run: Run) -> Path:
    """The folder of a run in that of a study."""
    return folder / "runs" / run.key


def _fingerprint(place: Path | None) -> str:
    if place is None:
        return ""  # its settings say it all
    volumes = read_description(place)["volumes"]
    return hashlib.sha256(json.dumps(volumes, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Job:
    run: Run
    place: Place
    threads: int
    deadline: float | None
    """``time.time()`` at which it shall stop."""


def do_runs(
    runs: Sequence[Run],
    folder: Path,
    *,
    places: Mapping[str, Path | None],
    root: Path,
    devices: Sequence[str],
    threads: int = 1,
    workers: int = 1,
    scheduler: str | None = None,
    deadline: float | None = None,
) -> Iterator[Ended]:
    """Do those runs that are not done; yields how each ended, in the order in which they end.

    A failed one is done again by the next start.

    Args:
        runs: in the order in which they shall begin; of those with one key the first.
        folder: of the study.
        places: of :func:`prepare_data`.
        root: of the bundle.
        devices: that the runs take in turn.
        threads: of PyTorch in every run.
        workers: processes.
        scheduler: address of a Dask scheduler, whose workers do them instead; they must see the folders.
        deadline: ``time.time()`` from which no run begins, and those under way stop after their step with their state
            saved. A run that is not stopped by its step (of another kind, or on a cluster) is finished first.

    Raises:
        ConfigError: the cluster cannot be used.
        TrainingStopped: a signal asked this process to stop.
    """
    unique: dict[str, Run] = {}
    for run in runs:
        unique.setdefault(run.key, run)
    left = [run for run in unique.values() if not (run_folder(folder, run) / RESULT).is_file()]
    jobs = []
    for number, run in enumerate(left):
        device = devices[number % len(devices)]
        place = Place(folder=run_folder(folder, run), data=places[run.data], device=device, root=root)
        jobs.append(_Job(run=run, place=place, threads=threads, deadline=deadline))
    _log.info("%d of %d runs are to be done", len(left), len(unique))
    yield from run_jobs(_do, jobs, workers=workers, scheduler=scheduler, crashed=_crashed)


def _crashed(job: _Job) -> Ended:
    return _failed(job, "its process died (no memory left?)")


def _failed(job: _Job, reason: str, trace: str = "") -> Ended:
    with contextlib.suppress(StorageError):
        write_json(job.place.folder / _FAILURE, {"run": asdict(job.run), "reason": reason, "traceback": trace})
    _log.warning("%s failed: %s", job.run, reason)
    return Ended(job.run.key, "failed", reason)


def _do(job: _Job) -> Ended:
    """Do a run, unless it is done, another process does it, or there is no time left."""
    folder, key = job.place.folder, job.run.key
    if job.deadline is not None and time.time() >= job.deadline:
        return Ended(key, "stopped")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return Ended(key, "elsewhere")
    try:
        if (folder / RESULT).is_file():
            return Ended(key, "done")
        _log.info("run %s: %s", key, job.run)
        with _messages(folder / "run.log"), _stopping(job.deadline) as time_is_up:
            before = torch.get_num_threads()
            torch.set_num_threads(job.threads)
            try:
                return _done(job)
            except TrainingStopped:
                if not time_is_up():
                    raise
                return Ended(key, "stopped")
            finally:
                torch.set_num_threads(before)
    except Exception as error:  # noqa: BLE001 - a bug in one run is reported with its traceback, the others go on
        known = user_error(error)  # MONAI wraps what is raised in a training
        if isinstance(known, StorageError):
            raise known from None  # it is no run's fault, and the next would fail alike
        line = str(known) if known is not None else memory_line(error) or f"{reason_of(error)} ({place_of(error)})"
        return _failed(job, line, traceback.format_exc())
    finally:
        lock.release()


def _done(job: _Job) -> Ended:
    outcome = KINDS[job.run.kind].run(job.run, job.place)
    folder = job.place.folder
    write_rows(outcome.rows, folder / "scores.csv")
    made = {**provenance(), "device": job.place.device, "threads": job.threads}
    content = {"run": asdict(job.run), "facts": outcome.facts, "made": made}
    (folder / _FAILURE).unlink(missing_ok=True)
    write_json(folder / RESULT, content)
    _log.info("run %s is done", job.run.key)
    return Ended(job.run.key, "done")


@contextlib.contextmanager
def _messages(path: Path) -> Iterator[None]:
    """Write the package's messages into a file as well; of a worker's process everything else, too."""
    package = logging.getLogger("boltzformer_monai")
    before = package.level
    with path.open("a", encoding="utf-8") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        if multiprocessing.parent_process() is not None:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            package.removeHandler(handler)
            package.setLevel(before)


@contextlib.contextmanager
def _stopping(deadline: float | None) -> Iterator[Callable[[], bool]]:
    """At the deadline ask the training under way to stop, by a signal; yields whether it has passed."""
    passed = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if deadline is None or not main:
        yield lambda: False
        return

    def ring() -> None:
        passed.set()
        signal.raise_signal(_STOP)

    before = signal.signal(_STOP, lambda *_: None)  # a training sets its own; between two nothing happens
    timer = threading.Timer(max(0.0, deadline - time.time()), ring)
    timer.daemon = True
    timer.start()
    try:
        yield passed.is_set
    finally:
        timer.cancel()
        timer.join()
        signal.signal(_STOP, signal.SIG_DFL if before is None else before)


def read_result(folder: Path, run: Run) -> dict[str, Any] | None:
    """What a run found; None where it is not done.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_folder(folder, run) / RESULT
    try:
        content = read_json(path)
        if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in ("facts", "made")):
            raise ValueError("it is no result of a run")
        return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({why(error)}); remove it, and start the study again") from None


def read_failure(folder: Path, run: Run) -> str | None:
    """Why a run failed the last time; None where it did not."""
    try:
        return str(read_json(run_folder(folder, run) / _FAILURE)["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
