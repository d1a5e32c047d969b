"""The one way to a DICOM file: an ordinary file, unfolded and read only as far as the memory budget allows."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.limits import gigabytes, inflated_size, memory_budget, open_file, require_room

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

__all__ = ["read_dicom"]

_DEFLATED = "1.2.840.10008.1.2.1.99"
_COPIES = 2  # of what is read: the bytes, and the values made of them


def read_dicom(
    path: Path, *, tags: Sequence[str] | None = None, pixels: bool = True, force: bool = True
) -> FileDataset:
    """Read a DICOM file by pydicom.

    Args:
        path: the file.
        tags: the only elements to read; default: all.
        pixels: whether to read the pixels, and what follows them.
        force: also read a file without preamble.

    Raises:
        VolumeError: it would take more memory than the budget.
        OSError: it cannot be opened, or is no ordinary file.
        Exception: what pydicom raises for damaged files: :func:`~boltzformer_monai.io.dicom_files.broken_dicom`.
    """
    import pydicom

    with open_file(path) as file:
        _check_size(path, file, pixels=pixels)
        file.seek(0)
        some: dict[str, Any] = {} if tags is None else {"specific_tags": list(tags)}
        try:
            dataset = pydicom.dcmread(file, force=force, stop_before_pixels=not pixels, **some)
        except MemoryError as error:
            msg = f"{path}: does not fit into memory, or claims to be larger than it is; copy or export it again"
            raise VolumeError(msg, reason="too large") from error
    dataset.filename = str(path)  # which pydicom 2 forgets for a deflated file
    return dataset


def _check_size(path: Path, file: BinaryIO, *, pixels: bool) -> None:
    """Refuse a file too large for the budget; pydicom inflates a deflated one as a whole, whatever it unfolds into."""
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
        msg = f"{path}: unfolds into more than {gigabytes(most)}; save it undeflated, or allow more by --memory-gb"
        raise VolumeError(msg, reason="too large")


def _at_deflated(file: BinaryIO) -> bool:
    """Tell whether all behind the preface is deflated, and go there."""
    from pydicom.filereader import read_dataset

    file.seek(128)
    if file.read(4) != b"DICM":
        return False
    # The preface is never deflated; its end is found as pydicom does.
    preface = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = preface.get("TransferSyntaxUID")
    return isinstance(syntax, str) and syntax.strip("\0 ") == _DEFLATED
