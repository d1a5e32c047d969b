"""A mirror of the Hugging Face hub on this machine: a hub that knows files, and a store that it redirects to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


@dataclass
class Mirror:
    """What the two servers give, and what was asked of them."""

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """(model, file) → content; of ``.safetensors``, ``.pt``, … the store gives it."""
    gated: set[str] = field(default_factory=set)
    """Models that want the token ``let-me-in``."""
    replaced: dict[str, bytes] = field(default_factory=dict)
    """File → what the store gives instead."""
    cut: dict[str, int] = field(default_factory=dict)
    """File → number of bytes after which the store breaks the connection off, once."""
    stalled: dict[str, int] = field(default_factory=dict)
    """File → number of bytes after which the store says nothing more, once, until :attr:`go_on` is set."""
    go_on: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    """Of every answer of the hub."""
    requests: list[tuple[str, str, str, str | None]] = field(default_factory=list)
    """``hub`` or ``store``, method, file, range."""
    hub: str = ""
    store: str = ""

    def asked(self, server: str, method: str = "GET") -> list[tuple[str, str | None]]:
        """File and range of the requests to a server."""
        return [(file, span) for at, how, file, span in self.requests if (at, how) == (server, method)]


@contextmanager
def serving() -> Iterator[Mirror]:
    """Two servers on loopback ports."""
    mirror = Mirror()
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (_handler(mirror, _Hub), _handler(mirror, _Store))
    ]
    mirror.hub, mirror.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield mirror
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(of: Mirror, kind: type[_Answers]) -> type[_Answers]:
    return type("Handler", (kind,), {"mirror": of})


class _Answers(BaseHTTPRequestHandler):
    mirror: Mirror
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class _Hub(_Answers):
    def do_HEAD(self) -> None:
        owner, name, resolve, revision, *rest = self.path.strip("/").split("/")
        repo, file = f"{owner}/{name}", "/".join(rest)
        self.mirror.requests.append(("hub", self.command, file, self.headers.get("Range")))
        known = {"X-Repo-Commit": COMMIT}
        if self.mirror.status is not None:
            self.answer(self.mirror.status, {})
        elif repo not in {model for model, _ in self.mirror.files} or resolve != "resolve":
            self.answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif repo in self.mirror.gated and self.headers.get("Authorization") != "Bearer let-me-in":
            message = f"Access to model {repo} is restricted."
            self.answer(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif revision not in ("main", COMMIT):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif (repo, file) not in self.mirror.files:
            self.answer(404, {"X-Error-Code": "EntryNotFound", **known})
        elif file.endswith((".json", ".md")):
            content = self.mirror.files[repo, file]
            tag = hashlib.sha1(content).hexdigest()
            headers = {"ETag": f'"{tag}"', "Content-Length": str(len(content)), **known}
            self.answer(200, headers, content)
        else:
            content = self.mirror.files[repo, file]
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            self.answer(302, {"Location": f"{self.mirror.store}/{repo}/{file}", **linked, **known})

    do_GET = do_HEAD


class _Store(_Answers):
    def do_GET(self) -> None:
        owner, name, file = self.path.strip("/").split("/")
        span = self.headers.get("Range")
        self.mirror.requests.append(("store", self.command, file, span))
        content = self.mirror.replaced.get(file, self.mirror.files[f"{owner}/{name}", file])
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        headers = {"Content-Length": str(len(content) - start), "Accept-Ranges": "bytes"}
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if span else 200)
        for each in headers.items():
            self.send_header(*each)
        self.end_headers()
        stop = self.mirror.cut.pop(file, len(content))
        if (stall := self.mirror.stalled.pop(file, None)) is not None:
            self.wfile.write(content[start:stall])
            self.mirror.go_on.wait(60)
            self.close_connection = True
            return
        self.wfile.write(content[start:stop])
        if stop < len(content):
            self.close_connection = True
