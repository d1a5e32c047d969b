"""The training run: MONAI's SupervisedTrainer with checkpoints, curves, schedule and early stopping."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping, TerminateOnNan
from ignite.handlers.tqdm_logger import ProgressBar
from monai.engines import Evaluator, IterationEvents, SupervisedEvaluator, SupervisedTrainer
from monai.handlers import TensorBoardStatsHandler
from monai.inferers import Inferer
from torch import Tensor, nn

from boltzformer_monai.engines.key_metric import VAL_DICE, VAL_LOSS, has_improved, key_value
from boltzformer_monai.engines.sampler import EpochSampler
from boltzformer_monai.engines.settings import TrainingSettings
from boltzformer_monai.errors import DivergenceError
from boltzformer_monai.networks.interfaces import Decoded
from boltzformer_monai.networks.sampling import CounterNoise
from boltzformer_monai.networks.weights import Description, save_checkpoint
from boltzformer_monai.storage import replacing, writing

_log = logging.getLogger(__name__)


def make_optimizer(
    network: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    decay_norms: bool = True,
    backbone_lr_factor: float = 1.0,
    text_lr_factor: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW (A.4) on all parameters that are not frozen.

    Args:
        network: BoltzFormer, bare or in ``DistributedDataParallel``.
        learning_rate: of all parts without a factor.
        weight_decay: of all parameters, or without ``decay_norms`` of those with more than one dimension.
        decay_norms: whether norms and biases decay too.
        backbone_lr_factor: the backbone's learning rate is this times ``learning_rate``.
        text_lr_factor: the text encoder's.
    """
    module = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    factors = {"backbone": backbone_lr_factor, "text_encoder": text_lr_factor}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = learning_rate * factors.get(name.partition(".")[0], 1.0)
            decay = weight_decay if decay_norms or parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": each, "lr": rate, "weight_decay": decay} for (rate, decay), each in groups.items()],
        lr=learning_rate,
        fused=True,
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, *, settings: TrainingSettings, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate schedule per step: constant, or linear warm-up and cosine decay to zero."""
    warm_up = max(1, round(settings.warm_up * steps))

    def factor(step: int) -> float:
        if settings.schedule == "constant":
            return 1.0
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


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
        self.epochs.append(row)
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.epochs, indent=1), encoding="utf-8")


class Checkpoints:
    """``model.pt`` whenever the key metric is the best so far, ``last.pt`` after every epoch; both atomic.

    Neither MONAI's CheckpointSaver nor ignite's Checkpoint: the first writes in place, the second removes a file
    before it writes its successor, and both would keep a first value of NaN as the best for ever.

    Args:
        folder: for the files.
        network: whose weights are saved.
        description: saved with them.
        best: key metric of an existing ``model.pt``.
    """

    def __init__(
        self, folder: Path, network: nn.Module, description: Description, *, best: float | None = None
    ) -> None:
        self.folder = folder
        self.network = network
        self.description = description
        self.best = best

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Attach to both engines."""
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._validated)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self.save_last())

    def _validated(self, evaluator: Evaluator) -> None:
        if has_improved(evaluator, self.best):
            self.best = key_value(evaluator)
            self._save("model.pt")

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
    description: Description,
    output_dir: str | Path,
    settings: TrainingSettings,
    patience: int,
    is_main: bool = True,
    best: float | None = None,
) -> Path:
    """Train; returns the best checkpoint.

    Writes ``model.pt`` (best by the evaluator's key metric), ``last.pt``, ``history.json`` and TensorBoard events into
    ``output_dir``. A second call does nothing: MONAI Label evaluates both ``training`` and ``run`` of the bundle.
    Ctrl-C saves ``last.pt`` before the interrupt propagates.

    Args:
        trainer: its network is saved.
        evaluator: run by the trainer's ValidationHandler; its key metric and comparator select the best checkpoint.
        scheduler: stepped after every iteration.
        description: saved with the weights.
        output_dir: made if needed.
        settings: gradient clipping.
        patience: validations without a better key metric before training stops.
        is_main: whether this process writes and logs (rank 0 in distributed training).
        best: key metric of the ``model.pt`` that an interrupted part of this training left in ``output_dir``.

    Raises:
        StorageError: the folder cannot be written; existing checkpoints are left untouched.
        DivergenceError: the loss became infinite, or no validation gave a key metric.
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
    with writing(folder):
        checkpoints = _attach_outputs(trainer, evaluator, folder, description, best) if is_main else None
    started = time.monotonic()
    try:
        with writing(folder, much_else=True):  # TensorBoard's files
            trainer.run()
    except KeyboardInterrupt:
        if checkpoints is not None:
            checkpoints.save_last()
            _log.warning("interrupted: the last state is in %s", folder / "last.pt")
        raise
    if checkpoints is not None and checkpoints.best is None:
        raise DivergenceError(_no_checkpoint(evaluator))
    if is_main:
        minutes = (time.monotonic() - started) / 60
        _log.info("trained %d epochs in %.1f minutes; best checkpoint: %s", trainer.state.epoch, minutes, checkpoint)
    return checkpoint


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


def _attach_outputs(
    trainer: SupervisedTrainer,
    evaluator: SupervisedEvaluator,
    folder: Path,
    description: Description,
    best: float | None,
) -> Checkpoints:
    """Attach checkpoints, curves, TensorBoard and progress bar; returns the checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    if best is None and (folder / "model.pt").exists():
        (folder / "model.pt").replace(folder / "model.previous.pt")
        _log.info("the checkpoint of an earlier run is kept as %s", folder / "model.previous.pt")
        if (folder / "model" / "config.json").is_file():  # made of that checkpoint, not of the one to come
            shutil.rmtree(folder / "model")
    network = trainer.network
    module = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    checkpoints = Checkpoints(folder, module, description, best=best)
    checkpoints.attach(trainer, evaluator)
    History(folder / "history.json").attach(trainer, evaluator)
    events = str(folder / "tensorboard")
    TensorBoardStatsHandler(log_dir=events, tag_name="train_loss", output_transform=_loss_of).attach(trainer)
    TensorBoardStatsHandler(
        log_dir=events, output_transform=lambda _: None, global_epoch_transform=lambda _: trainer.state.epoch
    ).attach(evaluator)
    bar = ProgressBar(desc="training", persist=True)
    bar.attach(trainer, output_transform=lambda output: {"loss": float(_loss_of(output))})
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, _log_validation, trainer, bar)
    return checkpoints


def _log_validation(evaluator: Engine, trainer: Engine, bar: ProgressBar) -> None:
    values = ", ".join(f"{name} {value:.4f}" for name, value in sorted(evaluator.state.metrics.items()))
    bar.log_message(f"epoch {trainer.state.epoch}: {values}")
