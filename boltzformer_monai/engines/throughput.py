"""What a training achieves: images per second, peak memory, and the share of its time spent waiting for data."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import torch
from ignite.engine import Engine, Events

from boltzformer_monai.engines.ranks import most_of_ranks, sums_of_ranks
from boltzformer_monai.engines.step import StepLoader

__all__ = ["THROUGHPUT", "Throughput"]

_log = logging.getLogger(__name__)

THROUGHPUT = ("images_per_second", "data_wait", "peak_memory_gb")
"""Metrics of the trainer, measured anew in every run."""
_STARVED = 0.2  # share of the time


class Throughput:
    """Measures every epoch, without its validation; the values are the trainer's metrics.

    ``images_per_second`` of all processes; ``data_wait``, the share of the time in which this process waited for the
    loader; ``peak_memory_gb`` of the process that takes most: allocated by PyTorch on a GPU, else resident.

    Args:
        device: of the network.
        is_main: whether this process logs.
    """

    def __init__(self, *, device: torch.device | str, is_main: bool = True) -> None:
        self.device = torch.device(device)
        self.is_main = is_main
        self._advised = False
        self._clear()

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before what validates after an epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._clear())
        engine.add_event_handler(Events.GET_BATCH_STARTED, lambda _: self._wait())
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._got)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _clear(self) -> None:
        self._images = 0
        self._waited = 0.0
        self._start = self._waiting_since = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _wait(self) -> None:
        self._waiting_since = time.perf_counter()

    def _got(self, engine: Engine) -> None:
        self._waited += time.perf_counter() - self._waiting_since
        step: Any = engine.state.batch
        self._images += sum(len(batch["image"]) for batch in step)

    def _report(self, engine: Engine) -> None:
        if not self._images:  # an epoch whose steps were done before the training was resumed
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._start
        memory = self._peak_memory()
        wait, memory = self._waited / seconds, most_of_ranks(memory)
        (images,) = sums_of_ranks(self._images)
        engine.state.metrics.update(dict(zip(THROUGHPUT, (images / seconds, wait, memory), strict=True)))
        if not self.is_main:
            return
        _log.info(
            "epoch %d: %.1f images/s, %.0f %% of the time waiting for data, peak memory %.1f GB",
            engine.state.epoch,
            images / seconds,
            100 * wait,
            memory,
        )
        if self.device.type == "cuda" and wait > _STARVED and not self._advised:
            self._advised = True
            loader = engine.state.dataloader
            workers = loader.loader.num_workers if isinstance(loader, StepLoader) else 0
            _log.warning(
                "the GPU waits for data %.0f %% of the time: more --workers than %d, or slices kept in memory "
                "(--settings_overrides \"{'cache': True}\"), make the training faster",
                100 * wait,
                workers,
            )

    def _peak_memory(self) -> float:
        """In GB; 0 where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        try:
            import resource
        except ImportError:  # Windows
            return 0.0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # bytes there, else KiB
