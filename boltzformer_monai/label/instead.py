"""What is done in place of some of MONAI Label's functions, or after them; the keys of the table are their names."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse, Response
from monailabel.endpoints import ohif
from starlette.background import BackgroundTask

from boltzformer_monai.label.header_texts import without_texts
from boltzformer_monai.label.proxied import pass_on

__all__ = ["call"]

_Endpoint = Callable[..., Any]
_Call = Callable[[_Endpoint, dict[str, Any]], Any]


def call(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    """Call a stock function with checked arguments, outside any event loop; or do what stands for it."""
    return _INSTEAD.get(endpoint.__name__, _stock)(endpoint, arguments)


def _stock(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    return asyncio.run(endpoint(**arguments))


def _ohif_file(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    """A file of OHIF's; MONAI Label finds only those that lie beside its page, not in one of its folders."""
    path: str = arguments["path"]
    folder = (Path(ohif.__file__).parent / "static" / "ohif").resolve()
    file = (folder / path).resolve()
    if "/" in path and file.is_relative_to(folder) and file.is_file():
        return FileResponse(file)
    return _stock(endpoint, arguments)


def _dataset(endpoint: _Endpoint, arguments: dict[str, Any]) -> Response:
    """The archive was made for this reply; MONAI Label would keep it."""
    reply: FileResponse = _stock(endpoint, arguments)
    reply.background = BackgroundTask(Path(reply.path).unlink, missing_ok=True)
    return reply


def _image(endpoint: _Endpoint, arguments: dict[str, Any]) -> FileResponse:
    """The scan without the texts of its header; the copy was made for this reply."""
    reply: FileResponse = _stock(endpoint, arguments)
    place = Path(reply.path)
    with tempfile.NamedTemporaryFile(suffix=f"-{place.name[-20:]}", delete=False) as file:
        copy = Path(file.name)
    try:
        written = without_texts(place, copy)
    except BaseException:
        copy.unlink()
        raise
    if not written:
        copy.unlink()
        return reply
    gone = BackgroundTask(copy.unlink, missing_ok=True)
    return FileResponse(copy, media_type=reply.media_type, filename=place.name, background=gone)


def _passed_on(service: str) -> _Call:
    def asked(_: _Endpoint, arguments: dict[str, Any]) -> Response:
        return asyncio.run(pass_on(arguments["request"], service, arguments["path"]))

    return asked


_INSTEAD: dict[str, _Call] = {
    "api_download_image": _image,
    "api_get_ohif": _ohif_file,
    "api_download_dataset": _dataset,
    "proxy": _passed_on(""),
    "proxy_wado": _passed_on("wado"),
    "proxy_qido": _passed_on("qido"),
    "proxy_stow": _passed_on("stow"),
}
