"""What is known of the request under way: for its log line, the metrics and the audit log."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from boltzformer_monai.errors import StorageError

JOB = "_job"
"""Key in the parameters of a job (training, scoring, batch) for the request that started it."""
_TAGS = ("final", "original")
_CURRENT: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


@dataclass
class RequestRecord:
    """Filled in by whoever knows; threads that work for the request share it."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    user: str | None = None
    """Name of the key or of the signed-in user."""
    scan: str | None = None
    """SHA-256 of the scan's file, or of the hashes of a series' files."""
    model: str | None = None
    """SHA-256 of the model."""
    prompts: tuple[str, ...] = ()
    stored: list[dict[str, Any]] = field(default_factory=list)
    """What was changed, without names."""
    audited: bool = False
    """Whether all this is wanted: the hash of a scan takes time."""


def current_request() -> RequestRecord | None:
    """The record of the request that this thread or task works for, None outside of requests."""
    return _CURRENT.get()


@contextmanager
def changing(what: str, *, tag: str = "", sha256: str = "", scans: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Note that the block changes something.

    Args:
        what: ``"label saved"``, ``"image removed"``, …
        tag: of the label; one of a user's own is noted as ``other``, since it may hold a name.
        sha256: of the file.
        scans: hashes of the scans that it was made of.

    Yields:
        the note, for what is known only in the block.
    """
    change: dict[str, Any] = {"what": what, **({"tag": tag if tag in _TAGS else "other"} if tag else {})}
    change |= {"sha256": sha256} if sha256 else {}
    change |= {"scans": list(scans)} if scans else {}
    record = current_request() or RequestRecord()
    try:
        yield change
    except StorageError:  # perhaps of a change already made
        record.stored.append({**change, "certain": False})
        raise
    record.stored.append(change)


@contextmanager
def recording(record: RequestRecord) -> Iterator[RequestRecord]:
    """Make it the current one."""
    token = _CURRENT.set(record)
    try:
        yield record
    finally:
        _CURRENT.reset(token)


def started_by() -> dict[str, Any]:
    """The request under way, as a job's parameters name it; empty outside of requests."""
    record = current_request()
    return {} if record is None else {JOB: {"request": record.id, "user": record.user}}


@contextmanager
def recording_job(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Work for the request that started a job; yields the job's own parameters."""
    starter = request.get(JOB)
    record = current_request() or RequestRecord()
    if starter is not None:
        record = RequestRecord(starter["request"], starter["user"])
    with recording(record):
        yield {key: value for key, value in request.items() if key != JOB}
