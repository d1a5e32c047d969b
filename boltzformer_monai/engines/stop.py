"""Signals that ask a training to stop after its step, with a state saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import ignite.distributed as idist

STOPPED = os.EX_TEMPFAIL if hasattr(os, "EX_TEMPFAIL") else 75
"""The exit code of a training that was asked to stop: not done, the same command with ``--resume auto`` goes on."""
_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
_ONE_REQUEST_S = 1.0  # a launcher and the terminal may pass on the same signal twice


class TrainingStopped(SystemExit):
    """A signal asked the training to stop, and its state is saved."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class StopSignals:
    """While entered, SIGTERM, SIGUSR1 and Ctrl-C are requests to stop; a second one ends the process as usual.

    Only the main thread can have handlers; in others nothing changes.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._at > _ONE_REQUEST_S:
            self._restore()
            signal.raise_signal(number)  # os.kill would end the process at once on Windows

    def requested(self) -> bool:
        """Whether any process was asked to stop; all processes have to ask, after the same step."""
        mine = self.received is not None
        return mine if idist.get_world_size() == 1 else bool(idist.all_reduce(float(mine), "MAX"))
