"""What OHIF asks of the DICOMweb server, passed on.

In place of MONAI Label's own function, which drops the question (every search finds all studies) and what the browser
accepts (compressed slices come only from a server that can expand them), and sends the browser's token along.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import IO
from urllib.parse import quote, unquote, urljoin, urlsplit

import requests
from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
from fastapi import Request
from fastapi.responses import Response
from monailabel.config import settings
from starlette.exceptions import HTTPException

__all__ = ["forward"]

_PATIENCE_S = (10, 600)
_SENT = ("accept", "content-type")
_TAKEN = (
    "application/dicom", "application/dicom+json", "application/json", "application/octet-stream", "multipart/related",
    "image/bmp", "image/gif", "image/jls", "image/jp2", "image/jpeg", "image/jph", "image/jphc", "image/jpx",
    "image/png", "image/x-dicom-rle", "image/x-jls", "video/mp4", "video/mpeg", "video/mpeg2",
)  # fmt: skip
"""What an archive answers to a viewer; nothing that a browser would show as a page, which could run scripts here."""
_POLICY = {"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"}
_MOST_REDIRECTS = 3


def forward(request: Request, service: str, path: str, body: IO[bytes] | None) -> Response:
    """Ask the DICOMweb server, and answer as it does.

    Args:
        request: GET or POST.
        service: ``wado``, ``qido`` or ``stow``; empty for a path from the server's root on.
        path: checked.
        body: of the request, if it has one.

    Raises:
        requests.RequestException: the server does not answer.
        HTTPException: 502, it leads elsewhere, or answers with what is no part of DICOMweb.
    """
    root = str(settings.MONAI_LABEL_STUDIES).rstrip("/")
    prefixes = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    # OHIF has one address for all that it retrieves and stores, and asks for metadata by the one for searches.
    prefix = prefixes.get("wado" if path.endswith("metadata") and service == "qido" else service)
    url = "/".join([root, *([prefix] if prefix else []), quote(path, safe="/,:;=@&+$!*'()")])
    with create_session_from_gcp_credentials() if "googleapis.com" in root else requests.Session() as session:
        if settings.MONAI_LABEL_DICOMWEB_USERNAME and settings.MONAI_LABEL_DICOMWEB_PASSWORD:
            session.auth = (settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD)
        url = f"{url}?{request.url.query}" if request.url.query else url
        headers = {name: request.headers[name] for name in _SENT if name in request.headers}
        for _ in range(_MOST_REDIRECTS + 1):
            reply = session.request(
                request.method, url, data=body, headers=headers, timeout=_PATIENCE_S, allow_redirects=False
            )
            if not reply.is_redirect:
                return _passed(reply)
            url = urljoin(url, reply.headers["Location"])
            if request.method != "GET" or not _below(url, root):
                raise HTTPException(502, "the DICOMweb server leads to an address that is not its own")
        raise HTTPException(502, "the DICOMweb server leads from one address to the next")


def _passed(reply: requests.Response) -> Response:
    kind = reply.headers.get("Content-Type", "")
    if kind.partition(";")[0].strip().lower() in _TAKEN or not reply.content:
        headers = {"Content-Type": kind} if kind else {}
        return Response(reply.content, reply.status_code, headers={**headers, **_POLICY})
    if reply.status_code >= HTTPStatus.BAD_REQUEST:
        raise HTTPException(reply.status_code, f"the server behind this one refuses it: {reply.reason}")
    raise HTTPException(502, f"the DICOMweb server answers with {kind[:60]!a}, which is not passed on")


def _below(url: str, root: str) -> bool:
    asked, own = urlsplit(url), urlsplit(root)
    path = asked.path
    while path != unquote(path):
        path = unquote(path)
    same = (asked.scheme, asked.netloc) == (own.scheme, own.netloc)
    return same and ".." not in path.split("/") and path.startswith(f"{own.path}/")
