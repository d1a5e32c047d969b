"""Limit the size of request bodies."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

_JSON_LIMIT = 2**20
_DIGITS = 18


class UploadLimit:
    """ASGI middleware: status 413 for a body above the limit, by its Content-Length or counted while it is read.

    Args:
        app: the next application.
        limit: bytes of a multipart body; any other, such as JSON, may have 1 MiB.
    """

    def __init__(self, app: Any, *, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request, or refuse it."""
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
        received = 0

        async def receive_counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, too_large)  # answered by the route that reads
            return message

        await self.app(scope, receive_counted, send)
