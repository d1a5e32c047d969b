"""Errors as JSON responses: a status and one line without paths of the server."""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import requests
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.exceptions import HTTPException

from boltzformer_monai.errors import (
    BoltzFormerError,
    CancelledError,
    CheckpointError,
    DatasetError,
    StorageError,
    VolumeError,
    user_error,
    why,
)
from boltzformer_monai.label.safe_ids import UnknownIdError
from boltzformer_monai.label.service import TimeLimitError
from boltzformer_monai.storage import FULL, disk_refusal

_STATUS: tuple[tuple[type[BoltzFormerError], int], ...] = (
    (UnknownIdError, 404),
    (VolumeError, 422),
    (StorageError, 503),
    (DatasetError, 409),
    (CheckpointError, 503),
    (TimeLimitError, 504),
    (CancelledError, 503),
    (BoltzFormerError, 400),
)
# Absolute folders, but not the start of a URL, nor the routes that messages name.
_ROUTES = r"/boltzformer/api/|/datastore/\?|/train/(?:[\s,;.]|$)"
_FOLDERS = re.compile(rf"(?<![\w./])(?!(?<=:)//)(?!{_ROUTES})/+(?:[^\s/:;,'\"()]+/+)+")
_MAX_LENGTH = 400
INTERNAL_ERROR = "internal error; see the server's log"


class ErrorResponses:
    """Status and message of every error.

    Args:
        hidden: folders of the server that no message may name.
    """

    def __init__(self, hidden: Iterable[Path | str] = ()) -> None:
        paths = {str(path) for path in (*hidden, tempfile.gettempdir(), Path.home())}
        folders = "|".join(re.escape(path) for path in sorted(paths - {"/"}, key=len, reverse=True))
        self._hidden = re.compile(rf"(?<!\w)(?:{folders})/")

    def describe(self, error: BaseException) -> tuple[int, str] | None:
        """Status and message of an error that a request or the environment can cause; ``None`` for a bug."""
        if isinstance(error, HTTPException):
            if isinstance(error.__cause__, OSError) and (refusal := disk_refusal(error.__cause__)) is not None:
                return _disk_error(refusal)  # raised by FastAPI while it stored an upload
            # MONAI Label uses 500 for a client's mistake.
            return (400 if error.status_code == 500 else error.status_code), self.one_line(str(error.detail))
        if (known := user_error(error)) is not None:
            if getattr(known, "reason", "") == "write":
                refusal = disk_refusal(known)
                return 503 if refusal is None else _disk_error(refusal)[0], self.one_line(str(known))
            return next(status for kind, status in _STATUS if isinstance(known, kind)), self.one_line(str(known))
        if isinstance(error, MemoryError):
            return 413, "not enough memory; crop or resample the scan"
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return 400, "the name is too long for a file"
        if isinstance(error, requests.RequestException):
            if (response := error.response) is not None and 400 <= response.status_code < 500:
                return response.status_code, f"the DICOMweb server refuses the request: {response.reason}"
            return 503, "the DICOMweb server does not respond; see this server's log"
        if isinstance(error, ImageNotFoundException | LabelNotFoundException):
            return 404, self.one_line(str(error.msg))
        if isinstance(error, MONAILabelException):
            missing = error.error in (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)
            return (404 if missing else 400), self.one_line(str(error.msg))
        return None if (refusal := disk_refusal(error)) is None else _disk_error(refusal)

    def one_line(self, text: str) -> str:
        """The text on one line, with absolute paths cut to their file names."""
        text = self._hidden.sub("", text)
        text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be encoded
        return " ".join(_FOLDERS.sub("", text).split())[:_MAX_LENGTH]

    def without_paths(self, reply: Any) -> Any:
        """A reply of MONAI Label with paths of this server cut to their file names."""
        if isinstance(reply, dict):
            return {key: self.without_paths(value) for key, value in reply.items()}
        if isinstance(reply, list | tuple):
            return [self.without_paths(value) for value in reply]
        if isinstance(reply, str):
            return Path(reply).name if self._hidden.match(reply) else self._hidden.sub("", reply)
        return reply

    def add_to(self, app: FastAPI) -> None:
        """Send every error of every route as ``{"detail": "one line"}``."""

        async def respond(request: Request, error: Exception) -> JSONResponse:
            status, detail = self.describe(error) or (500, INTERNAL_ERROR)
            return JSONResponse({"detail": detail}, status, headers=getattr(error, "headers", None))

        async def respond_invalid(request: Request, error: Exception) -> JSONResponse:
            errors = error.errors() if isinstance(error, RequestValidationError) else []
            parts = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in errors[:3]]
            return JSONResponse({"detail": self.one_line("; ".join(parts))}, 422)

        async def respond_internal(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"detail": INTERNAL_ERROR}, 500)

        for kind in (BoltzFormerError, MONAILabelException, HTTPException, OSError):
            app.add_exception_handler(kind, respond)
        app.add_exception_handler(RequestValidationError, respond_invalid)
        app.add_exception_handler(Exception, respond_internal)


def _disk_error(refusal: OSError) -> tuple[int, str]:
    """Status and message of a failed write; every write leaves all as it was when it fails."""
    if refusal.errno in FULL:
        return 507, f"the server's disk is full ({why(refusal)}); nothing was changed: free some space and retry"
    return 503, f"the server's disk refuses the write ({why(refusal)}); nothing was changed: check it and retry"
