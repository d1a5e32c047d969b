"""How long a training will still take."""

from __future__ import annotations

import time
from collections.abc import Callable

from ignite.engine import Engine, Events

__all__ = ["RemainingTime"]


class RemainingTime:
    """Estimates the time to the last epoch from the mean step of this run, validations included.

    A training that stops early takes less.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def attach(self, trainer: Engine) -> None:
        """Attach to the trainer."""
        trainer.add_event_handler(Events.STARTED, self._begin)

    def _begin(self, trainer: Engine) -> None:
        self._first = self._clock(), trainer.state.iteration

    def seconds(self, trainer: Engine) -> float | None:
        """Seconds left; None before the first step."""
        state = trainer.state
        if self._first is None or state.max_epochs is None or state.epoch_length is None:
            return None
        start, before = self._first
        done = state.iteration - before
        left = state.max_epochs * state.epoch_length - state.iteration
        return (self._clock() - start) / done * left if done > 0 else None

    def text(self, trainer: Engine) -> str:
        """As ``"2:05:00"``, or ``"?"``."""
        seconds = self.seconds(trainer)
        if seconds is None:
            return "?"
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
