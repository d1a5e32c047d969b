"""What comes from elsewhere never runs here: stock pages with scripts of other servers, and what an archive answers."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.needs import need_module

need_module("monailabel")

from starlette.exceptions import HTTPException  # noqa: E402

from boltzformer_monai.label.server.route_checks import Checks  # noqa: E402
from boltzformer_monai.label.server.uploads import UploadLimit  # noqa: E402
from boltzformer_monai.label.server.work_queues import WorkQueue  # noqa: E402

_PAGE = b"<html><script>alert(document.domain)</script></html>"
_FILES = {
    "/dicom-web/studies": ("application/dicom+json", b"[]"),
    "/dicom-web/frame": ('multipart/related; type="image/jp2"; boundary=b', b"--b--"),
    "/dicom-web/frame.jpg": ("image/jpeg", b"\xff\xd8"),
    "/dicom-web/page": ("text/html", _PAGE),
    "/dicom-web/Page": ("TEXT/HTML; charset=utf-8", _PAGE),
    "/dicom-web/xml": ("application/dicom+xml", _PAGE),
    "/dicom-web/svg": ("image/svg+xml", _PAGE),
    "/dicom-web/script": ("text/javascript", b"alert(1)"),
    "/dicom-web/unnamed": ("", _PAGE),
    "/elsewhere": ("application/json", b'"secret"'),
}
_LEADS = {
    "/dicom-web/moved": "/dicom-web/studies",
    "/dicom-web/out": "/elsewhere",
    "/dicom-web/dots": "/dicom-web/../elsewhere",
    "/dicom-web/hidden-dots": "/dicom-web/%252e%252e/elsewhere",
    "/dicom-web/beside": "/dicom-web-2/studies",
    "/dicom-web/other": "http://169.254.169.254/latest/meta-data",
    "/dicom-web/file": "file:///etc/passwd",
    "/dicom-web/loop": "/dicom-web/loop",
}


_SENT: list[bytes] = []


class _Archive(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, content = _FILES.get(self.path, ("text/html", _PAGE))
        self.send_response(302 if self.path in _LEADS else 200 if self.path in _FILES else 404)
        if self.path in _LEADS:
            self.send_header("Location", _LEADS[self.path])
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        if length := int(self.headers.get("Content-Length", 0)):
            _SENT.append(self.rfile.read(length))
        self.do_GET()

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def proxy(client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client of a server that passes on to an archive."""
    from monailabel.config import settings

    archive = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Archive)
    thread = threading.Thread(target=archive.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{archive.server_port}/dicom-web")
    for name in ("WADO", "QIDO", "STOW"):
        monkeypatch.setattr(settings, f"MONAI_LABEL_{name}_PREFIX", "")
    monkeypatch.setattr(Checks, "_remote", lambda self: True)
    yield client
    archive.shutdown()
    archive.server_close()


@pytest.mark.parametrize("path", ["studies", "frame", "frame.jpg", "moved"])
def test_what_a_viewer_needs_is_passed_on(proxy: Any, path: str) -> None:
    reply = proxy.get(f"/proxy/dicom/wado/{path}")
    kind, content = _FILES[_LEADS.get(f"/dicom-web/{path}", f"/dicom-web/{path}")]
    assert (reply.status_code, reply.headers["content-type"], reply.content) == (200, kind, content)
    assert reply.headers["content-security-policy"].startswith("sandbox")
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["page", "Page", "xml", "svg", "script", "unnamed"])
def test_what_a_browser_would_run_is_not(proxy: Any, path: str) -> None:
    for service in ("wado/", "qido/", "stow/", ""):
        reply = proxy.get(f"/proxy/dicom/{service}{path}")
        assert reply.status_code == 502
        assert reply.headers["content-type"] == "application/json"
        assert "alert" not in reply.text


def test_an_error_page_becomes_a_line(proxy: Any) -> None:
    reply = proxy.get("/proxy/dicom/wado/nothing")
    assert (reply.status_code, reply.json()) == (404, {"detail": "the DICOMweb server refuses the request: Not Found"})


@pytest.mark.parametrize("path", ["out", "dots", "hidden-dots", "beside", "other", "file", "loop"])
def test_no_one_is_led_out_of_the_archive(proxy: Any, path: str) -> None:
    reply = proxy.get(f"/proxy/dicom/wado/{path}", follow_redirects=False)
    assert reply.status_code == 502
    assert "secret" not in reply.text
    assert "redirects" in reply.json()["detail"]


def test_what_is_sent_is_not_led_on(proxy: Any) -> None:
    assert proxy.post("/proxy/dicom/stow/moved", content=b"a scan").status_code == 502


@pytest.mark.parametrize("pieces", [1, 3000])
def test_a_scan_that_is_sent_arrives_whole(proxy: Any, pieces: int) -> None:
    body = b"--b\r\n\r\n" + bytes(range(256)) * pieces + b"--b--"
    parts = {"content-type": 'multipart/related; type="application/dicom"; boundary=b'}
    _SENT.clear()
    assert proxy.post("/proxy/dicom/stow/studies", content=body, headers=parts).status_code == 200
    assert [body] == _SENT


def _posted(app: Any, kind: str, length: int) -> tuple[int, int]:
    """Status of a body that is passed on, and how many of its pieces were read."""
    piece, status = b"x" * 2**16, [0]
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": piece, "more_body": read * len(piece) < length}

    async def send(message: dict[str, Any]) -> None:
        status[0] = message.get("status", status[0])

    headers = [(b"host", b"testserver"), (b"content-type", kind.encode()), (b"content-length", str(length).encode())]
    scope = {
        "type": "http", "method": "POST", "path": "/proxy/dicom/stow/x", "raw_path": b"/proxy/dicom/stow/x",
        "query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http", "root_path": "",
        "server": ("testserver", 80), "client": ("127.0.0.1", 50000),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return status[0], read


def test_what_is_not_passed_on_is_not_read(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = "multipart/related; boundary=b"
    assert _posted(client.app, parts, 2**20) == (404, 0)  # the studies are a folder

    async def full(*_: Any) -> None:
        raise HTTPException(429, "wait")

    monkeypatch.setattr(Checks, "_remote", lambda self: True)
    monkeypatch.setattr(WorkQueue, "run", full)
    assert _posted(client.app, parts, 2**20) == (429, 0)


def test_only_scans_that_are_sent_may_be_large() -> None:
    async def taken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    limited = UploadLimit(taken, limit=2**30)
    assert _posted(limited, "multipart/related; boundary=b", 2**30)[0] == 200
    assert _posted(limited, "application/dicom+json", 2**30) == (413, 0)


def test_the_first_page_is_ours(client: Any) -> None:
    assert client.get("/", follow_redirects=False).headers["location"] == "/boltzformer/"
    assert client.get("/docs").json()["openapi"]


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/boltzformer/", "/ohif/", "/logs/?html=true", "/nothing"])
def test_every_page_says_what_it_may_load(client: Any, path: str) -> None:
    reply = client.get(path)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy or "default-src 'self'" in policy
    assert "//cdn" not in reply.text
    assert "https://ajax" not in reply.text
