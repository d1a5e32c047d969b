"""The training run: MONAI's SupervisedTrainer with checkpoints, curves, schedule and early stopping."""

from __future__ import annotations

import logging
import math
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping, TerminateOnNan
from ignite.handlers.tqdm_logger import ProgressBar
from monai.engines import Evaluator, IterationEvents, SupervisedEvaluator, SupervisedTrainer
from monai.handlers import TensorBoardStatsHandler
from monai.inferers import Inferer
from torch import Tensor, nn

from boltzformer_monai.engines.average import average_weights
from boltzformer_monai.engines.key_metric import VAL_DICE, VAL_LOSS, has_improved, key_value
from boltzformer_monai.engines.layer_supervision import supervise_layers
from boltzformer_monai.engines.ranks import leave_distributed, together
from boltzformer_monai.engines.remaining import RemainingTime
from boltzformer_monai.engines.resume import (
    AUTO,
    STATES,
    Described,
    LoopSettings,
    TrainingState,
    agreed,
    describe_training,
    find_state,
    set_aside,
    weights_digest,
)
from boltzformer_monai.engines.sampler import EpochSampler
from boltzformer_monai.engines.stop import StopSignals, TrainingStopped
from boltzformer_monai.engines.throughput import THROUGHPUT
from boltzformer_monai.engines.tracking import Tracking
from boltzformer_monai.errors import DivergenceError
from boltzformer_monai.networks.interfaces import Decoded
from boltzformer_monai.networks.sampling import CounterNoise
from boltzformer_monai.networks.weights import read_weights, save_checkpoint
from boltzformer_monai.storage import replacing, write_json, writing

_log = logging.getLogger(__name__)


class DecodingInferer(Inferer):
    """Run the network and return its presence logits too, for the loss."""

    def __call__(self, inputs: Tensor, network: Any, *args: Any, seeds: Tensor | None = None, **kwargs: Any) -> Decoded:
        """``(B, C, H, W)`` and tokens → mask and presence logits; with ``(B,)`` seeds each example draws by its own."""
        if seeds is not None:
            kwargs["generator"] = CounterNoise(seeds)
        return network(inputs, *args, with_presence=True, **kwargs)


class History:
    """Training and validation curves as ``history.json``, rewritten after every epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epochs: list[dict[str, float]] = []
        self._losses: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """The finished epochs, and the losses of the one under way."""
        return {"epochs": self.epochs, "losses": self._losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, and the file."""
        self.epochs, self._losses = [dict(epoch) for epoch in state["epochs"]], list(state["losses"])
        write_json(self.path, self.epochs)

    def drop_open_epoch(self) -> None:
        """Forget the losses of the epoch under way, which begins anew."""
        self._losses.clear()

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Attach to both engines."""
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch, evaluator)

    def _iteration(self, engine: Engine) -> None:
        self._losses.append(float(_loss_of(engine.state.output)))

    def _epoch(self, engine: Engine, evaluator: Evaluator) -> None:
        mean = sum(self._losses) / max(1, len(self._losses))
        row: dict[str, float] = {"epoch": engine.state.epoch, "train_loss": mean}
        self._losses.clear()
        metrics = evaluator.state.metrics
        if evaluator.state.epoch == engine.state.epoch:  # MONAI runs validation as the trainer's epoch
            names = (VAL_LOSS, VAL_DICE, evaluator.state.key_metric_name)
            row.update({name: float(metrics[name]) for name in dict.fromkeys(names) if name in metrics})
        row.update({name: engine.state.metrics[name] for name in THROUGHPUT if name in engine.state.metrics})
        self.epochs.append(row)
        write_json(self.path, self.epochs)


class Checkpoints:
    """``model.pt`` whenever the key metric is the best so far, ``last.pt`` after every epoch; both atomic.

    Neither MONAI's CheckpointSaver nor ignite's Checkpoint: the first writes in place, the second removes a file
    before it writes its successor, and both would keep a first value of NaN as the best for ever.

    Args:
        folder: for the files.
        network: whose weights are saved.
        description: saved with them.
    """

    def __init__(self, folder: Path, network: nn.Module, description: Described) -> None:
        self.folder = folder
        self.network = network
        self.description = description
        self.best: float | None = None
        """Key metric of ``model.pt``."""
        self._digest = ""

    def state_dict(self) -> dict[str, Any]:
        """The best key metric so far, and a digest of the weights that reached it."""
        return {"best": self.best, "digest": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it; :meth:`keep_best` looks for the weights."""
        self.best, self._digest = state["best"], state["digest"]

    def keep_best(self, source: Path, *, exact: bool) -> None:
        """Make ``model.pt`` the best checkpoint of the state restored; without it the best is chosen anew.

        Args:
            source: folder of the training that the state is of.
            exact: whether that training goes on unchanged, so that a ``model.pt`` later than the state will come again.
        """
        own = self.folder / "model.pt"
        if self.best is None or (exact and own.is_file()):
            return
        for place in dict.fromkeys((own, source / "model.pt")):
            if place.is_file() and weights_digest(read_weights(place)["model"]) == self._digest:
                if place != own:
                    _set_model_aside(self.folder)
                    with replacing(own) as temporary:
                        shutil.copyfile(place, temporary)
                return
        self.best = None
        _log.warning("%s is not the best checkpoint up to this state: the best is chosen anew", source / "model.pt")

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Attach to both engines."""
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._validated)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self.save_last())

    def _validated(self, evaluator: Evaluator) -> None:
        if has_improved(evaluator, self.best):
            self.best = key_value(evaluator)
            self._save("model.pt")
            self._digest = weights_digest(self.network.state_dict())

    def save_last(self) -> None:
        """Write ``last.pt``."""
        self._save("last.pt")

    def _save(self, name: str) -> None:
        content = {"model": self.network.state_dict(), "description": self.description.state_dict()}
        save_checkpoint(content, self.folder / name)


def _loss_of(output: Any) -> Any:
    loss = output[0]["loss"] if isinstance(output, list) else output["loss"]
    return loss.detach() if isinstance(loss, Tensor) else loss


def run_training(
    trainer: SupervisedTrainer,
    evaluator: SupervisedEvaluator,
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    description: Described,
    output_dir: str | Path,
    settings: LoopSettings,
    patience: int,
    is_main: bool = True,
    resume: str | Path | None = None,
    save_minutes: float = 10,
    save_steps: int = 0,
    handlers: Sequence[object] = (),
) -> Path:
    """Train; returns the best checkpoint.

    Writes ``model.pt`` (best by the evaluator's key metric), ``last.pt``, ``history.json``, TensorBoard events,
    ``states/`` to go on from and, however it ends, ``training.html`` into ``output_dir``. A second call does nothing:
    MONAI Label evaluates both ``training`` and ``run`` of the bundle. SIGTERM, SIGUSR1 and Ctrl-C end the step and save
    the state, Ctrl-C ``last.pt`` too. The best key metric is ``evaluator.state.best_metric``.

    Args:
        trainer: its network is saved, or with ``settings.ema`` the average of its weights.
        evaluator: run by the trainer's ValidationHandler; its key metric and comparator select the best checkpoint.
        scheduler: stepped after every iteration.
        description: saved with the weights.
        output_dir: made if needed.
        settings: gradient clipping, the decay of the average of the weights, and whether layers are supervised.
        patience: validations without a better key metric before training stops.
        is_main: whether this process writes and logs (rank 0 in distributed training).
        resume: ``"auto"`` goes on where ``output_dir`` stopped, if the configuration is the same; a state, or a folder
            of a training, goes on from there although settings differ; ``None`` begins.
        save_minutes: minutes between states; 0: only after every epoch.
        save_steps: steps between states; 0: only by ``save_minutes``.
        handlers: of both engines; MONAI's ``--tracking mlflow`` puts its own among them.

    Raises:
        StorageError: the folder cannot be written; existing checkpoints and states are left untouched.
        DivergenceError: the loss became infinite, or no validation gave a key metric.
        ConfigError: what is to be resumed is another training or network.
        CheckpointError: the states to go on from are damaged.
        TrainingStopped: by SIGTERM or SIGUSR1, with exit code 75.
        KeyboardInterrupt: by Ctrl-C.
    """
    folder = Path(output_dir)
    checkpoint = folder / "model.pt"
    if trainer.state.iteration:
        _log.info("training was started already; not starting it again")
        return checkpoint
    sampler = getattr(trainer.data_loader, "sampler", None)
    if isinstance(sampler, EpochSampler):
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: sampler.seed_step(trainer.state.iteration))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: scheduler.step())
    if settings.clip:
        parameters = [p for p in trainer.network.parameters() if p.requires_grad]
        trainer.add_event_handler(
            IterationEvents.BACKWARD_COMPLETED, lambda _: nn.utils.clip_grad_norm_(parameters, settings.clip)
        )
    stop = EarlyStopping(patience, score_function=_score, trainer=trainer)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, stop)
    # The last epoch is always validated: it may be the best, or the only one.
    trainer.add_event_handler(Events.EPOCH_COMPLETED, _validate_last, evaluator)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan(output_transform=_loss_of))
    with together():  # a main process that refuses the state leaves the others waiting for it
        found = agreed(find_state(resume, folder) if is_main else None)
    kept, parts = _module(trainer.network), {}
    supervise_layers(kept, settings)
    if settings.ema:
        average = average_weights(trainer, kept, settings.ema)
        evaluator.network = kept = average.module
        parts = {"average": average}
    identity = describe_training(trainer, evaluator, description, settings)
    outputs = _Outputs(trainer, evaluator, folder, description, kept, identity, handlers) if is_main else None
    state = TrainingState(
        trainer,
        scheduler,
        folder=folder,
        identity=identity,
        parts={"early_stopping": stop, **parts, **({} if outputs is None else outputs.stateful)},
    )
    if found is not None:
        _go_on(state, found, outputs, exact=resume == AUTO)
    if found is not None and (state.finished or state.is_over) and not state.epoch_is_open:
        evaluator.state.best_metric = None if outputs is None else outputs.checkpoints.best
        if outputs is not None:
            outputs.close(finished=True)
        _log.info("%s: the training is finished already, after %d epochs", folder, trainer.state.epoch)
        return checkpoint
    with writing(folder):
        if outputs is not None:
            outputs.attach(resumed_from=found)
    started = time.monotonic()
    signals = StopSignals()
    state.attach(save_minutes=save_minutes, save_steps=save_steps, stop=signals.requested, is_main=is_main)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, _stop_validation, trainer, signals)
    for engine in (trainer, evaluator):
        engine.logger.addFilter(_no_exception)
    try:
        with signals, together(), writing(folder, much_else=True):  # TensorBoard's files
            _run(trainer, state)
    except _ValidationStopped:
        state.save()
    except KeyboardInterrupt:
        if outputs is not None:
            outputs.checkpoints.save_last()
            _log.warning("interrupted: the last weights are in %s", folder / "last.pt")
        raise
    finally:
        for engine in (trainer, evaluator):
            engine.logger.removeFilter(_no_exception)
        if outputs is not None:
            ended_by = sys.exc_info()[1]
            error = isinstance(ended_by, Exception)
            stopped = state.stopping or signals.received is not None or isinstance(ended_by, KeyboardInterrupt)
            outputs.close(finished=state.finished and not error, stopped=stopped and not error)
    if state.stopping or signals.received is not None:
        _report_stop(trainer, folder, signals, outputs)
    if outputs is not None:
        if outputs.checkpoints.best is None:
            raise DivergenceError(_no_checkpoint(evaluator))
        evaluator.state.best_metric = outputs.checkpoints.best
        minutes = (time.monotonic() - started) / 60
        _log.info("trained %d epochs in %.1f minutes; best checkpoint: %s", trainer.state.epoch, minutes, checkpoint)
    return checkpoint


class _ValidationStopped(Exception):
    """A validation was left; it will be done again."""


def _no_exception(record: logging.LogRecord) -> bool:
    """Whether a record of ignite's is none of an exception: these are raised, and reported where they are caught."""
    return "terminating due to exception" not in record.getMessage()


def _stop_validation(evaluator: Engine, trainer: Engine, signals: StopSignals) -> None:
    """Leave a validation after an epoch when the training shall stop; several processes end it together instead."""
    after_epoch = trainer.last_event_name == Events.EPOCH_COMPLETED
    if signals.received is not None and after_epoch and idist.get_world_size() == 1:
        raise _ValidationStopped


def _run(trainer: SupervisedTrainer, state: TrainingState) -> None:
    """Train to the end, beginning with what a state restored left open."""
    if state.epoch_is_open:
        trainer.fire_event(Events.EPOCH_COMPLETED)
    if not (state.finished or state.is_over or state.stopping):
        trainer.run()


def _go_on(state: TrainingState, found: Path, outputs: _Outputs | None, *, exact: bool) -> None:
    """Restore the state, and say from where the training goes on."""
    others = state.restore(found, exact=exact)
    position = state.trainer.state
    if outputs is not None:
        if position.iteration % position.epoch_length == 0 and state.epoch_done:
            outputs.history.drop_open_epoch()
        outputs.checkpoints.keep_best(found.parent.parent, exact=exact)
        _log.info("going on after step %d, epoch %d, of %s", position.iteration, position.epoch, found)
        if others:
            _log.warning("what differs from the training before: %s", others)


def _report_stop(trainer: SupervisedTrainer, folder: Path, signals: StopSignals, outputs: _Outputs | None) -> NoReturn:
    name = "another process" if signals.received is None else signals.received.name
    if outputs is not None:
        place = folder / STATES
        _log.warning("stopped by %s after step %d; --resume auto goes on from %s", name, trainer.state.iteration, place)
        if signals.received is signal.SIGINT:
            outputs.checkpoints.save_last()
    leave_distributed(trainer.network)  # all stop after the same step
    if signals.received is signal.SIGINT:
        raise KeyboardInterrupt
    raise TrainingStopped


def _score(evaluator: Evaluator) -> float:
    """The key metric for early stopping: higher is better."""
    value = key_value(evaluator)
    if math.isnan(value):
        return -math.inf
    return -value if evaluator.metric_cmp_fn(0.0, 1.0) else value


def _no_checkpoint(evaluator: Evaluator) -> str:
    name = evaluator.state.key_metric_name
    if name == VAL_LOSS:
        return "the loss became infinite and no checkpoint was written; try a lower --learning_rate"
    return f"{name} had no value in any validation, so there is no best checkpoint; use last.pt or another key_metric"


def _validate_last(trainer: Engine, evaluator: SupervisedEvaluator) -> None:
    if trainer.state.epoch == trainer.state.max_epochs and evaluator.state.epoch != trainer.state.epoch:
        evaluator.run(trainer.state.epoch)


def _module(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


class _Outputs:
    """What the main process writes: checkpoints, curves, TensorBoard and the progress bar."""

    def __init__(
        self,
        trainer: SupervisedTrainer,
        evaluator: SupervisedEvaluator,
        folder: Path,
        description: Described,
        network: nn.Module,
        configuration: Mapping[str, Any],
        handlers: Sequence[object],
    ) -> None:
        self.trainer = trainer
        self.evaluator = evaluator
        self.folder = folder
        self.checkpoints = Checkpoints(folder, network, description)
        self.history = History(folder / "history.json")
        self.tracking = Tracking(
            trainer,
            evaluator,
            folder=folder,
            history=lambda: self.history.epochs,
            configuration=configuration,
            data=description.data.get("training_data", {}),
            loss_of=_loss_of,
            handlers=handlers,
        )
        self._events: Any = None

    @property
    def stateful(self) -> dict[str, Any]:
        """What belongs to a training's state."""
        return {"checkpoints": self.checkpoints, "history": self.history}

    def attach(self, *, resumed_from: Path | None) -> None:
        """Attach to both engines, and set aside what an earlier training left in the folder.

        Args:
            resumed_from: the state that was restored; ``None`` if the training begins.
        """
        from torch.utils.tensorboard import SummaryWriter

        trainer, evaluator = self.trainer, self.evaluator
        self.folder.mkdir(parents=True, exist_ok=True)
        goes_on = resumed_from is not None and resumed_from.parent.resolve() == (self.folder / STATES).resolve()
        if not goes_on:
            set_aside(self.folder)
        if self.checkpoints.best is None:
            _set_model_aside(self.folder)
        self.checkpoints.attach(trainer, evaluator)
        self.history.attach(trainer, evaluator)
        purge = None if resumed_from is None else trainer.state.iteration + 1
        self._events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge)
        TensorBoardStatsHandler(self._events, tag_name="train_loss", output_transform=_loss_of).attach(trainer)
        TensorBoardStatsHandler(
            self._events, output_transform=lambda _: None, global_epoch_transform=lambda _: trainer.state.epoch
        ).attach(evaluator)
        self.tracking.attach(self._events, resumed=goes_on)
        bar, remaining = ProgressBar(desc="training", persist=True), RemainingTime()
        remaining.attach(trainer)
        bar.attach(
            trainer, output_transform=lambda output: {"loss": float(_loss_of(output)), "left": remaining.text(trainer)}
        )
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, _log_validation, trainer, bar)

    def close(self, *, finished: bool, stopped: bool = False) -> None:
        """Write the page of the training, and what TensorBoard holds back."""
        self.tracking.close(finished=finished, stopped=stopped)
        if self._events is not None:
            self._events.close()


def _set_model_aside(folder: Path) -> None:
    """Keep the ``model.pt`` of an earlier training as ``model.previous.pt``."""
    if (folder / "model.pt").exists():
        (folder / "model.pt").replace(folder / "model.previous.pt")
        _log.info("the checkpoint of an earlier run is kept as %s", folder / "model.previous.pt")
        if (folder / "model" / "config.json").is_file():  # made of that checkpoint, not of the one to come
            shutil.rmtree(folder / "model")


def _log_validation(evaluator: Engine, trainer: Engine, bar: ProgressBar) -> None:
    values = ", ".join(f"{name} {value:.4f}" for name, value in sorted(evaluator.state.metrics.items()))
    bar.log_message(f"epoch {trainer.state.epoch}: {values}")
