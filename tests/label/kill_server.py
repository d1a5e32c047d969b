"""Servers that start in no time, to be killed: everything is imported once, and each server is a copy of this process.

``python -m tests.label.kill_server STUDIES``: for each line on standard input a server is started, and its process and
port are printed. It is the datastore of a folder behind MONAI Label's routes and our checks, without a network.
"""

from __future__ import annotations

import os
import signal
import socket
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
        settings=SimpleNamespace(upload_mb=1), volume=lambda path: read_volume(path, tilt="keep")
    )
    settings.MONAI_LABEL_APP_DIR, settings.MONAI_LABEL_STUDIES = "", studies
    stock.apps[studies] = server
    app = FastAPI()
    app.include_router(datastore.router)
    replies = ErrorResponses()
    replies.add_to(app)
    guard_stock_routes(app, Checks(server, service), replies, WorkQueues(WAITING))
    return app, server


def serve(app: Any, server: Any) -> None:
    """With the folder's datastore, opened now; until it is killed."""
    import uvicorn

    from boltzformer_monai.label.datastore.folder import FolderDatastore

    server.store = FolderDatastore(server.studies, auto_reload=False, read_only=False)
    config = uvicorn.Config(app, log_level="critical")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    sys.stdout.write(f"{os.getpid()} {listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])


def main(studies: str) -> None:
    """Start a server for each line."""
    import uvicorn  # noqa: F401

    import boltzformer_monai.label.datastore.folder  # noqa: F401 (with the routes all that takes long)

    os.umask(0o077)  # as `boltzformer serve` does
    app, server = web_application(studies)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    for _ in sys.stdin:
        if os.fork() == 0:
            try:
                serve(app, server)
            finally:  # it did not start
                sys.stdout.write("0 0\n")
                sys.stdout.flush()
                os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
