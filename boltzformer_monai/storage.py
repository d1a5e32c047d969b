"""Files that are whole or not there, whatever ends the process; and clear errors where the disk refuses one.

A file is written beside its target under a hidden name of ours and then renamed. SIGKILL may leave the hidden file; its
name says which process made it, so that the next one that writes there can tell what is left over from what is under
way.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import StorageError, why

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""There is no room: a full disk, a quota, a limit on the size of files."""
REFUSED = frozenset(
    {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EMFILE}
    | {errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.EBUSY}
)
"""The file system, or what is below it, does not take it."""
_LONGEST_NAME = 255  # bytes; what file systems take
_PROBE = 64 * 1024  # bytes that must fit, so that a full disk is noticed
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # of Linux: another one after each start
_FORGOTTEN_S = 24 * 3600.0
_OURS = re.compile(r"\.boltzformer-([a-z]+|([0-9a-f]{6})-([0-9]+))-[0-9a-f]{6}-.*", re.DOTALL)
# Folders cannot be synchronised on Windows, nor on every network file system.
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EISDIR, errno.EBADF})


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends well, it becomes ``path`` in one step.

    The temporary file lies in the same folder (so the rename is atomic) and ends with the same name (so writers that
    choose a format by suffix, ``.nii.gz`` included, do the right thing). It is created by the writer, hence with the
    user's ordinary permissions. When the block fails or is interrupted, it is removed and an older ``path`` stays as
    it was.

    Args:
        path: the file to be written; its folder must exist.
        durable: whether the new file outlasts a power failure from the moment that the block is left; and what killed
            processes left in the folder is removed. Without it a kill is survived as well, and nothing waits for the
            disk: for the many files of a slice data set, which can be made again.

    Yields:
        The path to write to, in the same folder.

    Raises:
        OSError: the folder does not exist or cannot be written, or the block wrote nothing; it names ``path``.
        StorageError: the file is there, but the disk does not confirm it.
    """
    target = Path(path)
    if durable:
        sweep(target.parent)
    temporary = temporary_beside(target)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, target)
        if durable:
            confirm(target)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(target)
            del error.filename2  # of the rename
        raise
    finally:  # also on KeyboardInterrupt; after a successful rename there is nothing left to remove
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_beside(target: Path, *, lock: str = "") -> Path:
    """A hidden name in the same folder that ends as the target's and that :func:`sweep` knows.

    Args:
        target: what the file will become.
        lock: letters, the name of the lock that its writer holds; otherwise the writer is known by its process.
    """
    start, end = f".boltzformer-{lock or f'{_machine()}-{os.getpid()}'}-{secrets.token_hex(3)}-", target.name
    while len(os.fsencode(start + end)) > _LONGEST_NAME:
        end = end[1:]
    return target.with_name(start + end)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: the disk does not take it.
    """
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def confirm(path: Path) -> None:
    """Wait until it is on the disk that a file got its name, or lost it: what is changed already.

    Raises:
        StorageError: the disk does not confirm it.
    """
    try:
        sync(path.parent)
    except OSError as error:
        msg = (
            f"{path}: changed, but the disk does not confirm it ({why(error)}), "
            "so it may be lost when the machine stops; look at it, and do it again if need be"
        )
        raise StorageError(msg) from error


def sweep(folder: Path, *, lock: str = "") -> None:
    """Remove what killed processes left in a folder; what cannot be removed stays.

    A file of a process of this machine goes once that process is gone; another machine's, and one from before this
    machine was started, after a day without a change.

    Args:
        folder: only what lies in it is looked at, not what is in folders below it.
        lock: held by the caller: what others wrote who held it goes at once, and nothing else.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (named := _OURS.fullmatch(entry.name)) is None:
                continue
            with contextlib.suppress(OSError):
                owner, machine, process = named.groups()
                if owner != lock and (lock or not machine or not _left_over(entry, machine, int(process))):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


@contextmanager
def writing(path: str | os.PathLike[str], advice: str = "", *, much_else: bool = False) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names the file.

    Args:
        path: the file that is written.
        advice: what to do about it.
        much_else: the block does more than writing: only errors of the disk are turned.
    """
    try:
        yield
    except OSError as error:
        if much_else and error.errno not in FULL | REFUSED:
            raise
        full = error.errno in FULL
        todo = advice or ("free space, or choose another folder" if full else "choose a folder that can be written")
        raise StorageError(f"{os.fspath(path)}: cannot be written ({why(error)}); {todo}") from error


def require_writable(folder: Path, *, make: bool = True) -> None:
    """Write a temporary file into a folder: before the work, not after it.

    Args:
        folder: made if it is not there.
        make: False: try the nearest folder above it that is there, and make nothing.

    Raises:
        StorageError: it cannot be made, takes no file, or its disk is full.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        place = next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(each))
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * _PROBE)
    except OSError as error:
        raise StorageError(f"cannot write into {folder} ({why(error)}); choose another place, or allow it") from error


@contextmanager
def replacing(path: str | os.PathLike[str], advice: str = "") -> Iterator[Path]:
    """As :func:`atomic_path`, with the errors of :func:`writing`, which end with the advice; makes the folder.

    Raises:
        StorageError: the file cannot be written; an older one stays as it was.
    """
    with writing(path, advice):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            yield temporary


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int = 1, advice: str = "") -> None:
    """Write a JSON file as :func:`replacing` does. Values that are no JSON are written as text.

    Raises:
        StorageError: the file cannot be written; an older one stays as it was.
    """
    with replacing(path, advice) as temporary:
        text = json.dumps(content, indent=indent, ensure_ascii=False, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder to fill with files; when the block ends well, it becomes ``path``, whole.

    An older folder of this name is moved aside before and removed after, and comes back where the new one fails.

    Raises:
        StorageError: it cannot be written; an older one stays as it was.
    """
    target = Path(path)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        temporary = temporary_beside(target)
        # No name that sweep() knows: killed between the two moves, this is all that is left of the older one.
        aside = target.with_name(f".{target.name}.{secrets.token_hex(3)}.previous")
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                sync(file)
            sync(temporary)
            if os.path.lexists(target):
                os.replace(target, aside)
            try:
                os.replace(temporary, target)
            except BaseException:
                if os.path.lexists(aside):
                    os.replace(aside, target)
                raise
            confirm(target)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            made.update(block)
    return made.hexdigest()


def disk_refusal(error: BaseException | None) -> OSError | None:
    """The disk's refusal in a chain of causes: no room, no permission, a defect; ``None`` if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL | REFUSED:
            return error
        error = error.__cause__ or error.__context__
    return None


def _left_over(file: os.DirEntry[str], machine: str, process: int) -> bool:
    if machine != _machine() or os.name == "nt":  # where signal 0 would end the process
        return time.time() - file.stat(follow_symlinks=False).st_mtime > _FORGOTTEN_S
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's: it lives
        pass
    return False


@functools.cache
def _machine() -> str:
    """Where a number means a process: this machine, since its start, and this container.

    Copies of a machine have one name, and the same containers in it, but were started each for itself.
    """
    start = space = ""
    with contextlib.suppress(OSError):
        start = _BOOT.read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {start} {space}".encode()).hexdigest()[:6]
