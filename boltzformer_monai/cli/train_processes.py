"""``--processes N``: the bundle's training in several processes of this machine, as torchrun starts them."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed import TCPStore

from boltzformer_monai.cli.command_line import USER_ERROR, run_parsed
from boltzformer_monai.engines.bundle import check_training, run_workflow
from boltzformer_monai.engines.stop import STOPPED, TrainingStopped
from boltzformer_monai.errors import BoltzFormerError, ConfigError, RankLostError, user_error, user_line
from boltzformer_monai.limits import MEMORY_VARIABLE, memory_budget, set_memory_gb
from boltzformer_monai.parallel import collected_messages, end_with_parent, processor_count

__all__ = ["train_in_processes"]

_HOST = "127.0.0.1"
_GRACE_S = 30.0  # for the others, once a process has failed
_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What every process is told."""

    overrides: dict[str, Any]
    root: Path
    overlays: list[Path]
    tracking: str | None
    processes: int
    threads: int
    port: int


def train_in_processes(
    count: int,
    overrides: Mapping[str, Any],
    *,
    root: Path,
    overlays: Sequence[Path] = (),
    tracking: str | None = None,
) -> None:
    """Train in several processes: one for each GPU, or sharing the processors.

    Signals to stop are passed on to all of them. The first one writes the log, and one error speaks for all.

    Args:
        count: of processes, 2 or more.
        overrides: of the configuration, key → value.
        root: the bundle's folder.
        overlays: configuration files that override it, in this order.
        tracking: ``"mlflow"``, or a file of MONAI's tracking settings.

    Raises:
        BoltzFormerError: a setting cannot be used, there are fewer GPUs than processes, or the training failed.
        RankLostError: a process ended before its time.
        TrainingStopped: a signal asked for it, and the state is saved.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu and count > (gpus := torch.cuda.device_count()):
        raise ConfigError(f"--processes {count}: this machine has {gpus} GPUs, and each process needs its own")
    if overrides.get("device") is not None:
        raise ConfigError(f"--device {overrides['device']}: with --processes each process takes the device of its own")
    overlays = [root / "configs" / "multi_gpu_train.json", *overlays]
    check_training(overrides, root=root, overlays=overlays)
    # As torchrun does: the store is here, so its port is known before the processes start.
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    training = _Training(
        overrides=dict(overrides),
        root=root,
        overlays=overlays,
        tracking=tracking,
        processes=count,
        threads=max(1, processor_count() // count),
        port=store.port,
    )
    context = multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    processes = [context.Process(target=_train, args=(rank, training, said)) for rank in range(count)]
    with _passed_on(processes) as received:
        for process in processes:
            process.start()
        _wait(processes)
    codes = [process.exitcode or 0 for process in processes]
    if not any(codes):
        return
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if {*codes} <= {0, STOPPED}:
        raise TrainingStopped
    lines = []
    while not said.empty():
        lines.append(said.get())
    if causes := [line for lost, line in lines if not lost]:
        raise BoltzFormerError(causes[0])
    # A rank that only lost another is not the one to name.
    rank = next((rank for rank, code in enumerate(codes) if code not in (0, STOPPED, USER_ERROR)), 0)
    how = f"was ended by signal {-codes[rank]}" if codes[rank] < 0 else f"ended with code {codes[rank]}"
    raise RankLostError(f"process {rank} of the training {how}; the same command with --resume auto goes on")


def _wait(processes: Sequence[SpawnProcess]) -> None:
    """Wait for all; once one has failed, the others notice it, and are ended if they do not."""
    end: float | None = None
    while alive := [process for process in processes if process.is_alive()]:
        multiprocessing.connection.wait([process.sentinel for process in alive], timeout=1.0)
        if end is None and any(process.exitcode not in (None, 0, STOPPED) for process in processes):
            end = time.monotonic() + _GRACE_S
        if end is not None and time.monotonic() > end:
            for process in alive:
                process.kill()


@contextlib.contextmanager
def _passed_on(processes: Sequence[SpawnProcess]) -> Iterator[list[int]]:
    """Pass signals to stop on to the processes while entered; yields those that came."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            if process.pid is not None and process.is_alive() and sys.platform != "win32":  # its console tells them
                os.kill(process.pid, number)

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(rank: int, training: _Training, said: multiprocessing.queues.SimpleQueue[tuple[bool, str]]) -> None:
    """Be one of the processes; an error that the user can mend is said by its line, and whether another is to blame."""
    end_with_parent()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(training.processes),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(training.port),
        "TORCHELASTIC_USE_AGENT_STORE": str(True),  # rank 0 makes no store of its own
    }
    if MEMORY_VARIABLE not in os.environ:
        set_memory_gb(memory_budget() / training.processes / 1e9)
    torch.set_num_threads(training.threads)

    def run(options: Namespace) -> int:
        try:
            with contextlib.nullcontext() if rank == 0 else collected_messages():
                run_workflow(
                    "train",
                    training.overrides,
                    root=training.root,
                    overlays=training.overlays,
                    tracking=training.tracking,
                )
        except Exception as error:
            if (line := user_line(error)) is None:
                raise
            said.put((isinstance(user_error(error), RankLostError), line))
            sys.stderr.flush()
            os._exit(USER_ERROR)  # in a process group still, whose threads can abort Python's own end
        return 0

    raise SystemExit(run_parsed(lambda: Namespace(run=run)))
