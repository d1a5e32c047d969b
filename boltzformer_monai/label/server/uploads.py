"""Files that clients send: named anew, complete in themselves, and read before they are kept."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from boltzformer_monai.errors import CancelledError, ConfigError, VolumeError
from boltzformer_monai.label.safe_ids import UPLOADS, check_id
from boltzformer_monai.limits import inflated_size, memory_budget

_IN_MEMORY = 1 << 16  # bytes of a body that is passed on
_LONGEST_HEADER = 1 << 24  # bytes, as the readers have it
_DEFLATED = (b"\x1f\x8b", b"\x78")  # gzip, zlib
# An NRRD header ends with an empty line; the last field of a MetaImage's says where the voxels are.
_HEADER = {
    ".nrrd": re.compile(rb"\A.*?\n\r?\n", re.DOTALL),
    ".mha": re.compile(rb"\A.*?ElementDataFile\s*=[^\n]*\n", re.DOTALL),
}
_ELSEWHERE = {
    ".nrrd": re.compile(rb"(?:^|\r)\s*data\s*file\s*:", re.IGNORECASE | re.MULTILINE),
    ".mha": re.compile(rb"(?i:ElementDataFile)\s*=(?!\s*(?:LOCAL|Local|local)\s*\Z)"),
}


def check_new_id(image_id: str) -> str:
    """An id for a new image, from which MONAI Label finds the file's name again.

    Raises:
        ConfigError: it cannot be one.
    """
    if ending := next((each for each in UPLOADS if each in image_id.lower()), None):
        msg = f"{image_id[:60]!a} cannot be an id; leave out {ending}"
        raise ConfigError(msg)
    return check_id(image_id)


def upload_suffix(upload: UploadFile | None, *, limit: int) -> str:
    """The ending of an uploaded file, which is all that remains of its name.

    Args:
        upload: as it came; "" for none.
        limit: bytes that it may have once it is inflated: a small file may unfold into more than the memory holds.

    Raises:
        ConfigError: a file of this name is not taken, or it is empty.
        VolumeError: its header names another file for its voxels: it would be one of the server's.
        HTTPException: 413, it is too large.
    """
    if upload is None:
        return ""
    name = str(upload.filename or "upload.nii.gz")
    suffix = next((ending for ending in UPLOADS if name.lower().endswith(ending)), None)
    if suffix is None:
        msg = f"a file named {name[-40:]!a} is not taken; its name must end in {', '.join(UPLOADS)}"
        raise ConfigError(msg)
    if upload.size == 0:
        msg = "the uploaded file is empty"
        raise ConfigError(msg)
    upload.file.seek(0)
    start = 0
    if suffix in _HEADER:
        found = _HEADER[suffix].search(upload.file.read(_LONGEST_HEADER))
        if found is None or _ELSEWHERE[suffix].search(found[0]):
            msg = f"the uploaded {suffix} file has no voxels after its header; save it as one file, say by 3D Slicer"
            raise VolumeError(msg, reason="unsupported format")
        start = found.end()
    _check_inflated(upload.file, start, limit)
    upload.file.seek(0)
    return suffix


@contextmanager
def saved(file: BinaryIO, suffix: str) -> Iterator[Path]:
    """A copy with a name, for reading; gone when the block is left."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
        file.seek(0)
        shutil.copyfileobj(file, copy)
        copy.flush()
        file.seek(0)
        yield Path(copy.name)


def _check_inflated(file: BinaryIO, start: int, limit: int) -> None:
    file.seek(start)
    if not file.read(2).startswith(_DEFLATED):
        return
    file.seek(start)
    limit = min(limit, memory_budget())  # what is more than that could not be read anyway
    try:
        total = inflated_size(file, limit)
    except zlib.error:
        return  # the reader says what is wrong with it
    if total > limit:
        raise HTTPException(413, f"the file unfolds into more than the {limit} bytes that are taken")


@contextmanager
def body_of(request: Request, loop: asyncio.AbstractEventLoop) -> Iterator[IO[bytes] | None]:
    """The body of a request, for a thread whose turn it is: none of it was read before, and little is in memory.

    Args:
        request: its body is read piece by piece.
        loop: of the web server, which runs in another thread.

    Yields:
        A file, at its start; None for an empty body.

    Raises:
        CancelledError: the client went away before its end.
    """
    pieces = request.stream()

    async def piece() -> bytes:
        return await anext(pieces, b"")

    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        try:
            while content := asyncio.run_coroutine_threadsafe(piece(), loop).result():
                file.write(content)
        except ClientDisconnect as error:
            msg = "not passed on: the client went away before it had sent all"
            raise CancelledError(msg) from error
        size = file.tell()
        file.seek(0)
        yield file if size else None
