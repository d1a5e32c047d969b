"""What is done in place of some of MONAI Label's functions, or after them; the keys of the table are their names."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse, Response
from monailabel.endpoints import ohif
from monailabel.interfaces.utils.app import app_instance
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from boltzformer_monai.label.safe_ids import parse_json
from boltzformer_monai.label.server.dicomweb_proxy import forward
from boltzformer_monai.label.server.header_texts import strip_texts
from boltzformer_monai.label.server.uploads import saved

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


def _with_upload(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    """An uploaded scan has a file only as long as it is needed; MONAI Label's stays behind when the disk is full."""
    if (upload := arguments.get("file")) is None:
        return _stock(endpoint, arguments)
    with _saved(upload) as path:
        return _stock(endpoint, {**arguments, "file": None, "image": str(path)})


def _add_image(_: _Endpoint, arguments: dict[str, Any]) -> dict[str, Any]:
    info = parse_json(arguments["params"], "params")
    if user := arguments["user"].username:
        info["user"] = user
    with _saved(arguments["file"]) as path:
        return {"image": app_instance().datastore().add_image(arguments["image"], str(path), info)}


def _save_label(_: _Endpoint, arguments: dict[str, Any]) -> dict[str, Any]:
    app, image = app_instance(), arguments["image"]
    info = parse_json(arguments["params"], "params")
    with _saved(arguments["label"]) as path:
        label = app.datastore().save_label(image, str(path), arguments["tag"], info)
    return {**(app.on_save_label(image, label) or {}), "image": image, "label": label}


def _add_session(_: _Endpoint, arguments: dict[str, Any]) -> dict[str, Any]:
    sessions = app_instance().sessions()
    if sessions is None:
        raise HTTPException(406, "this server keeps no sessions")
    name, session = sessions.add_files(arguments["files"], arguments["expiry"])
    return {"session_id": name, "session_info": session.to_json()}


def _saved(upload: UploadFile) -> AbstractContextManager[Path]:
    name = str(upload.filename)  # as the checks have left it
    return saved(upload.file, name[name.index(".") :])


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
        written = strip_texts(place, copy)
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
        return forward(arguments["request"], service, arguments["path"], arguments["body"])

    return asked


_INSTEAD: dict[str, _Call] = {
    "api_add_image": _add_image,
    "api_create_session": _add_session,
    "api_download_image": _image,
    "api_get_ohif": _ohif_file,
    "api_run_inference": _with_upload,
    "api_save_label": _save_label,
    "api_download_dataset": _dataset,
    "proxy": _passed_on(""),
    "proxy_wado": _passed_on("wado"),
    "proxy_qido": _passed_on("qido"),
    "proxy_stow": _passed_on("stow"),
}
