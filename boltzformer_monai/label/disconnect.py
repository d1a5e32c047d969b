"""Clients that leave before their answer: what nobody waits for any more need not be computed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

__all__ = ["CancelOnDisconnect", "client_disconnected", "ignore_disconnect"]

_DISCONNECTED: ContextVar[threading.Event | None] = ContextVar("client_disconnected", default=None)


def client_disconnected() -> Callable[[], bool]:
    """Tells at any time, in any thread, whether the client of the request under way has gone; no other work has one."""
    gone = _DISCONNECTED.get()
    return gone.is_set if gone is not None else lambda: False


@contextlib.contextmanager
def ignore_disconnect() -> Iterator[None]:
    """In this block it does not matter whether the client stays: what is done here is kept, and others want it too."""
    token = _DISCONNECTED.set(None)
    try:
        yield
    finally:
        _DISCONNECTED.reset(token)


class CancelOnDisconnect:
    """ASGI middleware: goes on listening once a request was read, when all that can come is the end of the connection.

    A body that the application does not read to its end hides that end.

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
        early: list[Any] = []

        async def last() -> Any:
            message = await receive()
            gone.set()
            return message

        async def heard() -> Any:
            nonlocal end
            if early:
                return early.pop()
            if end is not None:  # a reply that is sent in pieces listens, too
                return await asyncio.shield(end)
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
            elif not message.get("more_body"):
                end = asyncio.create_task(last())
            return message

        # Where there is no body the application may never ask for it, so it is asked for here.
        if not {name for name, value in scope["headers"] if value != b"0"} & {b"content-length", b"transfer-encoding"}:
            early.append(await heard())
        token = _DISCONNECTED.set(gone)
        try:
            await self.app(scope, heard, send)
        finally:
            _DISCONNECTED.reset(token)
            if end is not None:
                end.cancel()
