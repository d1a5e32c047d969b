"""A sign-in server in small: its key, where MONAI Label looks for it, and tokens that it signs."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PASSWORD = "correct horse"


class Realm:
    """A key, and the tokens that it signs."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.address = ""

    @property
    def public_key(self) -> str:
        """As the realm publishes it: DER in base64."""
        der = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(der).decode()

    def token(self, *roles: str, **claims: Any) -> str:
        """A token of an owner with these roles, valid for ten minutes."""
        content = {
            "preferred_username": "ada",
            "exp": int(time.time()) + 600,
            "realm_access": {"roles": [f"monailabel-{role}" for role in roles]},
            **claims,
        }
        wanted = {name: value for name, value in content.items() if value is not None}
        return jwt.encode(wanted, self.key, algorithm="RS256")


class _Handler(BaseHTTPRequestHandler):
    realm: Realm

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _json(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/realms/test":
            self._json(200, {"realm": "test", "public_key": self.realm.public_key})
        elif self.path == "/realms/test/.well-known/openid-configuration":
            self._json(200, {"token_endpoint": f"{self.realm.address}/token"})
        else:
            self._json(404, {})

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if form.get("password") == [PASSWORD]:
            self._json(200, {"access_token": self.realm.token("user"), "token_type": "bearer"})
        else:
            self._json(401, {"error": "invalid_grant"})


@contextmanager
def serve_realm() -> Iterator[Realm]:
    """A realm on a free port of this machine; it stops when the block is left."""
    realm = Realm()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"realm": realm}))
    realm.address = f"http://127.0.0.1:{server.server_port}/realms/test"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield realm
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
