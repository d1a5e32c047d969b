"""Open a DICOM file: a regular file, inflated and read only as far as the memory budget allows."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.limits import gigabytes, inflated_size, memory_budget, open_file, require_room

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

_OBJECT = 600  # bytes of memory per read: pydicom makes an element of it, or half an item of a sequence
_LEAST = 4  # bytes of the file that one read takes

_DEFLATED = "1.2.840.10008.1.2.1.99"
_COPIES = 2  # of what is read: the bytes, and the values made of them


def read_dicom(
    path: Path, *, tags: Sequence[str | int] | None = None, pixels: bool = True, force: bool = True
) -> FileDataset:
    """Read a DICOM file by pydicom.

    Args:
        path: the file.
        tags: the only elements to read, by keyword or number; default: all.
        pixels: whether to read the pixels, and what follows them.
        force: also read a file without preamble.

    Raises:
        VolumeError: it would take more memory than the budget.
        OSError: it cannot be opened, or is no ordinary file.
        Exception: what pydicom raises for damaged files: :func:`~boltzformer_monai.io.dicom.files.broken_dicom`.
    """
    import pydicom

    with _opened(path) as file:
        _check_size(path, file, pixels=pixels)
        file.seek(0)
        some: dict[str, Any] = {} if tags is None else {"specific_tags": list(tags)}
        try:
            dataset = pydicom.dcmread(file, force=force, stop_before_pixels=not pixels, **some)
        except Exception as error:
            crowded = isinstance(file, _Counted) and file.exhausted
            if not (crowded or isinstance(error, MemoryError)):  # pydicom makes an OSError of anything
                raise
            what = "has more elements than fit" if crowded else "claims more than fits"
            msg = f"{path}: its header {what} into the memory; copy or export it again, or see --memory-gb"
            raise VolumeError(msg, reason="too large") from error
    dataset.filename = str(path)  # which pydicom 2 forgets for a deflated file
    return dataset


def _opened(path: Path) -> io.BufferedReader:
    file = open_file(path)
    crowded = os.fstat(file.fileno()).st_size // _LEAST * _OBJECT > memory_budget()
    return _Counted(file) if crowded else file  # counting takes a little time, and few files are that large


class _Counted(io.BufferedReader):
    """A file that ends the reading when it is read in more pieces than the memory budget has room for their objects.

    Four megabytes of empty items would become 600, and nothing in a header says how many there are.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file.detach())
        self._left = memory_budget() // _OBJECT

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise MemoryError
        return super().read(size)

    @property
    def exhausted(self) -> bool:
        """Whether it was read in too many pieces."""
        return self._left < 0


def _check_size(path: Path, file: BinaryIO, *, pixels: bool) -> None:
    """Refuse a file too large for the budget; pydicom inflates a deflated one as a whole."""
    if pixels:
        require_room(os.fstat(file.fileno()).st_size, _COPIES, path)
    if not _at_deflated(file):
        return
    most = memory_budget() // _COPIES
    try:
        size = inflated_size(file, most, wbits=-15)
    except zlib.error:
        return  # pydicom says so
    if size > most:
        msg = f"{path}: inflates to more than {gigabytes(most)}; save it undeflated, or allow more by --memory-gb"
        raise VolumeError(msg, reason="too large")


def _at_deflated(file: BinaryIO) -> bool:
    """Tell whether the data set is deflated, and seek to it, behind the file meta information."""
    from pydicom.filereader import read_dataset

    file.seek(128)
    if file.read(4) != b"DICM":
        return False
    # Never deflated; its end is found as pydicom does.
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = meta.get("TransferSyntaxUID")
    return isinstance(syntax, str) and syntax.strip("\0 ") == _DEFLATED
