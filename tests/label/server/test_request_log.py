"""Every request has an id, and a line in the log that names no scan."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.needs import need_module

need_module("monailabel")

from starlette.routing import Route  # noqa: E402

from boltzformer_monai.label.request_record import RequestRecord, recording  # noqa: E402
from boltzformer_monai.label.server.json_logs import JsonFormatter  # noqa: E402
from boltzformer_monai.label.server.request_log import route_of  # noqa: E402
from tests.label.live_server import running  # noqa: E402


def test_routes_have_names_for_their_parts() -> None:
    """Whether a route knows the prefix that it was included with or not."""

    def route(path: str) -> str:
        return route_of({"path": path, "route": Route("/images/{image}/scan", endpoint=print)})

    assert route("/api/images/images/scan") == "/api/images/{image}/scan"
    assert route("/images/x/scan") == "/images/{image}/scan"
    assert route_of({"path": "/x"}) == "other"


@pytest.mark.parametrize("path", ["/info/", "/health", "/none", "/datastore/image?image=none"])
def test_every_reply_has_an_id(client: Any, path: str) -> None:
    first, second = (client.get(path).headers["x-request-id"] for _ in range(2))
    assert uuid.UUID(first) != uuid.UUID(second)


def test_an_internal_error_has_an_id_and_headers_too(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("Mustermann")

    monkeypatch.setattr(client.app.state.boltzformer.datastore(), "list_images", broken)
    own = str(uuid.uuid4())
    for path in ("/boltzformer/api/config", "/datastore/image?image=scan_0"):
        reply = client.get(path, headers={"X-Request-ID": own})
        assert (reply.status_code, reply.json()) == (500, {"detail": "internal error; see the server's log"})
        assert reply.headers.get("x-request-id") == own
        assert reply.headers.get("cache-control") == "no-store"


def test_a_uuid_of_the_client_is_kept_and_nothing_else(client: Any) -> None:
    own = str(uuid.uuid4())
    assert client.get("/health", headers={"X-Request-ID": own}).headers["x-request-id"] == own
    for other in ("Mustermann-Erika", f"{own}x", "1"):
        assert client.get("/health", headers={"X-Request-ID": other}).headers["x-request-id"] != other
    refused = client.get("/info/", headers={"X-Request-ID": own, "Origin": "https://evil.example"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (403, own)


def test_lines_belong_to_their_request() -> None:
    def line(**values: Any) -> dict[str, Any]:
        made = logging.getLogger("test").makeRecord("test", logging.WARNING, "", 0, "two\nlines %d", (1,), None)
        vars(made).update(values)
        text = JsonFormatter().format(made)
        assert "\n" not in text
        content: dict[str, Any] = json.loads(text)
        return content

    plain = line()
    assert (plain["level"], plain["logger"], plain["message"]) == ("warning", "test", "two\nlines 1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", plain["time"])
    assert "request" not in plain
    with recording(RequestRecord("0a")):
        assert line(fields={"status": 200}).items() >= {"request": "0a", "status": 200}.items()
    assert "ValueError: why" in line(exc_info=(ValueError, ValueError("why"), None))["error"]


@pytest.mark.slow
def test_a_server_logs_as_json(studies: Path, checkpoint: Path, tmp_path: Path) -> None:
    options, conf = ["--log-format", "json", "--workspace", str(tmp_path / "work")], {"checkpoint": checkpoint}
    with running(studies, tmp_path, conf, serve=True, options=options) as server:
        reply = server.post("/boltzformer/api/segment", {"image": "scan_0", "prompts": ["liver"], "modality": "CT"})
        asked = reply.headers["x-request-id"]
        missing = server.get("/datastore/image", image="Mustermann")
        assert (reply.status, missing.status) == (200, 404)
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.wait(60)
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert lines[0]["message"].startswith(str(studies))  # of the start, before the web server's configuration
    *_, segment = [line for line in lines if line.get("request") == asked]
    assert (segment["method"], segment["route"], segment["status"]) == ("POST", "/boltzformer/api/segment", 200)
    assert segment["seconds"] > 0
    about = [line for line in lines if line["logger"].endswith("request_log")]
    assert {line["status"] for line in about} >= {200, 404}
    assert "Mustermann" not in json.dumps(about)
    assert not [line for line in lines if "Infer Request" in line["message"]]
    kept = (tmp_path / "work" / "app" / "logs" / "app.log").read_text().splitlines()
    assert [json.loads(line) for line in kept][: len(lines)] == lines
    others = [line for line in server.log.read_text().splitlines() if not line.startswith("{")]
    # MONAI Label and its timers print some lines to standard output, past the logs' configuration.
    assert not [line for line in others if "[timeloop]" not in line and re.search(r"\b(INFO|WARNING|ERROR)\b", line)]
