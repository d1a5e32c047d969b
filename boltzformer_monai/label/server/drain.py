"""The end of a server: requests under way are finished, new ones are refused (middleware and SIGTERM's handler)."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import JSONResponse

from boltzformer_monai.label.disconnect import CANCELLED
from boltzformer_monai.label.server.connections import web_server

_log = logging.getLogger(__name__)

_RETRY_AFTER_S = 30
_LAST_S = 10.0


class Drain:
    """How many requests are under way, and whether the server is about to end.

    Args:
        limit_s: what still runs then is cancelled.
    """

    def __init__(self, *, limit_s: float) -> None:
        self.limit_s = limit_s
        self.begun = False
        self.requests: set[threading.Event] = set()
        """One for each request under way; setting it cancels the request, as if its client had disconnected."""
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def leave(self, request: threading.Event) -> None:
        """A request has ended."""
        self.requests.discard(request)
        if self.begun and not self.requests:
            self._idle.set()

    def begin(self, stop: Callable[[bool], None]) -> None:
        """Refuse new requests from now on; called in the thread of the event loop.

        Args:
            stop: called once none is under way; with True if some could not be cancelled.
        """
        if self.begun:
            self.cancel()
            return
        self.begun = True
        _log.info("stopping: %d requests under way are finished, new ones are refused", len(self.requests))
        if not self.requests:
            self._idle.set()
        task = asyncio.get_running_loop().create_task(self._wait(stop))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """Cancel all requests under way."""
        for each in self.requests:
            each.set()

    async def _wait(self, stop: Callable[[bool], None]) -> None:
        for seconds in (self.limit_s, _LAST_S):
            try:
                await asyncio.wait_for(self._idle.wait(), seconds)
            except (TimeoutError, asyncio.TimeoutError):  # one since Python 3.11
                _log.warning("%d requests are still under way after %g seconds: cancelled", len(self.requests), seconds)
                self.cancel()
            else:
                break
        stop(bool(self.requests))


class DrainRequests:
    """ASGI middleware: counts the requests under way, and refuses new ones by status 503 once the server is to end.

    Args:
        drain: told of each.
        always: paths that are answered to the end.
    """

    def __init__(self, app: Any, *, drain: Drain, always: Sequence[str]) -> None:
        self.app = app
        self.drain = drain
        self.always = always

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] in self.always:
            await self.app(scope, receive, send)
            return
        if self.drain.begun:
            headers = {"Retry-After": str(_RETRY_AFTER_S), "Connection": "close"}
            refusal = JSONResponse({"detail": "the server is about to stop; try again later"}, 503, headers=headers)
            await refusal(scope, receive, send)
            return
        request = scope[CANCELLED] = threading.Event()
        self.drain.requests.add(request)
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.leave(request)


def drain_on_sigterm(drain: Drain) -> None:
    """End the web server of this process by SIGTERM only when all requests have ended; a second SIGTERM cancels them.

    Without uvicorn nothing is changed.
    """
    server = web_server()
    if server is None:
        return
    loop = asyncio.get_running_loop()

    def stop(forced: bool) -> None:
        server.force_exit = forced
        server.handle_exit(signal.SIGTERM, None)

    signal.signal(signal.SIGTERM, lambda number, frame: loop.call_soon_threadsafe(drain.begin, stop))
