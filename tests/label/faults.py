"""A disk that fails at the n-th call: a stand-in for a full, broken or protected one that needs no rights."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

KILL = -1
"""Instead of an error: the process ends there and then."""
_CALLS = ("open", "mkdir", "replace", "rename", "unlink", "remove", "rmdir", "fsync", "sendfile", "link", "chmod")


class Disk:
    """Counts what is written, and fails once when it is told to.

    Attributes:
        calls: so far, since it was armed.
        failed: name of the call that failed, "" while none did.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.failed = ""
        self._at: int | None = None
        self._errno = 0
        self._lock = threading.Lock()

    def arm(self, at: int | None, errno: int = 0) -> None:
        """Fail at the call of this number, from 1 on, or end the process; ``None``: only count."""
        with self._lock:
            self.calls, self.failed, self._at, self._errno = 0, "", at, errno

    def call(self, name: str) -> None:
        """One that may fail.

        Raises:
            OSError: its turn has come.
        """
        with self._lock:
            self.calls += 1
            if self.calls != self._at:
                return
            self.failed = name
        if self._errno == KILL:
            os._exit(9)
        raise OSError(self._errno, os.strerror(self._errno))


@contextlib.contextmanager
def failing_disk() -> Iterator[Disk]:
    """Every call of this process that changes a file system goes through it; open files are written as always."""
    disk = Disk()

    class File(io.FileIO):
        def write(self, data: Any) -> int:  # type: ignore[override]
            disk.call("write")
            return super().write(data)

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name != "open" or arguments[1] & (os.O_WRONLY | os.O_RDWR):
                disk.call(name)
            return real(*arguments, **options)

        return call

    real_open = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or options.get("opener") or rest and len(rest) > 3:
            return real_open(file, mode, buffering, *rest, **options)
        if isinstance(file, int):
            raw = File(file, mode.replace("b", "").replace("t", ""), options.get("closefd", True))
        else:
            disk.call("open")
            raw = File(file, mode.replace("b", "").replace("t", ""))
        binary: Any = raw
        if buffering != 0:
            binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return binary
        encoding, errors, newline = (*rest, None, None, None)[:3]
        names = {"encoding": encoding, "errors": errors, "newline": newline}
        text = io.TextIOWrapper(binary, **{key: options.get(key, value) for key, value in names.items()})
        text.mode = mode  # type: ignore[misc]
        return text

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            if hasattr(os, name):
                patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        yield disk
