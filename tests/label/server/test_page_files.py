"""The page as it is served: types, headers, caching; who may ask; and what is said where the viewer was not fetched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.needs import missing, need_module

need_module("monailabel")

from starlette.exceptions import HTTPException  # noqa: E402

from boltzformer_monai.label.server import page_files  # noqa: E402
from boltzformer_monai.label.server.origin import OriginCheck  # noqa: E402
from boltzformer_monai.label.server.page_files import PAGE, POLICY, page_file  # noqa: E402


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the page's folder with a viewer in it, in place of the real one."""
    folder = tmp_path / "page"
    (folder / "vendor").mkdir(parents=True)
    for file in PAGE.glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / page_files.VIEWER).write_text("export const viewer = 1;\n")
    monkeypatch.setattr(page_files, "PAGE", folder)
    return folder


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", "text/html; charset=utf-8"),
        ("index.html", "text/html; charset=utf-8"),
        ("main.js", "text/javascript; charset=utf-8"),
        ("vendor/niivue.js", "text/javascript; charset=utf-8"),
        ("page.css", "text/css; charset=utf-8"),
    ],
)
def test_types_and_headers(client: Any, built: Path, path: str, kind: str) -> None:
    reply = client.get(f"/boltzformer/{path}")
    assert reply.status_code == 200
    assert reply.content == (built / (path or "index.html")).read_bytes()
    assert reply.headers["content-type"] == kind
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert reply.headers["content-security-policy"] == POLICY
    assert reply.headers["cache-control"] == "no-cache"


def test_the_page_and_its_server_agree_on_what_it_may_do() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    inside = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert inside is not None
    assert POLICY.startswith(inside[1])
    assert "unsafe" not in POLICY
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=|https?://", text)


def test_an_unchanged_file_is_not_sent_again_a_new_one_is(client: Any, built: Path) -> None:
    first = client.get("/boltzformer/main.js")
    known = {"If-None-Match": first.headers["etag"]}
    again = client.get("/boltzformer/main.js", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    (built / "main.js").write_text("// the next version\n")
    assert client.get("/boltzformer/main.js", headers=known).text == "// the next version\n"


def test_without_the_viewer_the_page_says_how_to_get_it(client: Any, built: Path) -> None:
    (built / page_files.VIEWER).unlink()
    reply = client.get("/boltzformer/")
    assert reply.status_code == 503
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "make page" in reply.text
    assert reply.headers["content-security-policy"] == POLICY
    assert client.get("/boltzformer/vendor/niivue.js").status_code == 404
    assert client.get("/boltzformer/api/config").status_code == 200


@pytest.mark.parametrize(
    "path", ["../app.py", "a/../../x.js", "/etc/x.js", "x.py", "\0.html", "vendor", "%2e.js", "no.js"]
)
def test_nothing_else_is_a_file_of_the_page(path: str, tmp_path: Path) -> None:
    with pytest.raises(HTTPException) as refused:
        page_file(path)
    assert refused.value.status_code == 404


def test_a_link_out_of_the_page_is_not_followed(built: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.js").write_text("secret")
    (built / "link.js").symlink_to(tmp_path / "secret.js")
    with pytest.raises(HTTPException):
        page_file("link.js")


def test_the_real_viewer_is_served(client: Any) -> None:
    if not (PAGE / page_files.VIEWER).is_file():
        missing("the page's viewer was not fetched (make page)")
    assert client.get("/boltzformer/").status_code == 200
    assert len(client.get("/boltzformer/vendor/niivue.js").content) > 10**6


@pytest.mark.parametrize(
    "path", ["/boltzformer/api/config", "/info/", "/datastore/image?image=scan_0", "/boltzformer/"]
)
def test_foreign_pages_may_not_ask(client: Any, path: str) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:3000", "http://testserver.evil.example"):
        reply = client.get(path, headers={"Origin": origin})
        assert reply.status_code == 403
        assert "--conf origins" in reply.json()["detail"]
        assert "access-control-allow-origin" not in reply.headers
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.options(path, headers=preflight).status_code == 403


def test_a_foreign_form_starts_nothing(client: Any) -> None:
    reply = client.post("/train/boltzformer", headers={"Origin": "https://evil.example", "Content-Type": "text/plain"})
    assert reply.status_code == 403


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://testserver"}, {"Origin": "https://testserver"}])
def test_slicer_and_pages_of_this_server_may(client: Any, headers: dict[str, str]) -> None:
    for path in ("/info/", "/boltzformer/api/config", "/ohif/", "/datastore/image?image=scan_0"):
        assert client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("10.1.2.3", 200),
        ("localhost", 200),
        ("radiology-pc:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("a b", 403),
        ("[::1", 403),
    ],
)
def test_names_of_this_server(client: Any, host: str, status: int) -> None:
    reply = client.get("/boltzformer/api/config", headers={"Host": host})
    assert reply.status_code == status
    if status == 403:
        assert "--conf hosts" in reply.json()["detail"]


def test_scans_are_kept_out_of_the_browsers_cache(client: Any) -> None:
    for path in ("/boltzformer/api/images/scan_0/scan.nii.gz", "/datastore/image?image=scan_0", "/info/"):
        headers = client.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none';")
        assert headers["content-security-policy"].endswith("frame-ancestors 'self'")
        assert headers["x-content-type-options"] == "nosniff"


def _gate(path: str = "/", **settings: Any) -> Any:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()
    app.add_api_route(path, lambda: {"fine": True})
    app.add_middleware(OriginCheck, **{"origins": (), "hosts": (), "no_sign_in": True, **settings})
    return TestClient(app, client=("10.0.0.7", 50000))


def test_origins_and_names_can_be_allowed() -> None:
    client = _gate(origins=["https://viewer.example/"], hosts=["Label.example"])
    assert client.get("/", headers={"Origin": "https://viewer.example"}).status_code == 200
    assert client.get("/", headers={"Host": "label.example:8000"}).status_code == 200
    assert client.get("/", headers={"Host": "other.example"}).status_code == 403
    assert client.get("/", headers={"Host": "label.example", "Origin": "https://label.example"}).status_code == 200


@pytest.mark.parametrize(("no_sign_in", "count"), [(True, 1), (False, 0)])
def test_the_log_says_once_that_another_machine_asks(
    no_sign_in: bool, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    client = _gate(no_sign_in=no_sign_in)
    for _ in range(3):
        client.get("/")
    assert sum("another machine" in record.getMessage() for record in caplog.records) == count


def test_every_error_is_json(client: Any) -> None:
    scan = "/boltzformer/api/images/scan_0/scan.nii.gz"
    for reply, status in (
        (client.get(scan, headers={"Range": "bytes=99999999-"}), 416),
        (client.get(scan, headers={"Range": "lines=1"}), 400),
        (client.get("/static/none"), 404),
        (client.get("/none"), 404),
        (client.patch("/info/"), 405),
    ):
        assert reply.status_code == status
        assert reply.json()["detail"].strip()
