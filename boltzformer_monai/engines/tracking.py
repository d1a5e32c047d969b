"""What one sees of a training: TensorBoard, MLflow, overlays and ``training.html``, beside ``history.json``."""

from __future__ import annotations

import json
import logging
import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import monai
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from boltzformer_monai import __version__
from boltzformer_monai.engines.mlflow_run import MlflowRun, detach, find_mlflow_handlers
from boltzformer_monai.engines.overlays import draw_overlays
from boltzformer_monai.engines.training_page import best_row, data_facts, text_of, write_training_page
from boltzformer_monai.errors import StorageError
from boltzformer_monai.evaluation.tiles import tiles_png
from boltzformer_monai.storage import replacing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["PAGE", "Tracking"]

_log = logging.getLogger(__name__)

PAGE = "training.html"
OVERLAYS = "overlays"
_EPOCH_LOSS = "epoch_train_loss"


class Tracking:
    """Shows a training while it runs, and as a page when it ends, however it ends; of the main process.

    Args:
        trainer: the training.
        evaluator: its validation; ``state.overlays`` are :class:`~boltzformer_monai.engines.overlays.WatchedSlices`'.
        folder: of the training's results.
        history: gives the rows of ``history.json`` so far.
        configuration: all settings, plain values by name.
        data: content of :func:`~boltzformer_monai.data.slices.summary.training_data`.
        loss_of: takes the loss from the trainer's output.
        handlers: of the configuration; MONAI's ``--tracking mlflow`` puts its own among them.
    """

    def __init__(
        self,
        trainer: SupervisedTrainer,
        evaluator: SupervisedEvaluator,
        *,
        folder: Path,
        history: Callable[[], Sequence[Mapping[str, float]]],
        configuration: Mapping[str, Any],
        data: Mapping[str, Any],
        loss_of: Callable[[Any], Any],
        handlers: Sequence[object] = (),
    ) -> None:
        self.trainer = trainer
        self.evaluator = evaluator
        self.folder = folder
        self.history = history
        self.configuration = configuration
        self.data = data
        self.loss_of = loss_of
        self._handlers = find_mlflow_handlers(handlers)
        self._run = MlflowRun(self._handlers[0], folder) if self._handlers else None
        self._events: SummaryWriter | None = None
        self._rates: dict[str, float] = {}

    def attach(self, events: SummaryWriter, *, resumed: bool) -> None:
        """Attach to both engines, after what writes the history.

        Args:
            events: TensorBoard's writer.
            resumed: whether the training goes on from a state.

        Raises:
            ConfigError: MLflow cannot be used.
        """
        if not resumed:
            shutil.rmtree(self.folder / OVERLAYS, ignore_errors=True)
        self._events = events
        about = {"configuration": self.configuration, "training_data": self.data}
        for name, content in about.items():
            events.add_text(name, _markdown(content), self.trainer.state.iteration)
        for engine in (self.trainer, self.evaluator):
            detach(engine, self._handlers)
        if self._run is not None:
            parameters = {name: text_of(value) for name, value in self.configuration.items()}
            self._run.start(resumed=resumed, parameters=parameters)
            for name, content in about.items():
                self._run.log_text(json.dumps(content, indent=1), f"{name}.json")
            self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        self.trainer.add_event_handler(Events.ITERATION_STARTED, self._note_rates)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def close(self, *, finished: bool, stopped: bool) -> None:
        """Write the page and end MLflow's run; what fails here is a warning.

        Args:
            finished: whether the training came to its end.
            stopped: whether it was asked to stop, and can go on; if neither, it failed.
        """
        try:
            self._write_page(finished=finished, stopped=stopped)
        except StorageError as error:
            _log.warning("%s", error)
        if self._run is not None:
            for name in (PAGE, "history.json"):
                self._run.log_file(self.folder / name)
            self._run.end("FINISHED" if finished else "KILLED" if stopped else "FAILED")

    def _step(self, trainer: Engine) -> None:
        if self._run is not None:
            values = {"train_loss": self.loss_of(trainer.state.output), **self._rates}
            self._run.log_metrics(values, step=trainer.state.iteration)

    def _note_rates(self, _: Engine) -> None:
        """Keep the learning rates of the step, which the scheduler changes after it; under MONAI's names."""
        self._rates = {
            f"lr_group_{index}": group["lr"] for index, group in enumerate(self.trainer.optimizer.param_groups)
        }

    def _validated(self, evaluator: Engine) -> None:
        step = self.trainer.state.epoch
        if self._run is not None:
            self._run.begin_epoch()
            self._run.log_metrics({name: float(value) for name, value in evaluator.state.metrics.items()}, step=step)
        if not (overlays := getattr(evaluator.state, "overlays", None)):
            return
        picture = draw_overlays(overlays)
        with replacing(self._picture(step)) as temporary:
            temporary.write_bytes(tiles_png(picture))
        if self._events is not None:
            self._events.add_image(OVERLAYS, picture, step, dataformats="HWC")
        if self._run is not None:
            self._run.log_picture(picture, name=OVERLAYS, step=step)

    def _epoch(self, trainer: Engine) -> None:
        row = dict(self.history()[-1])
        values = {name: row[name] for name in row if name != "epoch" and name not in self.evaluator.state.metrics}
        values[_EPOCH_LOSS] = values.pop("train_loss")  # train_loss is the one by step
        if self._events is not None:
            for name, value in {_EPOCH_LOSS: values[_EPOCH_LOSS], **self._rates}.items():
                self._events.add_scalar(name, value, trainer.state.epoch)
        if self._run is not None:
            self._run.begin_epoch()
            self._run.log_metrics(values, step=trainer.state.epoch)

    def _picture(self, epoch: int) -> Path:
        return self.folder / OVERLAYS / f"epoch_{epoch:04d}.png"

    def _write_page(self, *, finished: bool, stopped: bool) -> None:
        rows, state = self.history(), self.trainer.state
        key, improves = self.evaluator.state.key_metric_name, self.evaluator.metric_cmp_fn
        best = best_row(rows, key_metric=key, improves=improves)
        shown = {} if best is None else {int(best["epoch"]): "best checkpoint"}
        if drawn := sorted((self.folder / OVERLAYS).glob("epoch_*.png")):
            shown.setdefault(int(re.sub(r"\D", "", drawn[-1].stem)), "last validation")
        pictures = [
            (f"{what}, epoch {epoch}", self._picture(epoch).read_bytes())
            for epoch, what in shown.items()
            if self._picture(epoch).is_file()
        ]
        write_training_page(
            self.folder / PAGE,
            history=rows,
            key_metric=key,
            improves=improves,
            epochs=int(state.max_epochs or 0),
            outcome=_outcome(self.trainer, self.evaluator, finished=finished, stopped=stopped),
            overlays=pictures,
            facts={
                **data_facts(self.data),
                "Versions": f"boltzformer-monai {__version__}, MONAI {monai.__version__}, PyTorch {torch.__version__}, "
                f"Python {platform.python_version()}",
            },
            configuration=self.configuration,
        )


def _outcome(trainer: Engine, evaluator: SupervisedEvaluator, *, finished: bool, stopped: bool) -> str:
    epochs, last = trainer.state.epoch, trainer.state.max_epochs
    if not finished:
        if stopped:
            return f"The training was stopped in or after epoch {epochs} of {last}; with --resume auto it goes on."
        return f"An error ended the training in or after epoch {epochs} of {last}; see its log."
    if last is not None and epochs < last:
        return f"The training ended after epoch {epochs} of {last}: {evaluator.state.key_metric_name} grew no better."
    return f"The training is finished: {epochs} epochs."


def _markdown(content: Mapping[str, Any]) -> str:
    """A table for TensorBoard."""
    rows = [f"| {name} | {text_of(value)} |".replace("\n", " ") for name, value in content.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
