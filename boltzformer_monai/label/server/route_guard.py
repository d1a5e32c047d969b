"""MONAI Label's own routes, checked before they run, and in threads: one long request does not block the others.

The stock functions trust their arguments: ids are joined to paths, parameters overrule the image, mistakes end as 500.
Here every route gets a twin in front of it with the same signature, the stock one's access check included; the twin
checks the arguments and then calls the stock function.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI
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
from starlette.exceptions import HTTPException

from boltzformer_monai.label.server.error_responses import ErrorResponses
from boltzformer_monai.label.server.instead import call
from boltzformer_monai.label.server.route_checks import CHECKS, Checks
from boltzformer_monai.label.server.uploads import body_of
from boltzformer_monai.label.server.work_queues import WorkQueue, WorkQueues

_log = logging.getLogger(__name__)

_MODULES = (
    activelearning, batch_infer, datastore, infer, info, logs, model, ohif, proxy, scoring, session, train, wsi_infer,
)  # fmt: skip


def guard_stock_routes(app: FastAPI, checks: Checks, replies: ErrorResponses, queues: WorkQueues) -> None:
    """Put a checked twin in front of every stock route; errors are told as the replies say."""
    router = APIRouter()
    of_their_own = {
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
                router.add_api_route(
                    route.path,
                    _twin(route.endpoint, checks, replies, of_their_own.get(route.endpoint.__name__, queues.fast)),
                    methods=sorted(route.methods or ()),
                    include_in_schema=False,  # the stock route is in it
                    response_model=None,
                )
    put_in_front(app, router)


def put_in_front(app: FastAPI, router: APIRouter) -> None:
    """Include a router so that its routes are tried first."""
    before = len(app.router.routes)
    app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    new = app.router.routes[before:]
    del app.router.routes[before:]
    app.router.routes[:0] = new


def _twin(
    endpoint: Callable[..., Any], checks: Checks, replies: ErrorResponses, queue: WorkQueue
) -> Callable[..., Any]:
    async def twin(**arguments: Any) -> Any:
        return await queue.run(run, arguments, asyncio.get_running_loop())

    name = endpoint.__name__
    check = CHECKS.get(f"{endpoint.__module__.rpartition('.')[2]}.{name}") or CHECKS.get(name)

    def run(arguments: dict[str, Any], loop: asyncio.AbstractEventLoop) -> Any:
        try:
            if check is not None:
                check(checks, arguments)
            if (request := arguments.get("request")) is not None:  # only now: what is refused is not read
                with body_of(request, loop) as body:
                    return replies.cleaned(call(endpoint, {**arguments, "body": body}))
            return replies.cleaned(call(endpoint, arguments))
        except Exception as error:  # noqa: BLE001 (a stock function may raise anything; all is logged)
            if (after := arguments.get("background_tasks")) is not None:
                asyncio.run(after())  # they remove uploads, and FastAPI forgets them after an error
            known = replies.problem(error)
            if known is None and isinstance(error, FileNotFoundError):
                known = 404, "there is no such file here"
            if known is None and isinstance(error, NotImplementedError):
                known = 405, "not with scans from where this server has them"
            if known is None:
                _log.exception("%s failed", name)
                raise
            if known[0] >= 500:
                _log.warning("%s: %s", name, error)
            headers = getattr(error, "headers", None)
            raise HTTPException(*known, headers=headers) from error

    # Not functools.wraps: FastAPI would look through it.
    twin.__name__, twin.__doc__ = name, endpoint.__doc__
    twin.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return twin
