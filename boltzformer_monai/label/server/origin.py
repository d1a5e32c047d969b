"""Origin checks and security headers (outermost middleware).

Without sign-in the scans are protected only because nobody but this machine reaches the server. A browser on this
machine sends requests for any open page: requests of foreign pages are refused by their ``Origin``, and by
their ``Host`` where a foreign name resolves to this machine (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from boltzformer_monai.label.server.error_responses import INTERNAL_ERROR

_log = logging.getLogger(__name__)

_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[\w.-]+)(:\d{1,5})?")
_MAX_LENGTH = 400
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
}
_NOT_CACHED = {"Cache-Control": "no-store"}
_OHIF_PATHS = ("/ohif", "/static")  # the second holds the files of the first
# OHIF's page loads a font from Google, and its service worker, which it does not start, loads scripts.
_OHIF_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
}


class OriginCheck:
    """ASGI middleware: refuse foreign origins and hosts, add security headers, and give every error as JSON.

    Scans and results are kept out of the browser's cache.

    Args:
        origins: further allowed origins, e.g. ``https://viewer.example.org``.
        hosts: further allowed host names. IP addresses and names without a dot, which nobody can register, are allowed.
        no_sign_in: log a warning at the first request from another machine.
    """

    def __init__(self, app: Any, *, origins: Sequence[str], hosts: Sequence[str], no_sign_in: bool) -> None:
        self.app = app
        self.origins = frozenset(origin.lower().rstrip("/") for origin in origins)
        self.hosts = frozenset(host.lower() for host in hosts)
        self._warn = no_sign_in

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self._warn_of_remote_client(scope)
        send_complete = _CompleteResponse(scope, send)
        if refusal := self._refusal(Headers(scope=scope)):
            await JSONResponse({"detail": refusal}, HTTPStatus.FORBIDDEN)(scope, receive, send_complete)
            return
        try:
            await self.app(scope, receive, send_complete)
        except Exception:
            # Starlette would answer outside of all middleware, and so without the headers and the id of the request.
            if not send_complete.started:
                await JSONResponse({"detail": INTERNAL_ERROR}, 500)(scope, receive, send_complete)
            raise

    def _refusal(self, headers: Headers) -> str:
        host, origin = headers.get("host", "").lower(), headers.get("origin", "").lower()
        if host and not self._allowed_host(host):
            return f"host {host[:80]!a} is not allowed; to allow it, start the server with --conf hosts NAME"
        if origin and origin not in self.origins and not (host and _netloc(origin) == host):
            return f"origin {origin[:80]!a} is not allowed; to allow it, start the server with --conf origins ORIGIN"
        return ""

    def _allowed_host(self, host: str) -> bool:
        parts = _HOST.fullmatch(host)
        name = parts[1].strip("[]") if parts else "."
        return "." not in name or name in self.hosts or _is_address(name)

    def _warn_of_remote_client(self, scope: Any) -> None:
        client = (scope.get("client") or ("",))[0]
        if self._warn and _is_address(client) and not ipaddress.ip_address(client).is_loopback:
            self._warn = False
            _log.warning("request from another machine (%s), which can read and change everything: no sign-in", client)


class _CompleteResponse:
    """``send`` of a request: adds the headers, and turns errors in plain text into ``{"detail": "one line"}``."""

    def __init__(self, scope: Any, send: Any) -> None:
        self.scope = scope
        self.send = send
        self._error_status: int | None = None  # of an error in plain text
        self._headers = MutableHeaders()
        self._text = b""
        self.started = False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            path, status = self.scope["path"], message["status"]
            extra = _OHIF_HEADERS if path.startswith(_OHIF_PATHS) else _NOT_CACHED
            for name, value in {**_HEADERS, **extra}.items():
                headers.setdefault(name, value)
            content_type = headers.get("content-type", "")
            # HTML pages stay, and so do responses of the DICOMweb server.
            kept = content_type.startswith(("application/json", "text/html")) or "/proxy/" in path
            if status >= HTTPStatus.BAD_REQUEST and not kept:
                self._error_status, self._headers = status, headers
                return
            await self.send({**message, "headers": headers.raw})
        elif self._error_status is None:
            await self.send(message)
        elif message["type"] == "http.response.body":
            self._text = (self._text + message.get("body", b""))[:_MAX_LENGTH]
            if not message.get("more_body"):
                await self._send_error(self._error_status)

    async def _send_error(self, status: int) -> None:
        text = " ".join(self._text.decode("utf-8", "replace").split())
        response = JSONResponse({"detail": text or HTTPStatus(status).phrase}, status)
        for name, value in self._headers.items():
            if name not in ("content-length", "content-type"):
                response.headers.setdefault(name, value)
        await self.send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
        await self.send({"type": "http.response.body", "body": response.body})


def _netloc(origin: str) -> str:
    """Host and port of an origin, as a browser writes them into ``Host``."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
