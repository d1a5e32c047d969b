"""A private temporary folder for the server; folders of killed servers are removed at the next start.

It holds uploads, which a killed process cannot remove.
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
except ImportError:  # Windows: folders of killed servers stay
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

PRIVATE = 0o077
"""The umask of a server: files of mode 0600 and folders of mode 0700."""
_FOLDERS = "tmp"
_IN_USE = ".in-use"
_LOCK = ".lock"


@contextlib.contextmanager
def temporary_folder(workspace: Path) -> Iterator[Path]:
    """Use a folder of the workspace for all temporary files of this process and its children.

    Folders of servers that have ended are removed first. Each server holds a file lock in its folder, which the system
    releases when the process ends, however it ends.

    Raises:
        OSError: it cannot be written.
    """
    parent = workspace / _FOLDERS
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(parent / _LOCK, exclusive=True):  # nobody sweeps a folder before its owner has locked it
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=_own_prefix(), dir=parent))
        held = contextlib.ExitStack()
        held.enter_context(_locked(folder / _IN_USE, exclusive=False))
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
        with _locked(parent / _LOCK, exclusive=True):  # unless a training still uses it
            _sweep(parent, only=folder)


def hold_temporary_folder() -> contextlib.ExitStack:
    """Keep the temporary folder of the parent server, e.g. for a training, until the returned stack is closed.

    Does nothing if there is no such folder, or it is this process's own.
    """
    folder, held = Path(tempfile.gettempdir()), contextlib.ExitStack()
    if (folder / _IN_USE).is_file() and not folder.name.startswith(_own_prefix()):
        held.enter_context(_locked(folder / _IN_USE, exclusive=False))
    return held


def _own_prefix() -> str:
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
            with _locked(folder / _IN_USE, exclusive=True, wait=False):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # still in use
            continue
        if only is None:
            _log.info("removed temporary files of a killed server")


@contextlib.contextmanager
def _locked(path: Path, *, exclusive: bool, wait: bool = True) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if fcntl is not None:
            mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
            fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
