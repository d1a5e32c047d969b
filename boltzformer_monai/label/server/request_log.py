"""A record and an id for every request, its time and status for the metrics, and a line in the log (middleware)."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from boltzformer_monai.label.request_record import RequestRecord, recording
from boltzformer_monai.label.server.json_logs import FIELDS
from boltzformer_monai.label.server.metrics import Metrics

_log = logging.getLogger(__name__)

ID_HEADER = "X-Request-ID"
# Nothing but a number: clients could send a name, and the id goes into logs.
_ID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)


class RequestLog:
    """ASGI middleware: each request gets an id, the client's (``X-Request-ID``, a UUID) or a new one; it is sent back.

    Args:
        metrics: are told of every request.
        lines: write a line for every request: its route, not its path, which names scans.
    """

    def __init__(self, app: Any, *, metrics: Metrics, lines: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.lines = lines

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(ID_HEADER, "")
        record = RequestRecord(given) if _ID.fullmatch(given) else RequestRecord()
        started, status = time.perf_counter(), 500  # of an exception

        async def send_with_id(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers[ID_HEADER] = record.id
                message = {**message, "headers": headers.raw}
            await send(message)

        with recording(record):
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                self._note(scope, record, status, time.perf_counter() - started)

    def _note(self, scope: Any, record: RequestRecord, status: int, seconds: float) -> None:
        method, route = scope["method"], route_of(scope)
        self.metrics.note_request(method, route, status, seconds)
        if self.lines:
            values = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
            message = f"{method} {route} {status} {seconds:.3f} s"
            _log.info(message, extra={FIELDS: {**values, "user": record.user}})


def route_of(scope: Any) -> str:
    """Path of the route that a request reached, with names for its parts (``/infer/{model}``); ``other`` for none."""
    route, path = scope.get("route"), scope["path"]
    if route is None:
        return "other"
    # In newer versions of FastAPI a route does not know the prefix of the router that it was included with.
    parts = [place for place, letter in enumerate(path) if letter == "/"]
    start = next((place for place in parts if route.path_regex.fullmatch(path[place:])), 0)
    return f"{path[:start]}{route.path_format}"
