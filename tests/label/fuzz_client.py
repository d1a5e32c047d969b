"""Requests as bytes, straight into the web application: no client library that would mend or refuse them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

_CHUNK = 1 << 16
_LONGEST_REASON = 600


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request.

    Attributes:
        method: any word.
        target: what stands in the first line: path and query.
        headers: names in lower case.
        body: sent in pieces.
        refused: whether a reply below 400 would be wrong.
    """

    method: str = "GET"
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    refused: bool = True


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(client: Any, request: Ask) -> Reply:
    """Send a request through the running application of Starlette's test client."""
    reply: Reply = client.portal.call(_ask, client.app, request)
    return reply


def complaint(request: Ask, reply: Reply) -> str:
    """What is wrong with a reply, "" if nothing is."""
    if reply.status >= 500:
        return "is a mistake of the server"
    if reply.status < 400:
        return "was not refused" if request.refused else ""
    if request.method == "HEAD":
        return ""
    try:
        detail = json.loads(reply.body)["detail"]
    except (ValueError, KeyError, TypeError):
        return "has no JSON with a detail"
    if not isinstance(detail, str) or not detail.strip() or detail != " ".join(detail.split()):
        return "has a detail that is not one line"
    if len(detail) > _LONGEST_REASON:
        return "has a detail that is too long"
    return "names a path of the server" if "/tmp/" in detail or "Traceback" in detail else ""


async def _ask(app: Any, request: Ask) -> Reply:
    path, _, query = request.target.partition("?")
    headers = {"host": "testserver", "content-length": str(len(request.body)), **request.headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "server": ("testserver", 80),
        "client": ("testclient", 50000),
        "root_path": "",
        # As the web server does it.
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": query.encode("utf-8", "replace"),
        "headers": [(name.encode(), value.encode("utf-8", "replace")) for name, value in headers.items()],
    }
    pieces = [request.body[at : at + _CHUNK] for at in range(0, len(request.body), _CHUNK)] or [b""]
    status, received, body = 0, {}, b""
    answered = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not pieces:
            await answered.wait()  # as the web server does: the client stays
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, received, body
        if message["type"] == "http.response.start":
            status = message["status"]
            received = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            body += message.get("body", b"")
            if not message.get("more_body"):
                answered.set()

    try:
        await app(scope, receive, send)
    except Exception as error:  # noqa: BLE001 (whatever gets out of the application is its mistake)
        return Reply(599, received, repr(error).encode())
    return Reply(status, received, body)
