"""Cancel inference when the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

CANCELLED = "boltzformer.cancelled"
"""Key of an ASGI scope: an event; setting it cancels the request as a disconnect does."""
_DISCONNECTED: ContextVar[threading.Event | None] = ContextVar("client_disconnected", default=None)


def client_disconnected() -> Callable[[], bool]:
    """Whether the client of the current request has disconnected; may be called later, from any thread."""
    disconnected = _DISCONNECTED.get()
    return disconnected.is_set if disconnected is not None else lambda: False


@contextlib.contextmanager
def ignore_disconnect() -> Iterator[None]:
    """Finish the work of this block even if the client disconnects: its results are stored, and shared."""
    token = _DISCONNECTED.set(None)
    try:
        yield
    finally:
        _DISCONNECTED.reset(token)


class CancelOnDisconnect:
    """ASGI middleware: keep listening for the disconnect once the request was read.

    A disconnect is noticed only if the application reads the body to its end.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        disconnected = scope.get(CANCELLED) or threading.Event()
        listener: asyncio.Task[Any] | None = None
        first: list[Any] = []

        async def wait_for_disconnect() -> Any:
            message = await receive()
            disconnected.set()
            return message

        async def receive_and_listen() -> Any:
            nonlocal listener
            if first:
                return first.pop()
            if listener is not None:  # a streaming response listens, too
                return await asyncio.shield(listener)
            message = await receive()
            if message["type"] == "http.disconnect":
                disconnected.set()
            elif not message.get("more_body"):
                listener = asyncio.create_task(wait_for_disconnect())
            return message

        # Without a body the application may never call receive.
        if not {name for name, value in scope["headers"] if value != b"0"} & {b"content-length", b"transfer-encoding"}:
            first.append(await receive_and_listen())
        token = _DISCONNECTED.set(disconnected)
        try:
            await self.app(scope, receive_and_listen, send)
        finally:
            _DISCONNECTED.reset(token)
            if listener is not None:
                listener.cancel()
