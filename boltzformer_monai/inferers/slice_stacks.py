"""Windowed slices of a volume, cached for further requests on it."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from boltzformer_monai.data.planes import Slicing
from boltzformer_monai.data.windows import GreyScale
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.io.volume import Volume


class SliceStacks:
    """Least recently used stacks of slices, within a limit; thread-safe.

    Args:
        limit: bytes; 0 caches nothing.

    Raises:
        ConfigError: a negative limit.
    """

    def __init__(self, limit: int = 0) -> None:
        if limit < 0:
            raise ConfigError(f"the bytes of the slices kept must be 0 or more, got {limit}")
        self.limit = limit
        self._held: OrderedDict[tuple[int, GreyScale, Slicing], tuple[weakref.ref[Volume], np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Current size."""
        return sum(stack.nbytes for _, stack in self._held.values())

    def clear(self) -> None:
        """Drop all stacks."""
        with self._lock:
            self._held.clear()

    def windowed(self, volume: Volume, window: GreyScale) -> Callable[[Slicing], np.ndarray]:
        """Slicing → its slices ``(N, H, W)`` uint8, to be read only; the window is applied once, when first needed."""

        @functools.cache
        def grey() -> np.ndarray:
            return window.apply(volume.array)

        def slices(slicing: Slicing) -> np.ndarray:
            key = (id(volume), window, slicing)
            if (known := self._known(key, volume)) is not None:
                return known
            stack = slicing.extract(grey())
            self._keep(key, volume, stack)
            return stack

        return slices

    def _known(self, key: tuple[int, GreyScale, Slicing], volume: Volume) -> np.ndarray | None:
        with self._lock:
            found = self._held.get(key)
            if found is None or found[0]() is not volume:  # an id may be reused
                return None
            self._held.move_to_end(key)
            return found[1]

    def _keep(self, key: tuple[int, GreyScale, Slicing], volume: Volume, stack: np.ndarray) -> None:
        with self._lock:
            for stale in [each for each, (owner, _) in self._held.items() if owner() is None or each == key]:
                del self._held[stale]
            if stack.nbytes > self.limit:
                return
            while self.bytes + stack.nbytes > self.limit:
                self._held.popitem(last=False)
            self._held[key] = (weakref.ref(volume), stack)
