"""Timeouts and a limit for idle connections (slow-loris protection).

uvicorn waits for the rest of a request without limit and accepts connections until the process has no file descriptor
left. Middleware sees a request only after its header, so the checks are added to uvicorn's protocol class.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from dataclasses import dataclass
from enum import Enum
from typing import Any

import uvicorn

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

_TICK_S = 1.0
_TRIM_DELAY_S = 0.1  # a new connection is about to send its request
_LINGER_S = 5.0
_MIN_PROGRESS = 1 << 14  # bytes of a body that count as progress; single bytes do not
_RESERVE = 256  # file descriptors for everything else
_PER_CONNECTION = 3  # file descriptors: up to twice as many connections for a moment, and a file per upload


class _Stage(Enum):
    """What a connection is waiting for."""

    HEADER = "header"
    BODY = "body"
    REPLY = "reply"


@dataclass
class _Connection:
    """State of a connection: stage, time of the last progress, bytes received since then."""

    since: float
    stage: _Stage = _Stage.HEADER
    cycle: Any = None
    received: int = 0
    unsent: int = 0
    """Bytes of responses in the send buffer."""
    started: bool = False
    """Whether any byte was received."""


class Connections:
    """All connections of a web server, with their timeouts.

    Args:
        header_s: timeout of a request's header, from the connection or the last response on.
        body_s: timeout of each 16 KiB of a body, or of its rest, and of reading some of the response.
        limit: idle connections. For a moment there may be twice as many; then those that waited longest are closed.
    """

    def __init__(self, *, header_s: float, body_s: float, limit: int) -> None:
        self.header_s = header_s
        self.body_s = body_s
        self.limit = limit
        self._states: dict[Any, _Connection] = {}
        self._ticking = self._trimming = False

    def protocol(self, stock: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
        """One of uvicorn's protocol classes for HTTP/1.1, with the timeouts."""
        connections = self

        class TimedProtocol(stock):  # type: ignore[misc, valid-type]
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                connections._add(self)

            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                if (state := connections._states.get(self)) is not None:
                    state.started = True
                    state.received += len(data)
                    connections._update(self, state)

            def connection_lost(self, error: Exception | None) -> None:
                connections._states.pop(self, None)
                super().connection_lost(error)

        return TimedProtocol

    def _add(self, protocol: Any) -> None:
        loop = asyncio.get_running_loop()
        if len(self._states) >= 2 * self.limit and not self._close_one():
            _respond(protocol, 503, "too many connections at once; try again", {"Retry-After": "10"})
            return
        self._states[protocol] = _Connection(loop.time())
        if not self._ticking:
            self._ticking = True
            loop.call_later(_TICK_S, self._tick)
        if len(self._states) > self.limit and not self._trimming:
            self._trimming = True
            loop.call_later(_TRIM_DELAY_S, self._trim)

    def _trim(self) -> None:
        self._trimming = False
        while len(self._states) > self.limit and self._close_one():
            pass

    def _close_one(self) -> bool:
        """Close the connection that has been idle longest; False if all wait for their response."""
        for protocol, state in self._states.items():
            self._update(protocol, state)
        waiting = {key: state.since for key, state in self._states.items() if state.stage is not _Stage.REPLY}
        if not waiting:
            return False
        self._close(
            min(waiting, key=waiting.__getitem__),
            "the request is incomplete, and other clients need the connection",
        )
        return True

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for protocol, state in list(self._states.items()):
            self._update(protocol, state)
            waited = now - state.since
            if state.stage is _Stage.HEADER and waited > self.header_s:
                self._close(protocol, f"the header of the request was not complete after {self.header_s:g} seconds")
            elif state.stage is _Stage.BODY and waited > self.body_s:
                self._close(protocol, f"less than {_MIN_PROGRESS} bytes of the body came in {self.body_s:g} seconds")
            elif state.stage is _Stage.REPLY and waited > self.body_s:
                del self._states[protocol]
                protocol.transport.abort()  # the client does not read its response
        self._ticking = bool(self._states)
        if self._ticking:
            loop.call_later(_TICK_S, self._tick)

    def _update(self, protocol: Any, state: _Connection) -> None:
        """Update the stage of a connection and the time of its last progress."""
        now = asyncio.get_running_loop().time()
        cycle, unsent = protocol.cycle, protocol.transport.get_write_buffer_size()
        done = cycle is None or cycle.response_complete
        if unsent or not (done or cycle.more_body):
            stage, progress = _Stage.REPLY, not unsent or unsent < state.unsent
        elif done:
            stage, progress = _Stage.HEADER, False
        else:
            stage, progress = _Stage.BODY, protocol.flow.read_paused or state.received >= _MIN_PROGRESS
        if (stage, cycle) != (state.stage, state.cycle):
            # The start of a body counts for nothing: it came with the header.
            progress = progress or (state.stage, stage) != (_Stage.HEADER, _Stage.BODY)
            state.stage, state.cycle = stage, cycle
        if progress:
            state.since, state.received = now, 0
        state.unsent = unsent

    def _close(self, protocol: Any, reason: str) -> None:
        state = self._states.pop(protocol)
        asyncio.get_running_loop().call_later(_LINGER_S, protocol.transport.abort)  # if it is not read
        no_response = protocol.cycle is None or (state.stage is _Stage.BODY and not protocol.cycle.response_started)
        if state.started and no_response:
            _respond(protocol, 408, reason)
        else:
            protocol.transport.close()


def web_server() -> uvicorn.Server | None:
    """The web server of this process, None if it is not uvicorn.

    MONAI Label starts uvicorn before it makes the app and gives no reference to it; the handler of SIGTERM has one.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


def limit_connections(connections: Connections) -> bool:
    """Add the timeouts to the web server of this process; returns whether it is uvicorn.

    The limit is lowered if there are too few file descriptors.
    """
    server = web_server()
    if server is None:
        return False
    connections.limit = _affordable(connections.limit)
    server.config.http_protocol_class = connections.protocol(server.config.http_protocol_class)
    return True


def _affordable(limit: int) -> int:
    """The number of connections that the file descriptors allow, after raising their limit."""
    if resource is None:
        return limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _PER_CONNECTION * limit + _RESERVE
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == unlimited or soft >= wanted:
        return limit
    fewer = max(1, (soft - _RESERVE) // _PER_CONNECTION)
    _log.warning("the process may have %d file descriptors only: at most %d idle connections", soft, fewer)
    return fewer


def _respond(protocol: Any, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
    """Send a response past the application, then close the connection."""
    body = json.dumps({"detail": detail}).encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **(headers or {})}.items())
    phrase = {408: "Request Timeout", 503: "Service Unavailable"}[status]
    protocol.transport.write(f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode() + body)
    protocol.transport.close()
