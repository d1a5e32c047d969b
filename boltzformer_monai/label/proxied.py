"""What OHIF asks of the DICOMweb server, passed on.

In place of MONAI Label's own function, which drops the question (every search finds all studies) and what the browser
accepts (compressed slices come only from a server that can expand them), and sends the browser's token along.
"""

from __future__ import annotations

from urllib.parse import quote

import requests
from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
from fastapi import Request
from fastapi.responses import Response
from monailabel.config import settings

__all__ = ["pass_on"]

_PATIENCE_S = (10, 600)
_SENT = ("accept", "content-type")


async def pass_on(request: Request, service: str, path: str) -> Response:
    """Ask the DICOMweb server, and answer as it does.

    Args:
        request: GET, or POST with its body.
        service: ``wado``, ``qido`` or ``stow``; empty for a path from the server's root on.
        path: checked.

    Raises:
        requests.RequestException: the server does not answer.
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
        reply = session.request(
            request.method,
            f"{url}?{request.url.query}" if request.url.query else url,
            data=await request.body() or None,
            headers={name: request.headers[name] for name in _SENT if name in request.headers},
            timeout=_PATIENCE_S,
        )
        kind = reply.headers.get("Content-Type")
        return Response(reply.content, reply.status_code, headers={"Content-Type": kind} if kind else None)
