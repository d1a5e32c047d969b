"""The server's own temporary folder: nobody else's to read, and swept where a killed server left one.

What clients send lies in temporary files for a while, and a process that is killed cannot remove them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: a folder of its own, but none is swept
    fcntl = None  # type: ignore[assignment]

__all__ = ["PRIVATE", "hold_temporary_folder", "temporary_folder"]

_log = logging.getLogger(__name__)

PRIVATE = 0o077
"""The umask of a server: files of mode 0600 and folders of mode 0700."""
_FOLDERS = "tmp"
_IN_USE = ".in-use"
_TURN = ".lock"


@contextlib.contextmanager
def temporary_folder(workspace: Path) -> Iterator[Path]:
    """All temporary files of this process, and of those that it starts, lie in a folder of the workspace.

    Folders whose server no longer lives are removed first. A folder is in use as long as a process holds a lock in it;
    the system gives that lock back when the process ends, however it ends.

    Args:
        workspace: folder that this server may write.

    Raises:
        OSError: it cannot be written.
    """
    parent = workspace / _FOLDERS
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(parent / _TURN, alone=True):  # so that nobody sweeps a folder between its making and its lock
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=_mine(), dir=parent))
        held = contextlib.ExitStack()
        held.enter_context(_locked(folder / _IN_USE, alone=False))
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before[0]
        if before[1] is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before[1]
        held.close()
        with _locked(parent / _TURN, alone=True):  # a training that goes on keeps it
            _sweep(parent, only=folder)


def hold_temporary_folder() -> contextlib.ExitStack:
    """Keep the folder of the server that started this process, a training say, until what is returned is closed.

    Nothing is kept where there is no such folder, or it is this process's own.
    """
    folder, held = Path(tempfile.gettempdir()), contextlib.ExitStack()
    if (folder / _IN_USE).is_file() and not folder.name.startswith(_mine()):
        held.enter_context(_locked(folder / _IN_USE, alone=False))
    return held


def _mine() -> str:
    return f"{os.getpid()}-"


def _sweep(parent: Path, only: Path | None = None) -> None:
    if fcntl is None:
        if only is not None:
            shutil.rmtree(only, ignore_errors=True)
        return
    for folder in [each.parent for each in parent.glob(f"*/{_IN_USE}")]:
        if only is not None and folder != only:
            continue
        try:
            with _locked(folder / _IN_USE, alone=True, wait=False):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its server lives
            continue
        if only is None:
            _log.info("removed temporary files that a killed server had left")


@contextlib.contextmanager
def _locked(path: Path, *, alone: bool, wait: bool = True) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if fcntl is not None:
            how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
            fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
