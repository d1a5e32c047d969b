"""Uploads: limited in size, checked and renamed before they are read."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from boltzformer_monai.errors import CancelledError, ConfigError, VolumeError
from boltzformer_monai.label.safe_ids import UPLOADS, check_id
from boltzformer_monai.limits import inflated_size, memory_budget

_IN_MEMORY = 1 << 16  # bytes of a forwarded body
_JSON_LIMIT = 2**20
_DIGITS = 18
_MAX_HEADER = 1 << 24  # bytes, as in the readers
_DEFLATED = (b"\x1f\x8b", b"\x78")  # gzip, zlib
# An NRRD header ends with an empty line, a MetaImage header with ElementDataFile.
_HEADER = {
    ".nrrd": re.compile(rb"\A.*?\n\r?\n", re.DOTALL),
    ".mha": re.compile(rb"\A.*?ElementDataFile\s*=[^\n]*\n", re.DOTALL),
}
_ELSEWHERE = {
    ".nrrd": re.compile(rb"(?:^|\r)\s*data\s*file\s*:", re.IGNORECASE | re.MULTILINE),
    ".mha": re.compile(rb"(?i:ElementDataFile)\s*=(?!\s*(?:LOCAL|Local|local)\s*\Z)"),
}


class UploadLimit:
    """ASGI middleware: status 413 for a body above the limit, by its Content-Length or counted while it is read.

    Where there is sign-in, more than 1 MiB is taken from nobody without a valid token: FastAPI stores a form before it
    looks at the token, so that anybody could fill the disk.

    Args:
        limit: bytes of a multipart body; any other, such as JSON, may have 1 MiB.
        owner: of a token; raises HTTPException for one that is not valid. None: no sign-in.
    """

    def __init__(self, app: Any, *, limit: int, owner: Callable[[str], object] | None = None) -> None:
        self.app = app
        self.limit = limit
        self.owner = owner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        multipart = headers.get(b"content-type", b"").startswith(b"multipart/")
        limit = self.limit if multipart else min(self.limit, _JSON_LIMIT)
        length = headers.get(b"content-length", b"0")
        too_large = f"the request is larger than the {limit} bytes that are allowed"
        if not length.isdigit() or len(length) > _DIGITS or int(length) > limit:
            await JSONResponse({"detail": too_large}, 413)(scope, receive, send)
            return
        small = b"content-length" in headers and int(length) <= _JSON_LIMIT
        if multipart and not small and (refusal := await self._refusal(headers)) is not None:
            await refusal(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, too_large)  # becomes the response of the route that reads
            return message

        await self.app(scope, receive_counted, send)

    async def _refusal(self, headers: Mapping[bytes, bytes]) -> JSONResponse | None:
        if self.owner is None:
            return None
        _, token = get_authorization_scheme_param(headers.get(b"authorization", b"").decode("latin-1"))
        try:
            await asyncio.to_thread(self.owner, token)
        except HTTPException as error:
            return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)
        return None


def check_new_id(image_id: str) -> str:
    """An id for a new image; MONAI Label derives the file name from it.

    Raises:
        ConfigError: it is not a valid id.
    """
    if ending := next((each for each in UPLOADS if each in image_id.lower()), None):
        raise ConfigError(f"{image_id[:60]!a} is not a valid id; leave out {ending}")
    return check_id(image_id)


def upload_suffix(upload: UploadFile | None, *, limit: int) -> str:
    """The file name extension of an upload of at most ``limit`` bytes after decompression; "" without an upload.

    Raises:
        ConfigError: the extension is not accepted, or the file is empty.
        VolumeError: the header refers to another file for the voxels, which would be one of the server's.
        HTTPException: 413, the file is too large after decompression.
    """
    if upload is None:
        return ""
    name = str(upload.filename or "upload.nii.gz")
    suffix = next((ending for ending in UPLOADS if name.lower().endswith(ending)), None)
    if suffix is None:
        raise ConfigError(f"{name[-40:]!a} is not accepted; the file name must end in {', '.join(UPLOADS)}")
    if upload.size == 0:
        raise ConfigError("the uploaded file is empty")
    upload.file.seek(0)
    start = 0
    if suffix in _HEADER:
        found = _HEADER[suffix].search(upload.file.read(_MAX_HEADER))
        if found is None or _ELSEWHERE[suffix].search(found[0]):
            msg = f"the uploaded {suffix} file holds no voxels; save header and voxels as one file, e.g. with 3D Slicer"
            raise VolumeError(msg, reason="unsupported format")
        start = found.end()
    _check_inflated(upload.file, start, limit)
    upload.file.seek(0)
    return suffix


@contextmanager
def saved(upload: UploadFile) -> Iterator[Path]:
    """A temporary copy of a checked and renamed upload, for the readers."""
    name = str(upload.filename)
    # Windows lets nobody open a NamedTemporaryFile again; what cannot be removed changes nothing that was done.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, f"upload{name[name.index('.') :]}")
        upload.file.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(upload.file, copy)
        upload.file.seek(0)
        yield path


def _check_inflated(file: BinaryIO, start: int, limit: int) -> None:
    file.seek(start)
    if not file.read(2).startswith(_DEFLATED):
        return
    file.seek(start)
    limit = min(limit, memory_budget())  # more could not be read anyway
    try:
        total = inflated_size(file, limit)
    except zlib.error:
        return  # the reader reports it
    if total > limit:
        raise HTTPException(413, f"the file decompresses to more than the {limit} bytes that are allowed")


@contextmanager
def body_of(request: Request, loop: asyncio.AbstractEventLoop) -> Iterator[IO[bytes] | None]:
    """The unread body of a request as a file, mostly kept on disk, or None if it is empty; for a worker thread.

    Raises:
        CancelledError: the client disconnected before the end.
    """
    chunks = request.stream()

    async def next_chunk() -> bytes:
        return await anext(chunks, b"")

    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        try:
            while content := asyncio.run_coroutine_threadsafe(next_chunk(), loop).result():
                file.write(content)
        except ClientDisconnect as error:
            raise CancelledError("not forwarded: the client disconnected before the end of its request") from error
        size = file.tell()
        file.seek(0)
        yield file if size else None
