"""Checked wrappers in front of MONAI Label's routes, run in work queues.

The stock endpoints trust their arguments: ids are joined to paths, parameters overrule the image, a client's mistake
ends as status 500, and a slow request blocks all others. Each of their routes gets a wrapper with the same signature,
the access check included. It checks the arguments and then calls the stock endpoint, or its replacement here.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from starlette.exceptions import HTTPException

from boltzformer_monai.errors import BoltzFormerError
from boltzformer_monai.label.request_record import changing, started_by
from boltzformer_monai.label.safe_ids import image_path, parse_json
from boltzformer_monai.label.server.dicomweb_proxy import forward
from boltzformer_monai.label.server.error_responses import ErrorResponses
from boltzformer_monai.label.server.header_texts import TemporaryFileResponse, scan_response
from boltzformer_monai.label.server.route_checks import Checks
from boltzformer_monai.label.server.uploads import body_of, saved
from boltzformer_monai.label.server.work_queues import WorkQueues

_log = logging.getLogger(__name__)

_MODULES = (
    activelearning, batch_infer, datastore, infer, info, logs, model, ohif, proxy, scoring, session, train, wsi_infer,
)  # fmt: skip
_Endpoint = Callable[..., Any]


def guard_stock_routes(app: FastAPI, checks: Checks, responses: ErrorResponses, queues: WorkQueues) -> None:
    """Put a checked wrapper in front of every stock route."""
    router = APIRouter()
    for module in (*_MODULES, login) if settings.MONAI_LABEL_AUTH_ENABLE else _MODULES:
        for route in module.router.routes:
            if isinstance(route, APIRoute):
                router.add_api_route(
                    route.path,
                    _guarded(route.endpoint, checks, responses, queues),
                    methods=sorted(route.methods or ()),
                    include_in_schema=False,  # the stock route is in it
                    response_model=None,
                )
    put_in_front(app, router, settings.MONAI_LABEL_API_STR)


def put_in_front(app: FastAPI, router: APIRouter, prefix: str = "") -> None:
    """Include a router before all routes that the app has."""
    before = len(app.router.routes)
    app.include_router(router, prefix=prefix)
    new = app.router.routes[before:]
    del app.router.routes[before:]
    app.router.routes[:0] = new


def _guarded(endpoint: _Endpoint, checks: Checks, responses: ErrorResponses, queues: WorkQueues) -> _Endpoint:
    name = endpoint.__name__
    check, queue, call = _ROUTES.get(f"{endpoint.__module__.rpartition('.')[2]}.{name}") or _ROUTES.get(name, _Route())

    async def guarded(**arguments: Any) -> Any:
        return await getattr(queues, queue).run(run, arguments, asyncio.get_running_loop())

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
    with saved(upload) as path:
        return _stock(endpoint, {**arguments, "file": None, "image": str(path)})


def _sample(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    """Note for the audit log which scan was chosen: that it was is kept in the scan's metadata."""
    chosen, app = _stock(endpoint, arguments), app_instance()
    if chosen:
        with contextlib.suppress(BoltzFormerError):  # it may be gone already
            app.service.note(image_path(app.datastore(), chosen["id"]))
    return chosen


def _job(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    """Tell a job who started it: its steps have lines in the audit log."""
    return _stock(endpoint, {**arguments, "params": {**(arguments["params"] or {}), **started_by()}})


def _add_image(_: _Endpoint, arguments: dict[str, Any]) -> dict[str, Any]:
    info = parse_json(arguments["params"], "params")
    if user := arguments["user"].username:
        info["user"] = user
    with saved(arguments["file"]) as path:
        return {"image": app_instance().datastore().add_image(arguments["image"], str(path), info)}


def _save_label(_: _Endpoint, arguments: dict[str, Any]) -> dict[str, Any]:
    app, image = app_instance(), arguments["image"]
    info = parse_json(arguments["params"], "params")
    with saved(arguments["label"]) as path:
        label = app.datastore().save_label(image, str(path), arguments["tag"], info)
    return {**(app.on_save_label(image, label) or {}), "image": image, "label": label}


def _create_session(_: _Endpoint, arguments: dict[str, Any]) -> dict[str, Any]:
    sessions = app_instance().sessions()
    if sessions is None:
        raise HTTPException(406, "sessions are switched off on this server")
    with changing("session added"):
        name, session = sessions.add_files(arguments["files"], arguments["expiry"])
    return {"session_id": name, "session_info": session.to_json()}


def _remove_session(endpoint: _Endpoint, arguments: dict[str, Any]) -> Any:
    with changing("session removed"):
        return _stock(endpoint, arguments)


def _download_dataset(endpoint: _Endpoint, arguments: dict[str, Any]) -> Response:
    """Delete the ZIP file after the response; the stock endpoint keeps it."""
    response: FileResponse = _stock(endpoint, arguments)
    return TemporaryFileResponse(response.path, media_type=response.media_type, filename=response.filename)


def _download_image(endpoint: _Endpoint, arguments: dict[str, Any]) -> FileResponse:
    response: FileResponse = _stock(endpoint, arguments)
    return scan_response(Path(response.path), media_type=response.media_type, filename=response.filename)


def _forward(service: str, _: _Endpoint, arguments: dict[str, Any]) -> Response:
    request, path, body = (arguments[name] for name in ("request", "path", "body"))
    stores = request.method == "POST"  # by whatever prefix
    with changing("sent to the DICOMweb server") if stores else contextlib.nullcontext():
        return forward(request, service, path, body)


class _Route(NamedTuple):
    """What is done for a stock endpoint."""

    check: Callable[[Checks, dict[str, Any]], None] | None = None
    queue: str = "fast"
    """Its attribute of :class:`WorkQueues`."""
    call: Callable[[_Endpoint, dict[str, Any]], Any] = _stock


_ROUTES: dict[str, _Route] = {
    "api_run_inference": _Route(Checks.infer, "segment", _infer),
    "api_sample": _Route(Checks.strategy, "scans", _sample),
    "api_run_method": _Route(Checks.scoring, call=_job),
    "api_run_model": _Route(Checks.train, call=_job),
    "batch_infer.api_run": _Route(Checks.batch, call=_job),
    "train.api_run": _Route(Checks.train, call=_job),
    "scoring.api_run": _Route(Checks.scoring, call=_job),
    "api_add_image": _Route(Checks.new_image, "uploads", _add_image),
    "api_remove_image": _Route(Checks.image_by_id),
    "api_check_image": _Route(Checks.image),
    "api_download_image": _Route(Checks.image, "scans", _download_image),
    "api_get_image_info": _Route(Checks.image),
    "api_put_image_info": _Route(Checks.image),
    "api_save_label": _Route(Checks.new_label, "uploads", _save_label),
    "api_remove_label": _Route(Checks.label),
    "api_check_label": _Route(Checks.label),
    "api_download_label": _Route(Checks.label, "scans"),
    "api_get_label_info": _Route(Checks.label),
    "api_put_label_info": _Route(Checks.label),
    "api_update_label_info": _Route(Checks.label),
    "api_download_dataset": _Route(Checks.archive, "scans", _download_dataset),
    "api_get_session": _Route(Checks.session),
    "api_remove_session": _Route(Checks.session, call=_remove_session),
    "api_create_session": _Route(Checks.new_session, "uploads", _create_session),
    "api_download_model": _Route(Checks.model_name),
    "api_model_info": _Route(Checks.model_name),
    "api_update_model": _Route(Checks.refused),
    "api_delete_model": _Route(Checks.refused),
    "api_run_wsi_inference": _Route(Checks.no_slides),
    "api_run_wsi_v2_inference": _Route(Checks.no_slides),
    "proxy_wado": _Route(Checks.proxy, "dicomweb", partial(_forward, "wado")),
    "proxy_qido": _Route(Checks.proxy, "dicomweb", partial(_forward, "qido")),
    "proxy_stow": _Route(Checks.proxy, "dicomweb", partial(_forward, "stow")),
    "proxy": _Route(Checks.proxy, "dicomweb", partial(_forward, "")),
    "api_get_logs": _Route(Checks.log),
    "api_get_ohif": _Route(Checks.static, call=_ohif_file),
}
"""By the name of the endpoint's function, or its module's and its own."""
