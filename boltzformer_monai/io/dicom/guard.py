"""One error for everything that pydicom says about a damaged file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from boltzformer_monai.errors import VolumeError, cannot_open
from boltzformer_monai.io.dicom.files import broken_dicom, one_line

__all__ = ["damage_as_volume_error"]


@contextmanager
def damage_as_volume_error(path: str | os.PathLike[str], what: str, *, reason: str = "damaged") -> Iterator[None]:
    """Turn what pydicom raises inside the block into a :class:`VolumeError` that names the file.

    Args:
        path: of the file that is read.
        what: what cannot be read, in the words after the path: ``"cannot be read as DICOM SEG"``.
        reason: of the error, unless the file ends early.

    Raises:
        VolumeError: the block met a damaged file.
    """
    try:
        yield
    except broken_dicom() as error:
        if (closed := cannot_open(path, error)) is not None:
            raise closed from error
        msg = f"{path}: {what} ({one_line(error)}); is the file complete, or truncated?"
        raise VolumeError(msg, reason="truncated" if isinstance(error, EOFError) else reason) from error
