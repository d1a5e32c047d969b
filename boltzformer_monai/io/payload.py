"""How many voxels a file can hold, checked before anything is allocated for the number that its header claims."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from boltzformer_monai.errors import VolumeError

_DEFLATE_RATIO = 1032  # no deflate stream (gzip, zlib) grows by more
_PADDING = 4096  # bytes that a writer may leave behind the voxels; more mean that the header describes another grid
_CHUNK = 1 << 20


def check_raw(where: str, available: int, claimed: int) -> None:
    """Compare the bytes that follow a header with those that its grid needs.

    Raises:
        VolumeError: too few (truncated) or far too many (the header describes another grid).
    """
    if available < claimed:
        raise VolumeError(_too_short(where, available, claimed), reason="truncated")
    if available > claimed + _PADDING:
        msg = f"{where}: holds {available} bytes of voxels, its header describes only {claimed}; export the scan again"
        raise VolumeError(msg, reason="damaged")


def check_deflated(where: str, available: int, claimed: int) -> None:
    """Refuse a claim that no compressed stream of ``available`` bytes can fulfil.

    Raises:
        VolumeError: the header claims more bytes than the stream can hold.
    """
    if claimed > available * _DEFLATE_RATIO:
        raise VolumeError(_too_short(where, f"{available} compressed", claimed), reason="truncated")


def check_stream(where: str, file: BinaryIO, claimed: int) -> None:
    """Inflate a gzip or zlib stream in small pieces, from the file's position on, and compare its size and checksum.

    Raises:
        VolumeError: it ends early, holds far more than its header describes, or is damaged.
    """
    stream, total = zlib.decompressobj(47), 0  # 47: gzip or zlib, whichever its first bytes say
    try:
        data = file.read(_CHUNK)
        while data and not stream.eof and total <= claimed + _PADDING:
            total += len(stream.decompress(data, _CHUNK))
            data = stream.unconsumed_tail or file.read(_CHUNK)
    except zlib.error as error:
        msg = f"{where}: its compressed voxels are damaged ({error}); copy or export the scan again"
        raise VolumeError(msg, reason="damaged") from error
    check_raw(where, total, claimed)
    if not stream.eof:
        raise VolumeError(_too_short(where, "an unfinished stream of", claimed), reason="truncated")


def read_blocks(where: str, file: BinaryIO, count: int) -> Iterator[bytes]:
    """Read the last ``count`` bytes of a file that should end with them, in blocks of a mebibyte, and what follows too.

    Raises:
        VolumeError: there are fewer bytes, or far more.
        OSError, EOFError, zlib.error: the file cannot be read, its compressed stream ends early or is damaged.
    """
    total = 0
    while total < count and (data := file.read(min(_CHUNK, count - total))):
        total += len(data)
        if total == count or len(data) == _CHUNK:  # what is cut off is no whole voxel
            yield data
    # Reading on to the end is what makes gzip compare its checksum.
    rest = 0
    while total == count and rest <= _PADDING and (more := file.read(_PADDING + 1)):
        rest += len(more)
    check_raw(where, total + rest, count)


def _too_short(where: str, available: object, claimed: int) -> str:
    return (
        f"{where}: its header claims {claimed} bytes of voxels, the file holds {available}; "
        "it is cut off or its header is damaged, copy or export it again"
    )
