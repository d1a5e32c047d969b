"""Clients that leave before their answer: what nobody waits for any more need not be computed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ["Departures", "client_has_gone"]

_GONE: ContextVar[threading.Event | None] = ContextVar("client_has_gone", default=None)


def client_has_gone() -> Callable[[], bool]:
    """Tells at any time, in any thread, whether the client of the request under way has gone; no other work has one."""
    gone = _GONE.get()
    return gone.is_set if gone is not None else lambda: False


class Departures:
    """ASGI middleware: goes on listening once a request was read, when all that can come is the end of the connection.

    Args:
        app: the next application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        gone = threading.Event()
        end: asyncio.Task[Any] | None = None

        async def last() -> Any:
            message = await receive()
            gone.set()
            return message

        async def heard() -> Any:
            nonlocal end
            if end is not None:  # a reply that is sent in pieces listens, too
                return await asyncio.shield(end)
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
            elif not message.get("more_body"):
                end = asyncio.create_task(last())
            return message

        token = _GONE.set(gone)
        try:
            await self.app(scope, heard, send)
        finally:
            _GONE.reset(token)
            if end is not None:
                end.cancel()
