"""A server to be killed: a folder's datastore behind MONAI Label's routes and our checks, without a network.

``python -m tests.label.kill_server STUDIES PORT``.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

WAITING = 16


def web_application(studies: str) -> tuple[Any, Any]:
    """MONAI Label's routes of the datastore, and their server, whose ``store`` is to be set."""
    from fastapi import FastAPI
    from monailabel.config import settings
    from monailabel.endpoints import datastore
    from monailabel.interfaces.utils import app as stock

    from boltzformer_monai.io.read import read_volume
    from boltzformer_monai.label.server.error_responses import ErrorResponses
    from boltzformer_monai.label.server.route_checks import Checks
    from boltzformer_monai.label.server.route_guard import guard_stock_routes
    from boltzformer_monai.label.server.work_queues import WorkQueues

    server: Any = SimpleNamespace(studies=studies, datastore=lambda: server.store, on_save_label=lambda *_: None)
    service: Any = SimpleNamespace(
        settings=SimpleNamespace(upload_mb=1),
        volume=lambda path: read_volume(path, tilt="keep"),
        note=lambda path: None,  # there is no audit log
    )
    settings.MONAI_LABEL_APP_DIR, settings.MONAI_LABEL_STUDIES = "", studies
    stock.apps[studies] = server
    app = FastAPI()
    app.include_router(datastore.router)
    replies = ErrorResponses()
    replies.add_to(app)
    guard_stock_routes(app, Checks(server, service), replies, WorkQueues(WAITING))
    return app, server


def main(studies: str, port: str) -> None:
    """Serve the folder of studies, opened now, until killed."""
    import uvicorn

    from boltzformer_monai.label.datastore.folder import FolderDatastore

    os.umask(0o077)  # as `boltzformer serve` does
    app, server = web_application(studies)
    server.store = FolderDatastore(studies, auto_reload=False, read_only=False)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="critical")


if __name__ == "__main__":
    main(*sys.argv[1:])
