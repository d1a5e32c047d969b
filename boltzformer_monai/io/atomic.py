"""Files that are either whole or not there: write beside the target, then rename."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boltzformer_monai.errors import StorageError

_PROBE = 64 * 1024  # bytes that must fit, so that a full disk is noticed


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends well, it becomes ``path`` in one step.

    The temporary file lies in the same folder (so the rename is atomic) and ends with the same name (so writers that
    choose a format by suffix, ``.nii.gz`` included, do the right thing). It is created by the writer, hence with the
    user's ordinary permissions. When the block fails or is interrupted, it is removed and an older ``path`` stays as
    it was.

    Args:
        path: the file to be written; its folder must exist.

    Yields:
        The path to write to, in the same folder.

    Raises:
        OSError: the folder does not exist or cannot be written, or the block wrote nothing.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}-{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:  # also on KeyboardInterrupt; after a successful rename there is nothing left to remove
        temporary.unlink(missing_ok=True)


def require_writable(folder: Path, *, make: bool = True) -> None:
    """Try a folder with a file that is gone at once: before the work, not after it.

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
        msg = f"cannot write into {folder} ({error.strerror or error}); choose another place, or allow it"
        raise StorageError(msg) from error
