"""The audit log: one JSON line for every request for data, with who, when and what, and nothing about a patient.

Jobs (training, scoring, batches) go on in a process of their own when their request has been answered: each of their
steps has a line, too.

A scan is known by the hash of its file. Ids, paths and names of files are left out, since they often hold a name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from starlette.responses import JSONResponse

from boltzformer_monai.errors import StorageError, why
from boltzformer_monai.label.request_record import RequestRecord, current_request, recording
from boltzformer_monai.label.server.json_logs import utc
from boltzformer_monai.label.server.request_log import route_of
from boltzformer_monai.label.server_settings import ServerSettings
from boltzformer_monai.storage import FULL, confirm, disk_refusal, writing

_log = logging.getLogger(__name__)

FILE = "audit.jsonl"
_ROOM = 1 << 15  # bytes that are held for the line of a request
_OLD = re.compile(r"audit-\d{8}T\d{12}Z\.jsonl")
# Pages, their files, and what watches the server; everything else is about data, or an attempt to reach it.
_NO_DATA = re.compile(
    r"/(?:health|ready|version|metrics|docs|openapi\.json|favicon\.ico)?|/(?:static|ohif|boltzformer(?!/api/))(?:/.*)?"
)


class AuditLog:
    """Lines in ``audit.jsonl`` of a folder. A full file is renamed to ``audit-TIME.jsonl``; processes may share it.

    Args:
        folder: made if it is not there.
        required: nothing may be done that is not written down; every line is then on the disk when it is written.
        mb: size at which a new file is begun.
        keep: number of full files that are kept, 0 for all.

    Raises:
        StorageError: required, and it cannot be written.
    """

    def __init__(self, folder: Path, *, required: bool, mb: int, keep: int) -> None:
        self.path = folder / FILE
        self.required = required
        self.limit = mb * 2**20
        self.keep = keep
        self._threads = threading.Lock()
        try:
            with writing(self.path):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.hold_room().close()
        except StorageError as error:
            if required:
                raise
            _log.warning("%s", error)

    def hold_room(self) -> IO[bytes]:
        """Room on the disk for one line, until the file is closed.

        Raises:
            StorageError: the disk has none.
        """
        with writing(self.path), contextlib.ExitStack() as opened:
            room = opened.enter_context(tempfile.TemporaryFile(dir=self.path.parent, buffering=0))
            _write_all(room, os.urandom(_ROOM))  # zeros would take no room where files are compressed
            opened.pop_all()
            return room

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line.

        Raises:
            StorageError: the disk refuses; the file stays as it was.
        """
        line = (json.dumps(entry) + "\n").encode()
        # The lock of the file is asked for again and again, so threads wait for each other first.
        with writing(self.path), self._threads, FileLock(self.path.with_suffix(".lock")):
            self._rotate(len(line))
            with open(self.path, "ab", buffering=0) as file:
                before = os.fstat(file.fileno()).st_size
                try:
                    _write_all(file, line if _ends_line(self.path, before) else b"\n" + line)
                    if self.required:
                        os.fsync(file.fileno())
                        if before == 0:
                            confirm(self.path)  # its name, too
                except BaseException:
                    file.truncate(before)
                    raise

    def _rotate(self, more: int) -> None:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size == 0 or size + more <= self.limit:
            return
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
        os.replace(self.path, self.path.with_name(f"audit-{now}Z.jsonl"))
        old = sorted(path for path in self.path.parent.iterdir() if _OLD.fullmatch(path.name))
        for path in old[: -self.keep] if self.keep else ():
            path.unlink(missing_ok=True)


def _ends_line(path: Path, size: int) -> bool:
    """False where the last line is one that a power failure cut, which must not take the next one with it."""
    if size == 0:
        return True
    with open(path, "rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _write_all(file: IO[bytes], content: bytes) -> None:
    """Write to an unbuffered file, which takes as much as there is room for."""
    if file.write(content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def audit_log(settings: ServerSettings) -> AuditLog | None:
    """The audit log of a server, None if it is off.

    Raises:
        StorageError: it is required and cannot be written.
    """
    if settings.audit == "off":
        return None
    folder = settings.audit_folder or settings.workspace / "audit"
    return AuditLog(folder, required=settings.audit == "required", mb=settings.audit_mb, keep=settings.audit_keep)


class Audit:
    """ASGI middleware: a line in the audit log before the response to a request for data begins.

    Where the log is required, a request is refused while there is no room for its line, and a response without a line
    is not sent.

    Args:
        log: where the lines go.
        failed: called for each line that the log does not take.
        prefix: of all routes.
    """

    def __init__(self, app: Any, *, log: AuditLog, failed: Callable[[], None], prefix: str = "") -> None:
        self.app = app
        self.log = log
        self.failed = failed
        self.prefix = prefix

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or self._without_data(scope["path"]):
            await self.app(scope, receive, send)
            return
        record = current_request() or RequestRecord()
        record.audited = True
        started = time.monotonic()
        room: IO[bytes] | None = None
        written = withheld = False

        async def write(status: int | None) -> StorageError | None:
            nonlocal written
            written = True
            if room is not None:
                room.close()
            entry = _entry(record, status, started, scope)
            try:
                await asyncio.to_thread(self.log.write, entry)
            except StorageError as error:
                self.failed()
                _log.error("a request is missing in the audit log: %s", error)
                return error
            return None

        async def send_written(message: Any) -> None:
            nonlocal withheld
            if message["type"] == "http.response.start" and not written:
                error = await write(message["status"])
                if error is not None and self.log.required:
                    withheld = True
                    done = "what was asked for may have been done, but" if record.stored else "withheld:"
                    await _refuse(f"{done} the audit log does not take it", error)(scope, receive, send)
            if not withheld:
                await send(message)

        if self.log.required:
            try:
                room = await asyncio.to_thread(self.log.hold_room)
            except StorageError as error:
                self.failed()
                _log.error("a request is refused: %s", error)
                await _refuse("refused, nothing was done: the audit log has no room", error)(scope, receive, send)
                return
        try:
            await self.app(scope, receive, send_written)
        except BaseException:
            if not written:
                await write(500)
            raise
        finally:
            if not written:  # the client has gone
                await write(None)

    def _without_data(self, path: str) -> bool:
        return _NO_DATA.fullmatch(path.removeprefix(self.prefix)) is not None


@contextlib.contextmanager
def audited_step(log: AuditLog | None, job: str) -> Iterator[None]:
    """A step of a job: a line once it has ended, with the id and user of the request that started the job.

    Args:
        log: None: there is no audit log.
        job: ``"train"``, ``"scoring"`` or ``"batch"``.

    Raises:
        StorageError: the log is required, and has no room, so that nothing was done; or does not take the line.
    """
    if log is None:
        yield
        return
    starter = current_request() or RequestRecord()
    record = RequestRecord(starter.id, starter.user, audited=True)
    started, status = time.monotonic(), "failed"
    with log.hold_room() if log.required else contextlib.nullcontext() as room, recording(record):
        try:
            yield
            status = "done"
        finally:
            if room is not None:
                room.close()
            try:
                log.write({**_entry(record, status, started), "method": "job", "route": job})
            except StorageError as error:
                _log.error("a step of a job is missing in the audit log: %s", error)
                if log.required:
                    raise


def _entry(record: RequestRecord, status: int | str | None, started: float, scope: Any = None) -> dict[str, Any]:
    request = {} if scope is None else {"method": scope["method"][:16], "route": route_of(scope)}
    return {
        "time": utc(time.time()),
        "request": record.id,
        "user": record.user,
        "client": None if scope is None else (scope.get("client") or (None,))[0],
        **request,
        "status": status,
        "seconds": round(time.monotonic() - started, 3),
        "scan": record.scan,
        "model": record.model,
        "prompts": list(record.prompts),
        "stored": record.stored,
    }


def _refuse(text: str, error: StorageError) -> JSONResponse:
    refusal = disk_refusal(error)
    full = refusal is not None and refusal.errno in FULL
    reason = why(refusal) if refusal is not None else "the disk refuses"
    return JSONResponse({"detail": f"{text} ({reason})"}, 507 if full else 503)
