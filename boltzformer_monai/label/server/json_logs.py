"""Logs as one JSON object a line, with the id of the request that a line belongs to."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from boltzformer_monai.label.request_record import current_request

_MB = 2**20
_FILES, _SIZE_MB = 10, 10
FIELDS = "fields"
"""Attribute of a log record with further values of its line."""


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message"}``, and where there are any ``request``, ``error`` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        request = current_request()
        line: dict[str, Any] = {
            "time": utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **({} if request is None else {"request": request.id}),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def utc(seconds: float) -> str:
    """A time since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_logging(folder: Path) -> dict[str, Any]:
    """A configuration of :mod:`logging`: JSON to standard error and to ``app.log`` of a folder, which rotates."""
    handlers = {
        "console": {"class": "logging.StreamHandler", "formatter": "json"},
        "file": {
            "class": "logging.handlers.RotatingFileHandler",
            "formatter": "json",
            "filename": str(folder / "app.log"),
            "maxBytes": _SIZE_MB * _MB,
            "backupCount": _FILES,
            "encoding": "utf-8",
        },
    }
    # MONAI Label writes every request with its image at INFO.
    quiet = ("monailabel", "uvicorn.access", "urllib3.connectionpool")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.{JsonFormatter.__name__}"}},
        "handlers": handlers,
        "root": {"level": "INFO", "handlers": [*handlers]},
        "loggers": {
            **{name: {"level": "WARNING"} for name in quiet},
            "uvicorn": {"level": "INFO"},
            "uvicorn.error": {"level": "INFO"},
        },
    }
