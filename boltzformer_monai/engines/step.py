"""One step of the training: an optimizer step on a global batch, in micro-batches and on several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import IterationEvents, SupervisedTrainer
from torch import nn
from torch.utils.data import DataLoader

from boltzformer_monai.engines.loss import training_loss
from boltzformer_monai.engines.ranks import sum_of_ranks
from boltzformer_monai.engines.sampler import EpochSampler
from boltzformer_monai.errors import ConfigError

__all__ = ["StepLoader", "global_batch_of", "training_step"]


def global_batch_of(global_batch: int | None, *, batch_size: int) -> int:
    """Examples of a step on all processes; ``None`` is one batch per process.

    Raises:
        ConfigError: it is no multiple of the batches of all processes.
    """
    world = idist.get_world_size()
    least = batch_size * world
    if global_batch is None:
        return least
    if global_batch < 1 or global_batch % least:
        several = f" × {world} processes" if world > 1 else ""
        below = global_batch // least * least
        nearest = f"{below} or {below + least}" if below else f"{least}, or a smaller batch_size"
        msg = f"global_batch {global_batch} is no multiple of batch_size {batch_size}{several}; take {nearest}"
        raise ConfigError(msg)
    return global_batch


class StepLoader:
    """The micro-batches of one step after another.

    Args:
        loader: of micro-batches. An :class:`EpochSampler` gives the examples of a step together; with another sampler
            every batch is a step.

    Raises:
        ConfigError: the loader's batch size does not divide a step's examples.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.sampler = loader.sampler
        self.dataset = loader.dataset
        self.batch_size = loader.batch_size
        self.micro_batches = 1
        if isinstance(self.sampler, EpochSampler):
            share = self.sampler.global_batch // self.sampler.world
            if self.batch_size is None or share % self.batch_size:
                msg = f"{share} examples of a step on each process are no multiple of the batch size {self.batch_size}"
                raise ConfigError(msg)
            self.micro_batches = share // self.batch_size

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.sampler.steps if isinstance(self.sampler, EpochSampler) else len(self.loader)

    def __iter__(self) -> Iterator[list[Any]]:
        """Lists of micro-batches; the last step of an epoch may have fewer."""
        step: list[Any] = []
        for batch in self.loader:
            step.append(batch)
            if len(step) == self.micro_batches:
                yield step
                step = []
        if step:
            yield step


def training_step(engine: SupervisedTrainer, batches: Sequence[Any]) -> dict[str, Any]:
    """MONAI's ``iteration_update``: gradients of all micro-batches and processes, then one step of the optimizer.

    The gradient is that of the loss over the global batch. The output has images, masks and prediction of the last
    micro-batch, and the loss of the global batch on all processes.

    Raises:
        ConfigError: ``amp`` is set, or the loss does not fit.
    """
    if engine.amp:
        raise ConfigError("train#trainer#amp has no part here: the network computes in --precision; leave it out")
    world = idist.get_world_size()
    loss = training_loss(engine.loss_function)
    engine.network.train()
    engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
    device = engine.state.device
    counts = sum_of_ranks(torch.stack([loss.counts(batch["label"].to(device)) for batch in batches]).sum(0))
    total = torch.zeros((), device=device)
    for number, batch in enumerate(batches, start=1):  # one after another, so that the device holds one of them
        inputs, targets, *arguments = engine.prepare_batch(batch, device, engine.non_blocking, **engine.to_kwargs)
        args, kwargs = arguments or ((), {})
        with _without_sync(engine.network) if number < len(batches) else contextlib.nullcontext():
            prediction = engine.inferer(inputs, engine.network, *args, **kwargs)
            engine.state.output = {"image": inputs, "label": targets, "pred": prediction}
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            part = loss(prediction, targets, counts)
            (part * world).backward()  # the processes' gradients are averaged, their losses add up
        total += part.detach()
    engine.state.output["loss"] = sum_of_ranks(total)
    engine.fire_event(IterationEvents.LOSS_COMPLETED)
    engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
    engine.optimizer.step()
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    return engine.state.output


def _without_sync(network: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Keep gradients to this process, until the last micro-batch shares them."""
    if not isinstance(network, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()  # type: ignore[no-any-return]
