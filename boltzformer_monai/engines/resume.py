"""States of a training: all that its further steps depend on, in files from which a stopped one goes on exactly.

Orders, augmentations and draws need no state: they follow from the seed and the step (:mod:`.sampler`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn

from boltzformer_monai.engines.sampler import EpochSampler
from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.networks.weights import read_weights, save_checkpoint

_log = logging.getLogger(__name__)

AUTO = "auto"
STATES = "states"
_PREVIOUS = "states.previous"
_FORMAT, _VERSION = "boltzformer-training-state", 1
_KEPT = 2
_PATTERN = "state_{global_step:08d}.pt"
# Settings that change no number.
_INDIFFERENT = ("precision", "cache", "workers")
# What is named only where nothing else differs: it mostly follows from the rest.
_DERIVED = ("loss.", "optimizer.", "transform ")
_MOST_NAMED = 6


class Stateful(Protocol):
    """Part of a training with a state of its own, of tensors and plain values."""

    def state_dict(self) -> Mapping[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Restore it."""
        ...


class Described(Protocol):
    """What is saved with a network's weights."""

    data: dict[str, Any]
    """Of the slices: ``training_data``, ``initial_weights``, …"""

    def state_dict(self) -> dict[str, Any]:
        """Plain values; under ``network`` all that the network is built from."""
        ...


class LoopSettings(Protocol):
    """A dataclass of a training's settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def clip(self) -> float:
        """Largest gradient norm; 0 = no clipping."""
        ...

    @property
    def ema(self) -> float:
        """Decay of a moving average of the weights; 0 = off."""
        ...

    @property
    def layer_supervision(self) -> float:
        """Weight of the loss of the masks between a decoder's layers; 0 = off."""
        ...

    @property
    def layer_supervision_stride(self) -> int:
        """What their resolution is divided by."""
        ...


class StateFiles(BaseSaveHandler):
    """The last two states of a training, each whole or not there.

    Args:
        folder: made by the first state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Write a state, then remove all but the two newest up to it; later ones are of another course.

        Raises:
            StorageError: it cannot be written; the older states are left untouched.
        """
        save_checkpoint(checkpoint, self.folder / filename)
        states = self.newest_first()
        here = states.index(self.folder / filename)
        for old in (*states[:here], *states[here + _KEPT :]):
            old.unlink(missing_ok=True)

    def remove(self, filename: str) -> None:
        """Nothing: an older state goes when the new one is there, not before."""

    def newest_first(self) -> list[Path]:
        """All states."""
        return sorted(self.folder.glob("state_*.pt"), reverse=True)


def find_state(resume: str | Path | None, folder: Path) -> Path | None:
    """The state that a training in ``folder`` goes on from; ``None``: it begins.

    Args:
        resume: ``"auto"`` for the folder's newest state, a state, another training's folder, or ``None``.
        folder: of the training's results.

    Raises:
        ConfigError: there is nothing at ``resume``.
        CheckpointError: all states are damaged.
    """
    if resume is None:
        return None
    place = folder if str(resume) == AUTO else Path(resume)
    if place.is_file():
        return place
    states = StateFiles(place if place.name == STATES else place / STATES).newest_first()
    if not states and str(resume) == AUTO:
        _log.info("%s holds no state to go on from: the training begins", folder)
        return None
    if not states:
        raise ConfigError(
            f"--resume {resume}: there is no state, nor a folder of a training with states; see {STATES}/"
        )
    for path in states:
        try:
            read_state(path)
        except CheckpointError as error:
            _log.warning("%s; trying the state before", error)
            continue
        return path
    msg = f"{states[0].parent}: no state can be read; start anew without --resume, or from last.pt through init_from"
    raise CheckpointError(msg)


def read_state(path: Path) -> dict[str, Any]:
    """A state's content.

    Raises:
        CheckpointError: it is damaged, or no state.
    """
    content = read_weights(path)
    found = content.get("training")
    if not isinstance(found, Mapping) or found.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is no state of a training; give one of a folder {STATES}/")
    if found.get("version") != _VERSION:
        raise CheckpointError(f"{path} is a state of another version ({found.get('version')!r}); start anew")
    return content


def set_aside(folder: Path) -> None:
    """Keep the states of an earlier training in ``folder`` as ``states.previous``, and say so."""
    import shutil

    if StateFiles(folder / STATES).newest_first():
        shutil.rmtree(folder / _PREVIOUS, ignore_errors=True)
        os.replace(folder / STATES, folder / _PREVIOUS)
        _log.info(
            "the training begins anew; the states of the earlier one are kept as %s (--resume auto would have gone on)",
            folder / _PREVIOUS,
        )


def describe_training(
    trainer: SupervisedTrainer, evaluator: SupervisedEvaluator, description: Described, settings: LoopSettings
) -> dict[str, Any]:
    """All that decides the numbers of a training, as plain values by name."""
    loader = trainer.data_loader
    sampler, dataset = getattr(loader, "sampler", None), getattr(loader, "dataset", None)
    transform = getattr(getattr(dataset, "dataset", dataset), "transform", None)
    data = description.data
    named: dict[str, Any] = {
        key: value for key, value in dataclasses.asdict(settings).items() if key not in _INDIFFERENT
    }
    named |= {
        "epochs": trainer.state.max_epochs,
        "steps per epoch": trainer.state.epoch_length,
        "key_metric": evaluator.state.key_metric_name,
        "precision": getattr(_module(trainer.network), "precision", None),
        "data set": data.get("training_data", {}),
        "initial weights": data.get("initial_weights", []),
    }
    if isinstance(sampler, EpochSampler):
        named |= {"seed": sampler.seed, "global_batch": sampler.global_batch, "examples": sampler.count}
        named["example weights"] = _digest(sampler.probabilities)
    network = description.state_dict()["network"]
    named |= {f"network.{key}": value for key, value in network.items()}
    named |= {f"loss.{key}": value for key, value in _attributes(trainer.loss_function).items()}
    named |= {f"optimizer.{key}": value for key, value in _optimizer(trainer.optimizer).items()}
    for number, each in enumerate(getattr(transform, "transforms", ()), start=1):
        named |= {f"transform {number}.{key}": value for key, value in _attributes(each).items()}
    return {key: _plain(value) for key, value in named.items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two descriptions differ in, for a message: ``"epochs 30 (was 20), seed 1 (was 0)"``; ``""`` if alike."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    given = [name for name in names if not name.startswith(_DERIVED)] or names
    said = [f"{name} {_short(now.get(name))} (was {_short(before.get(name))})" for name in given[:_MOST_NAMED]]
    return ", ".join([*said, f"{len(given) - _MOST_NAMED} more"] if len(given) > _MOST_NAMED else said)


class TrainingState:
    """Saves a training's state, and restores it.

    Args:
        trainer: before its first step.
        scheduler: stepped with the trainer.
        folder: of the training's results.
        identity: of :func:`describe_training`.
        parts: what has a state of its own besides network, optimizer and scheduler.
    """

    def __init__(
        self,
        trainer: SupervisedTrainer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        *,
        folder: Path,
        identity: Mapping[str, Any],
        parts: Mapping[str, Stateful],
    ) -> None:
        self.trainer = trainer
        self.scheduler = scheduler
        self.identity = dict(identity)
        self.parts: dict[str, Any] = {
            "network": trainer.network,
            "optimizer": NamedMoments(trainer.optimizer, trainer.network),
            "scheduler": scheduler,
            **parts,
        }
        if trainer.scaler is not None:
            self.parts["scaler"] = trainer.scaler
        self.epoch_done = self.finished = self.stopping = False
        self._saved_at = time.monotonic()
        self._checkpoint = Checkpoint(
            {"training": self, **self.parts},
            StateFiles(folder / STATES),
            filename_pattern=_PATTERN,
            n_saved=None,
            global_step_transform=lambda *_: trainer.state.iteration,
        )

    def attach(self, *, save_minutes: float, save_steps: int, stop: Callable[[], bool], is_main: bool) -> None:
        """Save after every epoch, every so many minutes or steps (0: never), and when the training shall stop.

        The last handler to be attached, since a state holds what the others have done.
        """

        def step_done(trainer: Engine) -> None:
            if trainer.should_terminate:  # the loss is no number, and so are the weights
                return
            self.epoch_done = False
            if stop():
                self.stopping = True
                trainer.terminate()
            late = save_minutes and time.monotonic() - self._saved_at >= 60 * save_minutes
            if is_main and (self.stopping or late or (save_steps and trainer.state.iteration % save_steps == 0)):
                self.save()

        def epoch_done(trainer: Engine) -> None:
            self.epoch_done = True
            self.finished = bool(trainer.should_terminate) or self.is_over
            if is_main:
                self.save()
            if not self.finished and stop():
                self.stopping = True
                trainer.terminate()

        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, step_done)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, epoch_done)

    def save(self) -> None:
        """Write the state between two steps.

        Raises:
            StorageError: it cannot be written; the older states are left untouched.
        """
        self._checkpoint(self.trainer)
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What the training is, and where it stands."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "identity": self.identity,
            "threads": torch.get_num_threads(),
            "step": self.trainer.state.iteration,
            "epoch_length": self.trainer.state.epoch_length,
            "epoch_done": self.epoch_done,
            "finished": self.finished,
        }

    def restore(self, path: Path, *, exact: bool) -> str:
        """Go on from a state; returns what differs from the training that it is of.

        Args:
            path: of the state.
            exact: whether nothing may differ.

        Raises:
            CheckpointError: the state is damaged, or no state.
            ConfigError: the configuration or the network is another, or the examples have another sampler.
        """
        content = read_state(path)
        found = content["training"]
        before = found["identity"]
        others = differences(before, self.identity)
        if others and exact:
            msg = f"{path} is of another training: {others}; --resume {path} goes on all the same, and without --resume"
            raise ConfigError(f"{msg} the training begins anew")
        network = {name: {key: each[key] for key in each if key.startswith("network.")} for name, each in (
            ("before", before), ("now", self.identity))}  # fmt: skip
        if unlike := differences(network["before"], network["now"]):
            raise ConfigError(
                f"{path} is of another network: {unlike}; init_from starts from the weights of another one"
            )
        sampler = getattr(self.trainer.data_loader, "sampler", None)
        if not isinstance(sampler, EpochSampler):
            kind = type(sampler).__name__
            raise ConfigError(
                f"--resume needs the examples' own sampler, and the configuration has a {kind}; leave it out"
            )
        left = {"scheduler"}
        if before["key_metric"] != self.identity["key_metric"]:
            left |= {"early_stopping", "checkpoints"}
        try:
            fitting = {name: part for name, part in self.parts.items() if name not in left}
            Checkpoint.load_objects(fitting, content)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not fit this training ({error}); start anew without --resume"
            ) from error
        threads = torch.get_num_threads()
        if found.get("threads") != threads and next(_module(self.trainer.network).parameters()).device.type == "cpu":
            _log.info("%s is of %s threads, here are %d: sums differ in rounding", path, found.get("threads"), threads)
        self._restore_position(found, sampler)
        self._restore_rates(content["scheduler"])
        self.finished &= not others
        return others

    def _restore_position(self, found: Mapping[str, Any], sampler: EpochSampler) -> None:
        state = self.trainer.state
        epochs, within = divmod(int(found["step"]), int(found["epoch_length"]))
        if found["epoch_length"] == state.epoch_length:
            state.iteration = int(found["step"])
            self.epoch_done = bool(found["epoch_done"])
        else:
            state.iteration = epochs * state.epoch_length
            self.epoch_done = True
            if within:
                _log.warning(
                    "an epoch has other steps than before: going on with the beginning of epoch %d", epochs + 1
                )
        state.epoch = epochs
        self.finished = bool(found["finished"])
        sampler.start_at(state.iteration)

    def _restore_rates(self, saved: Mapping[str, Any]) -> None:
        """Learning rates of the schedule as it is configured now, at the step reached."""
        groups = self.trainer.optimizer.param_groups
        bases = list(self.scheduler.base_lrs)
        self.scheduler.load_state_dict(dict(saved))
        rates = self.scheduler.get_last_lr()
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LambdaLR):
            self.scheduler.base_lrs = bases
            self.scheduler.last_epoch = step = self.trainer.state.iteration
            rates = [base * rate(step) for base, rate in zip(bases, self.scheduler.lr_lambdas, strict=True)]
            self.scheduler._last_lr = rates
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    @property
    def epoch_is_open(self) -> bool:
        """Whether the state restored is of an epoch's end, with the validation still to come."""
        state = self.trainer.state
        return state.iteration > 0 and state.iteration % state.epoch_length == 0 and not self.epoch_done

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train."""
        state = self.trainer.state
        return state.iteration >= state.max_epochs * state.epoch_length


class NamedMoments:
    """An optimizer's state by the names of the parameters; its settings are not part of it.

    So it fits other learning rates, weight decays and frozen parts.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        self.optimizer = optimizer
        self.network = _module(network)

    def _names(self) -> list[str]:
        """Of the parameters, in the order of the optimizer's groups."""
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        return [names[id(each)] for group in self.optimizer.param_groups for each in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Parameter's name → its state."""
        state, names = self.optimizer.state_dict()["state"], self._names()
        return {names[index]: each for index, each in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it; parameters that have none begin without."""
        indexed = {index: state[name] for index, name in enumerate(self._names()) if name in state}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": indexed})


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of names and values of a state dict."""
    made = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        made.update(name.encode())
        made.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def agreed(path: Path | None) -> Path | None:
    """The first process's path, for all."""
    if idist.get_world_size() == 1:
        return path
    return Path(found) if (found := str(idist.broadcast(str(path or ""), src=0, safe_mode=True))) else None


def _module(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def _optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    rates = [[group.get("initial_lr", group["lr"]), group.get("weight_decay")] for group in optimizer.param_groups]
    return {"kind": type(optimizer).__name__, "rates and decays": rates}


def _attributes(part: object) -> dict[str, Any]:
    """Kind and plain attributes of a loss or transform."""
    plain = {key: value for key, value in getattr(part, "__dict__", {}).items() if not key.startswith("_")}
    kept = {key: value for key, value in plain.items() if key not in ("training", "R") and _is_plain(value)}
    return {"kind": f"{type(part).__module__}.{type(part).__qualname__}", **kept}


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Any:
    """Lists for tuples, and values for enumerations, as a file gives them back."""
    if isinstance(value, Enum):  # some of MONAI's are texts too, and a file with them could not be read
        value = value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if _is_plain(value) else str(value)


def _digest(values: Any) -> str:
    return "" if values is None else hashlib.sha256(values.tobytes()).hexdigest()


def _short(value: object, most: int = 40) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= most else f"#{hashlib.sha256(text.encode()).hexdigest()[:8]}"
