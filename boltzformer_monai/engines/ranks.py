"""Several processes that train together: sums over them, and what one says when another is gone."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError, RankLostError
from boltzformer_monai.precision import distributed_device

__all__ = ["leave_distributed", "most_of_ranks", "start_distributed", "sum_of_ranks", "sums_of_ranks", "together"]

# Gloo and NCCL raise plain RuntimeErrors, or DistBackendError, which is one.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "gloo",
    "NCCL",
    "remote process exited",
)


def start_distributed() -> None:
    """Join torchrun's process group: NCCL on GPUs, Gloo on CPUs.

    Raises:
        ConfigError: the process was not started by torchrun.
    """
    if "LOCAL_RANK" not in os.environ:
        msg = "multi_gpu_train.json is for torchrun: torchrun --nproc_per_node=2 -m monai.bundle run training …"
        raise ConfigError(msg)
    if not torch.distributed.is_initialized():
        # Before there is a group: its functions keep the group of their import as a default, for good.
        importlib.import_module("torch.distributed.nn.functional")
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(distributed_device())
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")


def leave_distributed(network: nn.Module) -> None:
    """Leave the process group, if there is one, and end its threads.

    A thread of Gloo's that lets go of a tensor only while Python ends aborts the process, although its work is done.

    Args:
        network: in ``DistributedDataParallel``, whose reducer keeps the group too; it cannot be trained any more.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network.reducer = network.logger = network.process_group = None  # type: ignore[assignment]


def sum_of_ranks(values: Tensor) -> Tensor:
    """Add a tensor of every process, in place."""
    if idist.get_world_size() > 1:
        torch.distributed.all_reduce(values)
    return values


def sums_of_ranks(*values: float) -> list[float]:
    """The sum of each number over all processes."""
    device = idist.device() if idist.get_world_size() > 1 else "cpu"
    return sum_of_ranks(torch.tensor(values, dtype=torch.float64, device=device)).tolist()  # type: ignore[no-any-return]


def most_of_ranks(value: float) -> float:
    """The largest of the processes' numbers."""
    if idist.get_world_size() == 1:
        return value
    largest = torch.tensor(value, dtype=torch.float64, device=idist.device())
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return float(largest)


@contextmanager
def together() -> Iterator[None]:
    """Name the end of another process as what it is.

    Raises:
        RankLostError: another process of the training ended, so that this one cannot go on.
    """
    try:
        yield
    except RuntimeError as error:
        if idist.get_world_size() == 1 or not any(sign in str(error) for sign in _LOST):
            raise
        rank = idist.get_rank()
        msg = f"process {rank}: another process of this training ended, so this one ends too; --resume auto goes on"
        raise RankLostError(msg) from error
