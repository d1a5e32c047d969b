"""A real server on a free port of this machine, mostly in a process of its own, and a little client for it."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.offline import attempts, offline
from tests.warm_python import Copy, start_copy

APP = Path(__file__).resolve().parents[2] / "boltzformer_monai" / "label"
_START_S = 600
_REPLY_S = 600


@dataclass(frozen=True)
class Reply:
    """Status, headers and body of a reply."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """The body as JSON; the reply must be a good one."""
        assert self.status == 200, (self.status, self.content[:500])
        return json.loads(self.content)

    def parts(self) -> dict[str, bytes]:
        """The parts of a multipart body by name, as ``output=all`` sends them."""
        assert self.status == 200, (self.status, self.content[:500])
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + self.content, policy=email.policy.HTTP)
        found = {}
        for part in message.iter_parts():
            name = part.get_param("name", header="content-disposition")
            found[str(name)] = part.get_payload(decode=True)
        return found


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: its address, without a slash at the end.
        process: it.
        log: file of what it prints.
    """

    url: str
    process: subprocess.Popen[bytes] | Copy
    log: Path

    def ask(self, method: str, path: str, *, data: bytes | None = None, kind: str = "") -> Reply:
        """Send a request; a refusal is a reply, too."""
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_REPLY_S) as reply:
                return Reply(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.headers, error.read())

    def get(self, path: str, **query: Any) -> Reply:
        """GET."""
        return self.ask("GET", path + ("?" + urllib.parse.urlencode(query) if query else ""))

    def post(self, path: str, body: Any = None) -> Reply:
        """POST of JSON."""
        return self.ask("POST", path, data=json.dumps(body or {}).encode(), kind="application/json")

    def form(self, method: str, path: str, fields: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> Reply:
        """Fields, as JSON, and files as a multipart form, as 3D Slicer sends them."""
        mark = secrets.token_hex(16)
        body = b""
        for name, value in fields.items():
            body += f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
            body += json.dumps(value).encode() + b"\r\n"
        for name, file in (files or {}).items():
            line = f'form-data; name="{name}"; filename="{file.name}"'
            body += f"--{mark}\r\nContent-Disposition: {line}\r\n\r\n".encode() + file.read_bytes() + b"\r\n"
        body += f"--{mark}--\r\n".encode()
        return self.ask(method, path, data=body, kind=f"multipart/form-data; boundary={mark}")

    def infer(self, image: str, /, output: str = "json", model: str = "boltzformer", **params: Any) -> Reply:
        """MONAI Label's infer route."""
        query = urllib.parse.urlencode({"image": image, "output": output})
        return self.form("POST", f"/infer/{model}?{query}", {"params": params})

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it and what it started; a second time does nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(120)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def listening(app: Any) -> Iterator[int]:
    """A web server for an application of this very process, whose parts a test can reach; its port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)


@contextlib.contextmanager
def running(
    studies: Path | str,
    folder: Path,
    conf: Mapping[str, Any],
    *,
    app: Path = APP,
    environment: Mapping[str, str] | None = None,
    serve: bool = False,
    ready: str = "/info/",
    fresh: bool = False,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """Start a server and wait until it answers; at the end it is stopped.

    Args:
        studies: folder or address.
        folder: where it is started, and where its log goes.
        conf: pairs of ``--conf``.
        app: ours by default.
        environment: more variables.
        serve: by ``boltzformer serve`` instead of MONAI Label's command.
        ready: path that it answers once it has started.
        fresh: a new interpreter, as users start it, instead of a copy of one that has imported the libraries already.
        options: more words of the command line.
    """
    port, log = free_port(), folder / f"server-{time.monotonic_ns()}.log"
    pairs = dict(conf)
    if serve:
        command = ["-m", "boltzformer_monai", "serve", str(studies), "--checkpoint", str(pairs.pop("checkpoint"))]
    else:
        command = ["-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
        command += ["--host", "127.0.0.1"]
    command += ["--port", str(port), *options]
    command += [word for key, value in pairs.items() for word in ("--conf", key, str(value))]
    connections = folder / f"connections-{time.monotonic_ns()}.txt"
    variables = {**offline(connections), **(environment or {})}
    process = (_start if fresh else start_copy)(command, folder=folder, log=log, environment=variables)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_for(server, ready)
        yield server
    finally:
        server.stop()
    assert attempts(connections) == [], "a server speaks to nobody but its clients and its archive"


def _start(words: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, *words]
    with log.open("wb") as sink:
        return subprocess.Popen(command, cwd=folder, stdout=sink, stderr=sink, start_new_session=True, env=environment)


def _wait_for(server: Server, path: str) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if server.get(path).status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    msg = "the server did not start:\n" + server.log.read_text(errors="replace")[-3000:]
    raise RuntimeError(msg)
