"""Errors as a client may see them: a status, one line, and no path of the server in it."""

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
from boltzformer_monai.storage import FULL, disk_refusal

_STATUS: tuple[tuple[type[BoltzFormerError], int], ...] = (
    (UnknownIdError, 404),
    (VolumeError, 422),
    (StorageError, 503),
    (DatasetError, 409),
    (CheckpointError, 503),
    (CancelledError, 503),
    (BoltzFormerError, 400),
)
# But not the start of an address, nor the routes that messages name.
_ROUTES = r"/boltzformer/api/|/datastore/\?|/train/(?:[\s,;.]|$)"
_FOLDERS = re.compile(rf"(?<![\w./])(?!(?<=:)//)(?!{_ROUTES})/+(?:[^\s/:;,'\"()]+/+)+")
_LONGEST = 400
_BUG = "internal error; the server's log says more"


class ErrorResponses:
    """What clients are told of errors.

    Args:
        hidden: folders of the server that no message may show, whatever their names are like.
    """

    def __init__(self, hidden: Iterable[Path | str] = ()) -> None:
        places = {str(place) for place in (*hidden, tempfile.gettempdir(), Path.home())}
        folders = "|".join(re.escape(place) for place in sorted(places - {"/"}, key=len, reverse=True))
        self._hidden = re.compile(rf"(?<!\w)(?:{folders})/")

    def problem(self, error: BaseException) -> tuple[int, str] | None:
        """Status and line for what a request can cause; ``None`` for a bug."""
        if isinstance(error, HTTPException):
            # MONAI Label answers 500 where it means a mistake of the client.
            if isinstance(error.__cause__, OSError) and (refusal := disk_refusal(error.__cause__)) is not None:
                return _of_the_disk(refusal)  # met by FastAPI in an upload
            return (400 if error.status_code == 500 else error.status_code), self.one_line(str(error.detail))
        if (known := user_error(error)) is not None:
            if getattr(known, "reason", "") == "write":
                refusal = disk_refusal(known)
                return 503 if refusal is None else _of_the_disk(refusal)[0], self.one_line(str(known))
            return next(status for kind, status in _STATUS if isinstance(known, kind)), self.one_line(str(known))
        if isinstance(error, MemoryError):
            return 413, "there is not enough memory for this; crop or resample the scan"
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return 400, "the name is too long for a file"
        if isinstance(error, requests.RequestException):
            if (reply := error.response) is not None and 400 <= reply.status_code < 500:
                return reply.status_code, f"the server behind this one refuses it: {reply.reason}"
            return 503, "the server behind this one does not answer; this one's log says more"
        if isinstance(error, ImageNotFoundException | LabelNotFoundException):
            return 404, self.one_line(str(error.msg))
        if isinstance(error, MONAILabelException):
            bad = error.error in (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)
            return (404 if bad else 400), self.one_line(str(error.msg))
        return None if (refusal := disk_refusal(error)) is None else _of_the_disk(refusal)

    def one_line(self, text: str) -> str:
        """The text on one line, without the folders of absolute paths."""
        text = self._hidden.sub("", text)
        text = text.encode("utf-8", "replace").decode()  # broken Unicode cannot be sent
        return " ".join(_FOLDERS.sub("", text).split())[:_LONGEST]

    def cleaned(self, reply: Any) -> Any:
        """A reply of MONAI Label's in which of a path on this server the name is left."""
        if isinstance(reply, dict):
            return {key: self.cleaned(value) for key, value in reply.items()}
        if isinstance(reply, list | tuple):
            return [self.cleaned(value) for value in reply]
        if isinstance(reply, str):
            return Path(reply).name if self._hidden.match(reply) else self._hidden.sub("", reply)
        return reply

    def add_to(self, app: FastAPI) -> None:
        """Answer every error of every route as ``{"detail": "one line"}``."""

        async def known(request: Request, error: Exception) -> JSONResponse:
            status, detail = self.problem(error) or (500, _BUG)
            headers = getattr(error, "headers", None)
            return JSONResponse({"detail": detail}, status, headers=headers)

        async def invalid(request: Request, error: Exception) -> JSONResponse:
            errors = error.errors() if isinstance(error, RequestValidationError) else []
            parts = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in errors[:3]]
            return JSONResponse({"detail": self.one_line("; ".join(parts))}, 422)

        async def bug(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"detail": _BUG}, 500)

        app.add_exception_handler(BoltzFormerError, known)
        app.add_exception_handler(MONAILabelException, known)
        app.add_exception_handler(HTTPException, known)
        app.add_exception_handler(OSError, known)
        app.add_exception_handler(RequestValidationError, invalid)
        app.add_exception_handler(Exception, bug)


def _of_the_disk(refusal: OSError) -> tuple[int, str]:
    """Status and line; whatever writes leaves all as it was when it fails."""
    if refusal.errno in FULL:
        return 507, f"no room on the server's disk ({why(refusal)}); nothing was changed: free some and ask again"
    return 503, f"the server's disk refuses ({why(refusal)}); nothing was changed: look at it and ask again"
