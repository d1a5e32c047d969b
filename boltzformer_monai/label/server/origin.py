"""Who may ask the web server at all, and what every reply carries; in front of everything else.

Without a sign-in, what protects the scans is that only this machine reaches the server. A web browser on this machine
reaches it too, on behalf of any page that it shows, so foreign pages are turned away here: by their Origin, and by the
Host that they ask for where a page's own name was made to point to this machine (DNS rebinding).
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

_log = logging.getLogger(__name__)

_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[\w.-]+)(:\d{1,5})?")
_LONGEST_REASON = 400
_REPLIES = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
}
_UNCACHED = {"Cache-Control": "no-store"}
_OF_THE_STOCK_PAGES = ("/ohif", "/static")  # the second holds the files of the first
# OHIF's page asks Google for a font, and its service worker, which it does not start, for scripts.
_OF_OHIF = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
}


class OriginCheck:
    """ASGI middleware: turns away foreign web pages, and completes replies.

    Every error in plain words that is not yet ``{"detail": "one line"}`` becomes that; scans and results are kept
    out of the browser's cache.

    Args:
        app: the next application.
        origins: web pages of other origins that may ask, e.g. ``https://viewer.example.org``.
        hosts: names of this server. Addresses, and names without a dot, which no one can register, need not be named.
        open_to_all: whether no sign-in is needed; then the log says when another machine asks.
    """

    def __init__(self, app: Any, *, origins: Sequence[str], hosts: Sequence[str], open_to_all: bool) -> None:
        self.app = app
        self.origins = frozenset(origin.lower().rstrip("/") for origin in origins)
        self.hosts = frozenset(host.lower() for host in hosts)
        self._warn = open_to_all

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self._warn_of_strangers(scope)
        complete = _Completed(scope, send)
        if refusal := self._refusal(Headers(scope=scope)):
            await JSONResponse({"detail": refusal}, HTTPStatus.FORBIDDEN)(scope, receive, complete)
            return
        await self.app(scope, receive, complete)

    def _refusal(self, headers: Headers) -> str:
        host, origin = headers.get("host", "").lower(), headers.get("origin", "").lower()
        if host and not self._own(host):
            return f"this server does not go by the name {host[:80]!a}; if it should, start it with --conf hosts NAME"
        if origin and origin not in self.origins and not (host and _place(origin) == host):
            return (
                f"web pages of {origin[:80]!a} may not ask this server; "
                "if they should, start it with --conf origins ORIGIN"
            )
        return ""

    def _own(self, host: str) -> bool:
        parts = _HOST.fullmatch(host)
        name = parts[1].strip("[]") if parts else "."
        return "." not in name or name in self.hosts or _is_address(name)

    def _warn_of_strangers(self, scope: Any) -> None:
        client = (scope.get("client") or ("",))[0]
        if self._warn and _is_address(client) and not ipaddress.ip_address(client).is_loopback:
            self._warn = False
            _log.warning("another machine asks this server (%s), and needs no sign-in to read and change all", client)


class _Completed:
    """``send`` of a request, with the headers that every reply carries, and errors as JSON."""

    def __init__(self, scope: Any, send: Any) -> None:
        self.scope = scope
        self.send = send
        self._error: int | None = None  # status of an error that has to be said in JSON
        self._headers = MutableHeaders()
        self._text = b""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            path, status = self.scope["path"], message["status"]
            extra = _OF_OHIF if path.startswith(_OF_THE_STOCK_PAGES) else _UNCACHED
            for name, value in {**_REPLIES, **extra}.items():
                headers.setdefault(name, value)
            kind = headers.get("content-type", "")
            # A page for people stays one, and what a DICOMweb server answers is passed on as it is.
            told = kind.startswith(("application/json", "text/html")) or "/proxy/" in path
            if status >= HTTPStatus.BAD_REQUEST and not told:
                self._error, self._headers = status, headers
                return
            await self.send({**message, "headers": headers.raw})
        elif self._error is None:
            await self.send(message)
        elif message["type"] == "http.response.body":
            self._text = (self._text + message.get("body", b""))[:_LONGEST_REASON]
            if not message.get("more_body"):
                await self._send_error(self._error)

    async def _send_error(self, status: int) -> None:
        text = " ".join(self._text.decode("utf-8", "replace").split())
        reply = JSONResponse({"detail": text or HTTPStatus(status).phrase}, status)
        for name, value in self._headers.items():
            if name not in ("content-length", "content-type"):
                reply.headers.setdefault(name, value)
        await self.send({"type": "http.response.start", "status": status, "headers": reply.raw_headers})
        await self.send({"type": "http.response.body", "body": reply.body})


def _place(origin: str) -> str:
    """Host and port of an origin, as a browser writes them into Host."""
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
