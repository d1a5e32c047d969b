"""Proxy OHIF's requests to the DICOMweb server.

Replaces MONAI Label's own proxy, which drops the query (every search returns all studies) and the ``Accept`` header
(the server would have to decompress every slice), and forwards the browser's token.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import IO
from urllib.parse import quote, unquote, urljoin, urlsplit

import requests
from fastapi import Request
from fastapi.responses import Response
from monailabel.config import settings
from starlette.exceptions import HTTPException

from boltzformer_monai.label.datastore.dicomweb_client import dicomweb_session

_TIMEOUT_S = (10, 600)
_FORWARDED_HEADERS = ("accept", "content-type")
_CONTENT_TYPES = (
    "application/dicom", "application/dicom+json", "application/json", "application/octet-stream", "multipart/related",
    "image/bmp", "image/gif", "image/jls", "image/jp2", "image/jpeg", "image/jph", "image/jphc", "image/jpx",
    "image/png", "image/x-dicom-rle", "image/x-jls", "video/mp4", "video/mpeg", "video/mpeg2",
)  # fmt: skip
"""What a DICOMweb server sends to a viewer; no HTML, whose scripts would run on the origin of the scans."""
_HEADERS = {"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"}
_MAX_REDIRECTS = 3


def forward(request: Request, service: str, path: str, body: IO[bytes] | None) -> Response:
    """Forward a GET or POST request to the DICOMweb server and return its response.

    Args:
        request: without its body.
        service: ``wado``, ``qido`` or ``stow``; empty for a path below the server's root.
        path: checked.
        body: of the request, or None.

    Raises:
        requests.RequestException: the server does not respond.
        HTTPException: 502, it redirects to another server, or the content type is not one of DICOMweb.
    """
    root = str(settings.MONAI_LABEL_STUDIES).rstrip("/")
    prefixes = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    # OHIF requests metadata by its URL for searches.
    prefix = prefixes.get("wado" if path.endswith("metadata") and service == "qido" else service)
    url = "/".join([root, *([prefix] if prefix else []), quote(path, safe="/,:;=@&+$!*'()")])
    with dicomweb_session(root) as session:
        url = f"{url}?{request.url.query}" if request.url.query else url
        headers = {name: request.headers[name] for name in _FORWARDED_HEADERS if name in request.headers}
        for _ in range(_MAX_REDIRECTS + 1):
            response = session.request(
                request.method, url, data=body, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False
            )
            if not response.is_redirect:
                return _response(response)
            url = urljoin(url, response.headers["Location"])
            if request.method != "GET" or not _below(url, root):
                raise HTTPException(502, "the DICOMweb server redirects to another address")
        raise HTTPException(502, "too many redirects by the DICOMweb server")


def _response(response: requests.Response) -> Response:
    kind = response.headers.get("Content-Type", "")
    if kind.partition(";")[0].strip().lower() in _CONTENT_TYPES or not response.content:
        headers = {"Content-Type": kind} if kind else {}
        return Response(response.content, response.status_code, headers={**headers, **_HEADERS})
    if response.status_code >= HTTPStatus.BAD_REQUEST:
        raise HTTPException(response.status_code, f"the DICOMweb server refuses the request: {response.reason}")
    raise HTTPException(502, f"the DICOMweb server responds with {kind[:60]!a}, which is not forwarded")


def _below(url: str, root: str) -> bool:
    target, own = urlsplit(url), urlsplit(root)
    path = target.path
    while path != unquote(path):
        path = unquote(path)
    same = (target.scheme, target.netloc) == (own.scheme, own.netloc)
    return same and ".." not in path.split("/") and path.startswith(f"{own.path}/")
