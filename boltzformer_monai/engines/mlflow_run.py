"""A training in MLflow: MONAI's ``--tracking mlflow``, kept by one run from start to end.

MONAI's handlers say where to track. What they do by themselves does not fit here: they take the loss from decollated
outputs, which this training has none of; go on with whatever run of the experiment is unfinished; leave an interrupted
run unfinished; and end the training when the server is away for a moment.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from boltzformer_monai.errors import ConfigError, why
from boltzformer_monai.storage import write_json

__all__ = ["MlflowRun", "detach", "find_mlflow_handlers", "track_evaluation"]

_log = logging.getLogger(__name__)

RUN_FILE = "mlflow.json"
_BATCH = 100  # most values of a call
_LONGEST = 500  # of a parameter
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")


def find_mlflow_handlers(handlers: Iterable[object]) -> list[MLFlowHandler]:
    """MONAI's handlers with its own loggers; those that log as the user says are left alone."""
    found = [handler for handler in handlers if isinstance(handler, MLFlowHandler)]
    return [each for each in found if each.iteration_logger is None and each.epoch_logger is None]


class MlflowRun:
    """One run in MLflow.

    Where MLflow fails in between, the training goes on, and tracking begins again with the next epoch.

    Args:
        handler: MONAI's; it says where, and the names of experiment and run.
        folder: of the results.
        goes_on: whether the folder keeps the run's id, for a training that goes on.
    """

    def __init__(self, handler: MLFlowHandler, folder: Path, *, goes_on: bool = True) -> None:
        from mlflow.exceptions import MlflowException

        self.handler = handler
        self.client = handler.client
        self.folder = folder
        self.goes_on = goes_on
        self.run_id = ""
        self._errors: tuple[type[Exception], ...] = (MlflowException, OSError)
        self._paused = False

    def start(self, *, resumed: bool, parameters: Mapping[str, str]) -> None:
        """Begin a run, or go on with the folder's.

        Args:
            resumed: whether the training goes on.
            parameters: name → value.

        Raises:
            ConfigError: MLflow cannot be used.
        """
        try:
            before = self._find_run()
            if before is not None and resumed:
                self.run_id = before.info.run_id
                self.client.update_run(self.run_id, status="RUNNING")
            else:
                if before is not None and before.info.status == "RUNNING":  # its process was killed
                    self.client.set_terminated(before.info.run_id, "KILLED")
                name = self.handler.run_name or f"{self.folder.absolute().name}_{time.strftime('%Y%m%d_%H%M%S')}"
                self.run_id = self.client.create_run(self._experiment(), run_name=name).info.run_id
                if self.goes_on:
                    write_json(self.folder / RUN_FILE, {"run_id": self.run_id})
            given = {**(self.handler.experiment_param or {}), **parameters}
            self._log_parameters(given, known=before.data.params if before is not None and resumed else {})
            for place in self._artifacts():
                log = self.client.log_artifacts if place.is_dir() else self.client.log_artifact
                log(self.run_id, str(place))
        except self._errors as error:
            raise ConfigError(f"--tracking mlflow: MLflow cannot be used ({why(error)})") from error

    def _artifacts(self) -> list[Path]:
        """What the handler shall log: the configuration, unless the user says otherwise."""
        places = [Path(place) for place in self.handler.artifacts if place]
        # MONAI misnames its config_DATE.json where output_dir is a plain text.
        written = sorted(self.folder.glob("config_*.json"))[-1:]
        return [place for place in places if place.exists()] or (written if places else [])

    def _find_run(self) -> Any:
        """The folder's run; None if there is none, or another place has it."""
        if not self.goes_on:
            return None
        try:
            run_id = str(json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))["run_id"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with contextlib.suppress(self._errors[0]):
            return self.client.get_run(run_id)
        return None

    def _experiment(self) -> str:
        name = self.handler.experiment_name
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise ConfigError(f"--experiment_name {name}: this experiment was deleted in MLflow; take another name")
            return str(found.experiment_id)
        place = getattr(self.handler, "artifact_location", None)
        return str(self.client.create_experiment(name, artifact_location=place))

    def _log_parameters(self, parameters: Mapping[str, Any], *, known: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        named = {_NOT_IN_NAMES.sub("_", name): str(value)[:_LONGEST] for name, value in parameters.items()}
        new = [Param(name, value) for name, value in named.items() if name not in known]
        for first in range(0, len(new), _BATCH):
            self.client.log_batch(self.run_id, params=new[first : first + _BATCH])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log values at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(_NOT_IN_NAMES.sub("_", name), float(value), now, step) for name, value in metrics.items()]
        for first in range(0, len(values), _BATCH):
            part = values[first : first + _BATCH]
            self._try(lambda part=part: self.client.log_batch(self.run_id, metrics=part))  # type: ignore[misc]

    def log_picture(self, picture: np.ndarray, *, name: str, step: int) -> None:
        """Log a picture ``(H, W, 3)`` uint8 at a step."""
        self._try(lambda: self.client.log_image(self.run_id, picture, key=name, step=step))

    def log_text(self, text: str, name: str) -> None:
        """Log a text as a file."""
        self._try(lambda: self.client.log_text(self.run_id, text, name))

    def log_file(self, path: Path) -> None:
        """Log a file, if it is there."""
        if path.is_file():
            self._try(lambda: self.client.log_artifact(self.run_id, str(path)))

    def begin_epoch(self) -> None:
        """Try again, if MLflow failed before."""
        self._paused = False

    def end(self, status: str) -> None:
        """End the run as ``"FINISHED"``, ``"KILLED"`` (it may go on) or ``"FAILED"``."""
        self.begin_epoch()
        self._try(lambda: self.client.set_terminated(self.run_id, status))
        self.handler.close()  # its database

    def _try(self, log: Callable[[], object]) -> None:
        if self._paused:
            return
        try:
            log()
        except self._errors as error:
            self._paused = True
            _log.warning("MLflow failed (%s); the training goes on, tracking with the next epoch", why(error))


def detach(engine: Engine, handlers: Sequence[MLFlowHandler]) -> None:
    """Take MONAI's handlers off an engine: :class:`MlflowRun` does their work."""
    for handler in handlers:
        for event, function in (
            (Events.STARTED, handler.start),
            (Events.ITERATION_COMPLETED, handler.iteration_completed),
            (Events.EPOCH_COMPLETED, handler.epoch_completed),
            (Events.COMPLETED, handler.complete),
            (Events.COMPLETED, handler.close),
        ):
            if engine.has_event_handler(function, event):
                engine.remove_event_handler(function, event)


def track_evaluation(
    handlers: Sequence[MLFlowHandler], *, folder: Path, metrics: Mapping[str, Any], files: Sequence[str]
) -> None:
    """Track the means of an evaluation as a run of its own: ``slices/all/dice``, ``volumes/liver/dice``, ….

    Args:
        handlers: of :func:`find_mlflow_handlers`; nothing happens without one.
        folder: of the evaluation's results.
        metrics: content of ``metrics.json``.
        files: names of files in the folder to log.

    Raises:
        ConfigError: MLflow cannot be used.
    """
    for handler in handlers:
        run = MlflowRun(handler, folder, goes_on=False)
        run.start(resumed=False, parameters={f"model.{key}": each for key, each in metrics.get("model", {}).items()})
        for part in ("slices", "volumes"):
            summary = metrics.get(part, {})
            for target, values in {"all": summary.get("overall", {}), **summary.get("by_target", {})}.items():
                means = {name: each["mean"] for name, each in values.items() if isinstance(each, Mapping)}
                known = {f"{part}/{target}/{name}": mean for name, mean in means.items() if mean is not None}
                run.log_metrics(known, step=0)
        for name in files:
            run.log_file(folder / name)
        run.end("FINISHED")
