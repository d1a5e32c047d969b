"""Connections that ask for nothing: closed in time, and never so many that nobody else comes through.

The web server (uvicorn) waits for the rest of a request as long as the connection stands, and takes new ones until the
process has no descriptor left. An application sees a request only once its header is complete, so this is added to the
web server's own protocol.
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
except ImportError:  # not on Windows, whose sockets count differently anyway
    resource = None  # type: ignore[assignment]

__all__ = ["Connections", "limit_connections"]

_log = logging.getLogger(__name__)

_TICK_S = 1.0
_SOON_S = 0.1  # a connection that has just come is about to say what it wants
_LINGER_S = 5.0
_LEAST = 1 << 14  # bytes of a body that count as going on: any line has them in a while, and single letters do not
_RESERVE = 256  # descriptors for files, libraries and the web server itself
_EACH = 3  # descriptors: two connections may stand for each that stays, and a large upload has a file


class _Stage(Enum):
    """What a connection is in the middle of."""

    HEADER = "header"
    BODY = "body"
    REPLY = "reply"


@dataclass
class _Link:
    """A connection: what it does, since when, and how many bytes of a body came in this period."""

    since: float
    stage: _Stage = _Stage.HEADER
    cycle: Any = None
    received: int = 0
    unsent: int = 0
    """Bytes of replies that the client has not taken yet."""
    asked: bool = False
    """Whether any byte of a request has come."""


class Connections:
    """All connections of a web server, and how long each may wait.

    Args:
        header_s: seconds for the header of a request, from the connection or the last reply on.
        body_s: seconds in which at least 16 KiB of a body must come, or the rest of it (the first with the
            header), and in which a client must take some of its reply.
        most: connections that may stay while they wait for their client. For a moment there may be twice as many; then
            those that have waited longest are closed.
    """

    def __init__(self, *, header_s: float, body_s: float, most: int) -> None:
        self.header_s = header_s
        self.body_s = body_s
        self.most = most
        self._links: dict[Any, _Link] = {}
        self._ticking = self._trimming = False

    def protocol(self, stock: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
        """The web server's protocol of a connection, watched.

        Args:
            stock: one of uvicorn's for HTTP/1.1.
        """
        connections = self

        class Watched(stock):  # type: ignore[misc, valid-type]
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                connections._joined(self)

            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                if (link := connections._links.get(self)) is not None:
                    link.asked = True
                    link.received += len(data)
                    connections._look(self, link)

            def connection_lost(self, error: Exception | None) -> None:
                connections._links.pop(self, None)
                super().connection_lost(error)

        return Watched

    def _joined(self, protocol: Any) -> None:
        loop = asyncio.get_running_loop()
        if len(self._links) >= 2 * self.most and not self._close_one():
            _answer(protocol, 503, "too many connections at once; try again", {"Retry-After": "10"})
            return
        self._links[protocol] = _Link(loop.time())
        if not self._ticking:
            self._ticking = True
            loop.call_later(_TICK_S, self._tick)
        if len(self._links) > self.most and not self._trimming:
            self._trimming = True
            loop.call_later(_SOON_S, self._trim)

    def _trim(self) -> None:
        self._trimming = False
        while len(self._links) > self.most and self._close_one():
            pass

    def _close_one(self) -> bool:
        """Close the one that has waited longest for its client; False if all have asked and wait for their reply."""
        for protocol, link in self._links.items():
            self._look(protocol, link)
        waiting = {key: link.since for key, link in self._links.items() if link.stage is not _Stage.REPLY}
        if not waiting:
            return False
        self._close(
            min(waiting, key=waiting.__getitem__),
            "the request did not come to its end, and others wait for a connection",
        )
        return True

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for protocol, link in list(self._links.items()):
            self._look(protocol, link)
            waited = now - link.since
            if link.stage is _Stage.HEADER and waited > self.header_s:
                self._close(protocol, f"the header of the request was not complete after {self.header_s:g} seconds")
            elif link.stage is _Stage.BODY and waited > self.body_s:
                self._close(protocol, f"less than {_LEAST} bytes of the request came in {self.body_s:g} seconds")
            elif link.stage is _Stage.REPLY and waited > self.body_s:
                del self._links[protocol]
                protocol.transport.abort()  # what is left of the reply would never be taken
        self._ticking = bool(self._links)
        if self._ticking:
            loop.call_later(_TICK_S, self._tick)

    def _look(self, protocol: Any, link: _Link) -> None:
        """Bring up to date what a connection is in the middle of, and since when nothing came or was taken."""
        now = asyncio.get_running_loop().time()
        cycle, unsent = protocol.cycle, protocol.transport.get_write_buffer_size()
        done = cycle is None or cycle.response_complete
        if unsent or not (done or cycle.more_body):
            stage, served = _Stage.REPLY, not unsent or unsent < link.unsent
        elif done:
            stage, served = _Stage.HEADER, False
        else:
            stage, served = _Stage.BODY, protocol.flow.read_paused or link.received >= _LEAST
        if (stage, cycle) != (link.stage, link.cycle):
            # Else who begins a body would stay longer than who came at the same time and is not so far.
            served = served or (link.stage, stage) != (_Stage.HEADER, _Stage.BODY)
            link.stage, link.cycle = stage, cycle
        if served:
            link.since, link.received = now, 0
        link.unsent = unsent

    def _close(self, protocol: Any, why: str) -> None:
        link = self._links.pop(protocol)
        asyncio.get_running_loop().call_later(_LINGER_S, protocol.transport.abort)  # whoever does not even take this
        nothing_said = protocol.cycle is None or (link.stage is _Stage.BODY and not protocol.cycle.response_started)
        if link.asked and nothing_said:
            _answer(protocol, 408, why)
        else:
            protocol.transport.close()


def limit_connections(connections: Connections) -> bool:
    """Watch the connections of the web server that runs in this process.

    MONAI Label starts the web server before it makes the app, and hands nothing of it on; but the one who stops it on
    a signal is the web server itself.

    Args:
        connections: what they may do; ``most`` is lowered where the system does not give enough descriptors.

    Returns:
        Whether there is one that can be watched.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server):
        return False
    connections.most = _with_descriptors(connections.most)
    server.config.http_protocol_class = connections.protocol(server.config.http_protocol_class)
    return True


def _with_descriptors(most: int) -> int:
    """As many connections as the process may have descriptors for, after it has asked for enough."""
    if resource is None:
        return most
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _EACH * most + _RESERVE
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == unlimited or soft >= wanted:
        return most
    fewer = max(1, (soft - _RESERVE) // _EACH)
    _log.warning("the system gives this process %d descriptors only, so %d connections may wait at once", soft, fewer)
    return fewer


def _answer(protocol: Any, status: int, why: str, headers: dict[str, str] | None = None) -> None:
    """A reply that the application knows nothing of; then the end."""
    body = json.dumps({"detail": why}).encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **(headers or {})}.items())
    phrase = {408: "Request Timeout", 503: "Service Unavailable"}[status]
    protocol.transport.write(f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode() + body)
    protocol.transport.close()
