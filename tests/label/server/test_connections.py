"""Clients that open connections and do not say what they want, before a real web server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import need_module

need_module("monailabel")

import uvicorn  # noqa: E402
from uvicorn.protocols.http.auto import AutoHTTPProtocol  # noqa: E402

from boltzformer_monai.label.server.connections import Connections  # noqa: E402
from tests.label.live_server import running  # noqa: E402

_HALF_HEADER = b"GET /info/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
_HALF_BODY = (
    b"PUT /datastore/image?image=slow HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n"
)
_SLOW = 1_300
_PROMPT_S = 2.0


async def _application(scope: Any, receive: Any, send: Any) -> None:
    """Answers once it has the whole body: with its length, or for /long with more than a client's buffers hold."""
    length = 0
    while (message := await receive())["type"] == "http.request":
        length += len(message["body"])
        if not message.get("more_body"):
            break
    if scope["path"] == "/later":
        await asyncio.sleep(2)
    body = bytes(50_000_000) if scope["path"] == "/long" else str(length).encode()
    size = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", size)]})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def _watched(*, header_s: float = 60, body_s: float = 60, most: int = 100) -> Iterator[int]:
    protocol = Connections(header_s=header_s, body_s=body_s, limit=most).protocol(AutoHTTPProtocol)
    config = uvicorn.Config(_application, "127.0.0.1", 0, http=protocol, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(60)


def _sent(port: int, data: bytes) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port), timeout=60)
    link.sendall(data)
    return link


def _rest(link: socket.socket) -> bytes:
    """What comes until the server closes."""
    reply = b""
    with contextlib.suppress(ConnectionError):
        while piece := link.recv(65536):
            reply += piece
    return reply


def _ask(port: int, path: str = "/info/", host: str = "127.0.0.1") -> bytes:
    with socket.create_connection((host, port), timeout=60) as link:
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return _rest(link)


def test_a_header_has_a_time_limit() -> None:
    with _watched(header_s=1) as port:
        silent, half = _sent(port, b""), _sent(port, _HALF_HEADER)
        assert _rest(half).startswith(b"HTTP/1.1 408 ")
        assert _rest(silent) == b""


def test_single_letters_do_not_lengthen_it() -> None:
    with _watched(header_s=1) as port, _sent(port, _HALF_HEADER) as link:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < started + 30:
                link.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() < started + 30


def test_a_body_must_go_on() -> None:
    with _watched(body_s=1) as port, _sent(port, _HALF_BODY) as link:
        assert _rest(link).startswith(b"HTTP/1.1 408 ")


def test_a_slow_upload_that_goes_on_comes_through() -> None:
    head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 160000\r\nConnection: close\r\n\r\n"
    with _watched(body_s=1, header_s=1) as port, _sent(port, head) as link:
        for _ in range(8):  # longer than two periods
            link.sendall(bytes(20_000))
            time.sleep(0.3)
        assert _rest(link).endswith(b"\r\n\r\n160000")


def test_a_reply_that_is_not_taken_ends() -> None:
    with _watched(body_s=1, header_s=1) as port, _sent(port, b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n") as link:
        time.sleep(3)
        assert len(_rest(link)) < 50_000_000


def test_the_oldest_go_when_there_are_too_many() -> None:
    with _watched(most=10) as port:
        waiting = _sent(port, b"GET /later HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        time.sleep(0.2)
        links = [_sent(port, (_HALF_HEADER, _HALF_BODY)[number % 2]) for number in range(40)]
        assert _ask(port).endswith(b"\r\n\r\n0")
        assert all(_rest(link)[:13] in (b"", b"HTTP/1.1 408 ") for link in links[:30])
        links[-2].sendall(b"\r\n\r\n")
        assert links[-2].recv(15) == b"HTTP/1.1 200 OK"  # the young ones are still there
        assert _rest(waiting).endswith(b"\r\n\r\n0")  # so is one that has said what it wants
        for link in links:
            link.close()


@pytest.mark.slow
@pytest.mark.parametrize("serve", [True, False], ids=["serve", "start_server"])
@pytest.mark.parametrize("half", [_HALF_HEADER, _HALF_BODY], ids=["headers", "bodies"])
def test_many_slow_clients_do_not_silence_the_server(
    checkpoint: Path, studies: Path, tmp_path: Path, serve: bool, half: bytes
) -> None:
    if serve is (half is _HALF_BODY):
        pytest.skip("each command once")
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # the server starts with what is usual
    try:
        started = running(studies, tmp_path, {"checkpoint": checkpoint}, serve=serve)
        server = started.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    links: list[socket.socket] = []
    port = int(server.url.rpartition(":")[2])
    try:
        slowest = 0.0
        for number in range(_SLOW):
            links.append(_sent(port, half))
            if number % 50 == 49:
                before = time.monotonic()
                assert _ask(port).startswith(b"HTTP/1.1 200 "), number
                slowest = max(slowest, time.monotonic() - before)
        assert slowest < _PROMPT_S
        assert b"Too many open files" not in server.log.read_bytes()
    finally:
        for link in links:
            link.close()
        started.__exit__(None, None, None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
