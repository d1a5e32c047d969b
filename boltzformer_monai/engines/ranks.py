"""Several processes that train together: sums over them, and what one says when another is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ignite.distributed as idist
import torch
from torch import Tensor

from boltzformer_monai.errors import RankLostError

__all__ = ["most_of_ranks", "sum_of_ranks", "sums_of_ranks", "together"]

# Gloo and NCCL raise plain RuntimeErrors, or DistBackendError, which is one.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "gloo",
    "NCCL",
    "remote process exited",
)


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
