"""Checked wrappers in front of MONAI Label's routes, run in work queues.

The stock endpoints trust their arguments: ids are joined to paths, parameters overrule the image, a client's mistake
ends as status 500, and a slow request blocks all others. Each of their routes gets a wrapper with the same signature,
the access check included. It checks the arguments and then calls the stock endpoint, or its replacement here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    login,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.interfaces.utils.app import app_instance
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from boltzformer_monai.label.safe_ids import parse_json
from boltzformer_monai.label.server.dicomweb_proxy import forward
from boltzformer_monai.label.server.error_responses import ErrorResponses
from boltzformer_monai.label.server.header_texts import strip_texts
from boltzformer_monai.label.server.route_checks import CHECKS, Checks
from boltzformer_monai.label.server.uploads import body_of, saved
from boltzformer_monai.label.server.work_queues import WorkQueue, WorkQueues

__all__ = ["guard_stock_routes", "put_in_front"]

_log = logging.getLogger(__name__)

_MODULES = (
    activelearning, batch_infer, datastore, infer, info, logs, model, ohif, proxy, scoring, session, train, wsi_infer,
)  # fmt: skip
_Endpoint = Callable[..., Any]
_Replacement = Callable[[_Endpoint, dict[str, Any]], Any]


def guard_stock_routes(app: FastAPI, checks: Checks, responses: ErrorResponses, queues: WorkQueues) -> None:
    """Put a checked wrapper in front of every stock route."""
    router = APIRouter()
    queue_of = {
        "api_run_inference": queues.segment,
        **dict.fromkeys(("api_add_image", "api_save_label", "api_create_session"), queues.uploads),
        **dict.fromkeys(
            ("api_download_image", "api_download_label", "api_download_dataset", "api_sample"), queues.scans
        ),
        **dict.fromkeys(("proxy", "proxy_wado", "proxy_qido", "proxy_stow"), queues.dicomweb),
    }
    for module in (*_MODULES, login) if settings.MONAI_LABEL_AUTH_ENABLE else _MODULES:
        for route in module.router.routes:
            if isinstance(route, APIRoute):
                queue = queue_of.get(route.endpoint.__name__, queues.fast)
                router.add_api_route(
                    route.path,
                    _guarded(route.endpoint, checks, responses, queue),
                    methods=sorted(route.methods or ()),
                    include_in_schema=False,  # the stock route is in it
                    response_model=None,
                )
    put_in_front(app, router)


def put_in_front(app: FastAPI, router: APIRouter) -> None:
    """Include a router before all routes that the app has."""
    before = len(app.router.routes)
    app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    new = app.router.routes[before:]
    del app.router.routes[before:]
    app.router.routes[:0] = new


def _guarded(endpoint: _Endpoint, checks: Checks, responses: ErrorResponses, queue: WorkQueue) -> _Endpoint:
    async def guarded(**arguments: Any) -> Any:
        return await queue.run(run, arguments, asyncio.get_running_loop())

    name = endpoint.__name__
    check = CHECKS.get(f"{endpoint.__module__.rpartition('.')[2]}.{name}") or CHECKS.get(name)
    call = _REPLACEMENTS.get(name, _stock)

    def run(arguments: dict[str, Any], loop: asyncio.AbstractEventLoop) -> Any:
        try:
            if check is not None:
                check(checks, arguments)
            if (request := arguments.get("request")) is not None:  # the body of a refused request is not read
                with body_of(request, loop) as body:
                    return responses.without_paths(call(endpoint, {**arguments, "body": body}))
            return responses.without_paths(call(endpoint, arguments))
        except Exception as error:  # noqa: BLE001 (a stock endpoint may raise anything; all is logged)
            if (tasks := arguments.get("background_tasks")) is not None:
                asyncio.run(tasks())  # they remove uploads; FastAPI drops them after an error
            known = responses.describe(error)
            if known is None and isinstance(error, FileNotFoundError):
                known = 404, "there is no such file"
            if known is None and isinstance(error, NotImplementedError):
                known = 405, "not supported by the datastore of this server"
            if known is None:
                _log.exception("%s failed", name)
                raise
            if known[0] >= 500:
                _log.warning("%s: %s", name, error)
            raise HTTPException(*known, headers=getattr(error, "headers", None)) from error

    # Not functools.wraps: FastAPI would follow __wrapped__ to the stock endpoint.
    guarded.__name__, guarded.__doc__ = name, endpoint.__doc__
    guarded.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return guarded


def _stock(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    return asyncio.run(endpoint(**arguments))


def _ohif_file(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    """A file of OHIF; the stock endpoint finds none in folders below its page."""
    path: str = arguments["path"]
    folder = (Path(ohif.__file__).parent / "static" / "ohif").resolve()
    file = (folder / path).resolve()
    if "/" in path and file.is_relative_to(folder) and file.is_file():
        return FileResponse(file)
    return _stock(endpoint, arguments)


def _infer(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    """Keep an uploaded scan only while it is needed; the stock endpoint leaves its file when the disk is full."""
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


def _create_session(_: _Endpoint, arguments: dict[str, Any]) -> dict[str, Any]:
    sessions = app_instance().sessions()
    if sessions is None:
        raise HTTPException(406, "sessions are switched off on this server")
    name, session = sessions.add_files(arguments["files"], arguments["expiry"])
    return {"session_id": name, "session_info": session.to_json()}


def _saved(upload: UploadFile) -> AbstractContextManager[Path]:
    name = str(upload.filename)  # set by the check
    return saved(upload.file, name[name.index(".") :])


def _download_dataset(endpoint: _Endpoint, arguments: dict[str, Any]) -> Response:
    """Delete the ZIP file after the response; the stock endpoint keeps it."""
    response: FileResponse = _stock(endpoint, arguments)
    response.background = BackgroundTask(Path(response.path).unlink, missing_ok=True)
    return response


def _download_image(endpoint: _Endpoint, arguments: dict[str, Any]) -> FileResponse:
    """Send the scan without the free texts of its header: a temporary copy, if there are any."""
    response: FileResponse = _stock(endpoint, arguments)
    scan = Path(response.path)
    with tempfile.NamedTemporaryFile(suffix=f"-{scan.name[-20:]}", delete=False) as file:
        copy = Path(file.name)
    try:
        written = strip_texts(scan, copy)
    except BaseException:
        copy.unlink()
        raise
    if not written:
        copy.unlink()
        return response
    delete = BackgroundTask(copy.unlink, missing_ok=True)
    return FileResponse(copy, media_type=response.media_type, filename=scan.name, background=delete)


def _forwarded(service: str) -> _Replacement:
    def proxy_request(_: _Endpoint, arguments: dict[str, Any]) -> Response:
        return forward(arguments["request"], service, arguments["path"], arguments["body"])

    return proxy_request


_REPLACEMENTS: dict[str, _Replacement] = {
    "api_add_image": _add_image,
    "api_create_session": _create_session,
    "api_download_dataset": _download_dataset,
    "api_download_image": _download_image,
    "api_get_ohif": _ohif_file,
    "api_run_inference": _infer,
    "api_save_label": _save_label,
    "proxy": _forwarded(""),
    "proxy_wado": _forwarded("wado"),
    "proxy_qido": _forwarded("qido"),
    "proxy_stow": _forwarded("stow"),
}
