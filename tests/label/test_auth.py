"""MONAI Label's sign-in: which role each route wants, before the plain ``start_server`` with a realm in small."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import need_module

need_module("monailabel")

import httpx  # noqa: E402
import jwt  # noqa: E402

from boltzformer_monai.label.server.health import PATHS  # noqa: E402
from tests.label.live_server import APP, running  # noqa: E402
from tests.label.realm import PASSWORD, Realm, serve_realm  # noqa: E402

_PATIENCE_S = 300


@pytest.fixture(scope="module")
def realm() -> Iterator[Realm]:
    with serve_realm() as served:
        yield served


@pytest.fixture(scope="module")
def server(
    realm: Realm, studies: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """With the sign-in, and one web page of another origin that may ask."""
    folder = tmp_path_factory.mktemp("auth")
    environment = {
        "MONAI_LABEL_AUTH_ENABLE": "true",
        "MONAI_LABEL_AUTH_REALM_URI": realm.address,
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
    }
    conf = {"checkpoint": checkpoint, "modality": "CT", "origins": "https://viewer.example"}
    with (
        running(studies, folder, conf, environment=environment, ready="/boltzformer/main.js") as started,
        httpx.Client(base_url=started.url, timeout=_PATIENCE_S) as client,
    ):
        yield client


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# Method, path, and the least role that MONAI Label asks for there; ours are like stock ones of their kind.
_ROUTES = (
    ("GET", "/info/", "user"),
    ("GET", "/datastore/?output=all", "user"),
    ("GET", "/datastore/image?image=scan_0", "user"),
    ("GET", "/boltzformer/api/config", "user"),
    ("GET", "/boltzformer/api/complete?q=liv", "user"),
    ("GET", "/boltzformer/api/images/scan_0/scan.nii.gz", "user"),
    ("POST", "/boltzformer/api/segment", "user"),
    ("GET", "/boltzformer/api/results/x/labels.nii.gz", "user"),
    ("GET", "/boltzformer/api/none", "user"),
    ("POST", "/infer/boltzformer", "user"),
    ("POST", "/activelearning/none", "user"),
    ("PUT", "/datastore/label?image=none", "annotator"),
    ("PUT", "/datastore/image/info?image=none", "annotator"),
    ("POST", "/scoring/none", "annotator"),
    ("POST", "/train/none", "admin"),
    ("DELETE", "/datastore/image?id=none", "admin"),
    ("GET", "/model/info/boltzformer", "admin"),
    ("GET", "/logs/?lines=1", "admin"),
    ("POST", "/reload", "admin"),
)
_OTHERS = {"user": "stranger", "annotator": "user", "admin": "annotator"}


@pytest.mark.parametrize(("method", "path", "role"), _ROUTES)
def test_every_route_wants_its_role(server: httpx.Client, realm: Realm, method: str, path: str, role: str) -> None:
    assert server.request(method, path).status_code == 401
    lower = server.request(method, path, headers=_bearer(realm.token(_OTHERS[role])))
    assert lower.status_code == 403
    assert f"monailabel-{role}" in lower.json()["detail"]
    allowed = server.request(method, path, headers=_bearer(realm.token(role)))
    assert allowed.status_code not in (401, 403)
    assert allowed.status_code < 500


def test_who_may_only_read_stores_nothing_by_routes_of_readers(server: httpx.Client, realm: Realm) -> None:
    reader, annotator = (_bearer(realm.token(*roles)) for roles in (("user",), ("user", "annotator")))
    for prefix in ("", "stow/", "qido/", "wado/"):
        path = f"/proxy/dicom/{prefix}studies"
        assert server.get(path, headers=reader).status_code == 404  # the studies are a folder
        assert server.post(path, headers=reader).status_code == 403
        assert server.post(path, headers=annotator).status_code == 404
    params = {"params": json.dumps({"prompts": "liver", "save_label": True, "label_tag": "final"})}
    path = "/infer/boltzformer?image=none&output=json"
    assert server.post(path, data=params, headers=reader).status_code == 403
    assert server.post(path, data=params, headers=annotator).status_code == 404


def test_no_route_is_forgotten(server: httpx.Client, realm: Realm) -> None:
    """Everything that the server says it offers wants a token, but for the sign-in itself and health checks."""
    paths = server.get("/openapi.json").json()["paths"]
    assert len(paths) > 25
    for path, methods in paths.items():
        for method in methods:
            address = path.replace("{", "").replace("}", "")
            if not path.startswith("/auth/") and path not in PATHS:
                assert server.request(method.upper(), address).status_code == 401, (method, path)


def _forged(realm: Realm, kind: str) -> str:
    token = realm.token("admin", "user")
    head, body, signature = token.split(".")
    if kind == "signed by someone else":
        return Realm().token("admin", "user")
    if kind == "expired":
        return realm.token("admin", "user", exp=int(time.time()) - 10)
    if kind == "without an end":
        return realm.token("admin", "user", exp=None)
    if kind == "without a signature":
        return jwt.encode(jwt.decode(token, options={"verify_signature": False}), "", algorithm="none")
    if kind == "changed":
        claims = json.loads(base64.urlsafe_b64decode(body + "=="))
        changed = base64.urlsafe_b64encode(json.dumps({**claims, "sub": "eve"}).encode()).decode().rstrip("=")
        return f"{head}.{changed}.{signature}"
    if kind == "signed with the public key":  # as if that were a password
        content = jwt.decode(token, options={"verify_signature": False})
        parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
                 for part in ({"alg": "HS256", "typ": "JWT"}, content)]  # fmt: skip
        import hashlib
        import hmac

        key = f"-----BEGIN PUBLIC KEY-----\n{realm.public_key}\n-----END PUBLIC KEY-----".encode()
        made = hmac.new(key, ".".join(parts).encode(), hashlib.sha256).digest()
        return ".".join([*parts, base64.urlsafe_b64encode(made).decode().rstrip("=")])
    return kind


@pytest.mark.parametrize(
    "kind",
    [
        "signed by someone else", "expired", "without an end", "without a signature", "changed",
        "signed with the public key", "x", "a.b.c", "." * 5000,
    ],
)  # fmt: skip
def test_bad_tokens_are_refused(server: httpx.Client, realm: Realm, kind: str) -> None:
    reply = server.get("/boltzformer/api/config", headers=_bearer(_forged(realm, kind)))
    assert reply.status_code == 401
    assert "sign in again" in reply.json()["detail"]
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("claims", [{"realm_access": None}, {"realm_access": 5}, {"realm_access": {"roles": "admin"}}])
def test_tokens_without_roles_open_nothing(server: httpx.Client, realm: Realm, claims: dict[str, Any]) -> None:
    reply = server.get("/info/", headers=_bearer(realm.token("user", **claims)))
    assert reply.status_code == 403


def test_a_token_without_a_name_will_do(server: httpx.Client, realm: Realm) -> None:
    assert server.get("/info/", headers=_bearer(realm.token("user", preferred_username=None))).status_code == 200


def test_the_page_itself_needs_no_token_and_can_send_one(server: httpx.Client, realm: Realm) -> None:
    for path in ("", "main.js", "api.js", "page.css"):
        reply = server.get(f"/boltzformer/{path}")
        assert reply.status_code in ((200, 503) if not path else (200,)), path
        assert "scan_0" not in reply.text
    assert 'id="token"' in (APP / "page" / "index.html").read_text()
    assert "Bearer ${token}" in server.get("/boltzformer/api.js").text
    order = {"image": "scan_0", "prompts": ["liver"], "threshold": 0.3, "presence": False}
    signed_in = _bearer(realm.token("user"))
    made = server.post("/boltzformer/api/segment", json=order, headers=signed_in).json()
    results = f"/boltzformer/api/results/{made['result']}/labels.nii.gz"
    assert server.get(results).status_code == 401
    assert server.get(results, headers=signed_in).status_code == 200


def test_signing_in_by_password(server: httpx.Client) -> None:
    assert server.get("/auth/").json()["enabled"] is True
    form = {"username": "ada", "password": PASSWORD}
    token = server.post("/auth/token", data=form).json()["access_token"]
    assert server.get("/auth/token/valid", headers=_bearer(token)).json()["username"] == "ada"
    wrong = server.post("/auth/token", data={**form, "password": "wrong"})
    assert wrong.status_code == 401
    assert wrong.json()["detail"]


def test_the_named_page_of_another_origin_may_ask(server: httpx.Client, realm: Realm) -> None:
    headers = {"Origin": "https://viewer.example", **_bearer(realm.token("user"))}
    reply = server.get("/info/", headers=headers)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://viewer.example"
    wanted = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    preflight = server.options("/info/", headers={"Origin": "https://viewer.example", **wanted})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://viewer.example"
    refused = server.options("/info/", headers={"Origin": "https://evil.example", **wanted})
    assert refused.status_code == 403
    assert server.get("/info/", headers={**headers, "Origin": "https://evil.example"}).status_code == 403


def test_a_realm_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from monailabel.config import settings
    from starlette.exceptions import HTTPException

    from boltzformer_monai.label.server.sign_in import current_user

    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", "http://127.0.0.1:9/realms/none")
    with pytest.raises(HTTPException) as refused:
        current_user("x")
    assert refused.value.status_code == 503
