"""Static files of the browser page, with content type, security headers and ETag."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException

PAGE = Path(__file__).parents[1] / "page"
VIEWER = "vendor/niivue.js"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".wasm": "application/wasm",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Own scripts and styles only, no eval, no workers; NiiVue needs images from data: and blob: URLs."""
# Browsers may cache the files but must revalidate them.
_HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
_NOT_BUILT = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>BoltzFormer: the page's viewer is missing</title></head>
<body>
<h1>The page's viewer is missing</h1>
<p>The server runs, and 3D Slicer and OHIF can use it. This page needs the viewer NiiVue, which was not fetched when
this copy was installed. Run <code>make page</code> in the repository (it needs npm), install the package again unless
it was installed with <code>pip install -e</code>, and reload.</p>
</body>
</html>
"""


def page_file(path: str, known: str = "") -> Response:
    """A file of the page, or index.html for an empty path; ``known`` is the ``If-None-Match`` of the request.

    Raises:
        HTTPException: 404, there is no such file.
    """
    name = path or "index.html"
    kind = TYPES.get(Path(name).suffix.lower())
    file = (PAGE / name).resolve() if kind and re.fullmatch(r"[\w./@-]+", name) and ".." not in name else None
    if file is None or not file.is_relative_to(PAGE.resolve()) or not file.is_file():
        raise HTTPException(404, "no such file")
    if name == "index.html" and not (PAGE / VIEWER).is_file():
        return HTMLResponse(_NOT_BUILT, 503, headers=_HEADERS)
    reply = FileResponse(file, media_type=kind, headers=_HEADERS, stat_result=file.stat())
    if reply.headers["etag"] in known:
        return Response(status_code=304, headers={**_HEADERS, "ETag": reply.headers["etag"]})
    return reply
