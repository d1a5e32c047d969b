"""The end of a server: what runs is finished, what comes is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.label.disconnect import CancelOnDisconnect, client_disconnected  # noqa: E402
from boltzformer_monai.label.server.drain import Drain, DrainRequests  # noqa: E402


class _Server:
    """An application of one slow route, behind the middleware."""

    def __init__(self, limit_s: float) -> None:
        self.drain = Drain(limit_s=limit_s)
        self.finish = asyncio.Event()
        self.deaf = False
        self.stopped: list[bool] = []
        self.app = DrainRequests(CancelOnDisconnect(self.slow), drain=self.drain, always=("/health",))

    async def slow(self, scope: Any, receive: Any, send: Any) -> None:
        cancelled = client_disconnected()
        while scope["path"] != "/health" and not self.finish.is_set() and (self.deaf or not cancelled()):
            await asyncio.sleep(0.01)
        status = 200 if self.finish.is_set() or scope["path"] == "/health" else 503
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, path: str = "/") -> tuple[int, dict[bytes, bytes]]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            if sent or len(asked):
                await asyncio.Event().wait()
            asked.append(1)
            return {"type": "http.request", "body": b"", "more_body": False}

        asked: list[int] = []
        await self.app({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])


def test_running_requests_end_and_new_ones_are_refused() -> None:
    async def run() -> None:
        server = _Server(limit_s=60)
        running = [asyncio.create_task(server.ask()) for _ in range(2)]
        await asyncio.sleep(0.05)
        server.drain.begin(server.stopped.append)
        status, headers = await server.ask()
        assert (status, headers[b"retry-after"]) == (503, b"30")
        assert (await server.ask("/health"))[0] == 200
        assert server.stopped == []
        server.finish.set()
        assert [(await each)[0] for each in running] == [200, 200]
        await asyncio.sleep(0.05)
        assert server.stopped == [False]

    asyncio.run(run())


def test_an_idle_server_ends_at_once() -> None:
    async def run() -> None:
        server = _Server(limit_s=60)
        server.drain.begin(server.stopped.append)
        await asyncio.sleep(0.05)
        assert server.stopped == [False]

    asyncio.run(run())


@pytest.mark.parametrize("how", ["the limit is over", "a second signal"])
def test_what_takes_too_long_is_cancelled(how: str) -> None:
    async def run() -> None:
        server = _Server(limit_s=0.1 if how == "the limit is over" else 60)
        running = asyncio.create_task(server.ask())
        await asyncio.sleep(0.05)
        server.drain.begin(server.stopped.append)
        if how == "a second signal":
            server.drain.begin(server.stopped.append)
        assert (await running)[0] == 503
        await asyncio.sleep(0.05)
        assert server.stopped == [False]

    asyncio.run(run())


def test_what_cannot_be_cancelled_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boltzformer_monai.label.server.drain._LAST_S", 0.1)

    async def run() -> None:
        server = _Server(limit_s=0.05)
        server.deaf = True
        running = asyncio.create_task(server.ask())
        await asyncio.sleep(0.5)
        assert server.stopped == []
        server.drain.begin(server.stopped.append)
        await asyncio.sleep(0.5)
        assert server.stopped == [True]
        server.finish.set()
        assert (await running)[0] == 200

    asyncio.run(run())


def test_a_server_that_is_about_to_end_is_not_ready(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drain = next(
        each.kwargs["drain"] for each in client.app.user_middleware if each.cls is DrainRequests
    )  # that of the running server
    monkeypatch.setattr(drain, "begun", True)
    reply = client.get("/ready")
    assert (reply.status_code, reply.json()["reasons"]) == (503, ["the server is about to stop"])
    assert client.get("/info/").status_code == 503
    monkeypatch.undo()
    assert client.get("/info/").status_code == 200
