"""What is not even HTTP, before a real web server."""

from __future__ import annotations

import socket
import urllib.request
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.needs import need_module

need_module("monailabel")

from tests.label.live_server import listening  # noqa: E402

_SEED = 20_261_122
_COUNT = 300


def test_broken_http_does_not_stop_the_server(client: Any) -> None:
    before = client.get("/boltzformer/api/config").json()
    with listening(client.app) as port:
        replies = [_raw(port, each) for each in _broken_http(Random(_SEED), _COUNT)]
        statuses = Counter(reply.split(b" ", 2)[1] for reply in replies if reply.startswith(b"HTTP/"))
        assert not [status for status in statuses if status.startswith(b"5")], statuses
        assert statuses.total() > 50
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/boltzformer/api/config", timeout=120) as good:
            assert good.status == 200
    assert client.get("/boltzformer/api/config").json() == before


def _broken_http(random: Random, count: int) -> Iterator[bytes]:
    heads = (
        b"POST /boltzformer/api/segment HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n", b"GET http://evil/ HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01\x02\x00",
        b"GET  /\r\n", b"\r\n\r\n", b"G" * 9000,
        b"PUT /datastore/image?image=fuzzed HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n", b"GET /%zz%0d%0a HTTP/1.0\r\n", b"PRI * HTTP/2.0\r\n",
    )  # fmt: skip
    fields = (
        b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n", b"Content-Length: 50\r\n", b"X\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"A: " + b"b" * 70_000, b"Content-Length: 5\r\nContent-Length: 9\r\n", b" folded\r\n",
        b"Expect: 100-continue\r\n",
        b"Content-Length: 0x5\r\n", b"Host: evil.example\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"\0: \0\r\n", b"",
    )  # fmt: skip
    bodies = (
        b"", b"{", b"zz\r\n{}\r\n0\r\n\r\n", b"5\r\nhel", b"ffffffffffffffff\r\n", b"--b\r\nContent-Dispo", b"x" * 3000,
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\nabc', b"-1\r\n",
    )  # fmt: skip
    for _ in range(count):
        yield random.choice(heads) + random.choice(fields) + random.choice(fields) + b"\r\n" + random.choice(bodies)


def _raw(port: int, data: bytes) -> bytes:
    """What comes back when the client sends this and then nothing more."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            reply = b""
            while piece := connection.recv(65536):
                reply += piece
        except ConnectionError:
            return b""
        return reply
