"""``/health``, ``/ready``, ``/version`` and ``/metrics``: without sign-in, since none names a scan or a user."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from boltzformer_monai import __version__
from boltzformer_monai.errors import StorageError
from boltzformer_monai.label.server.audit import AuditLog
from boltzformer_monai.label.server.drain import Drain
from boltzformer_monai.label.server.metrics import Metrics
from boltzformer_monai.label.server.work_queues import WorkQueues
from boltzformer_monai.label.service import SegmentService
from boltzformer_monai.storage import require_writable

PATHS = ("/health", "/ready", "/version", "/metrics")


class HealthRoutes:
    """Routes that answer at once, whatever waits in the queues."""

    def __init__(
        self,
        studies: str,
        service: SegmentService,
        queues: WorkQueues,
        metrics: Metrics,
        drain: Drain,
        audit: AuditLog | None,
    ) -> None:
        self.studies = studies
        self.service = service
        self.queues = queues
        self.metrics = metrics
        self.drain = drain
        self.audit = audit
        self.router = APIRouter(tags=["Operations"])
        for path, endpoint in zip(PATHS, (self.health, self.ready, self.version, self.text), strict=True):
            self.router.add_api_route(path, endpoint, methods=["GET"], response_model=None)

    async def health(self) -> dict[str, Any]:
        """The process answers; if this fails, it should be started anew."""
        return {"status": "ok"}

    async def ready(self) -> JSONResponse:
        """Whether requests can be served now; if not, status 503 and the reasons."""
        reasons = await asyncio.to_thread(lambda: list(self._reasons()))
        if reasons:
            return JSONResponse({"status": "not ready", "reasons": reasons}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "ready"})

    async def version(self) -> dict[str, Any]:
        """Versions, and the hash of the model in use."""
        versions = {"version": __version__, "python": platform.python_version(), "torch": torch.__version__}
        return {"name": "boltzformer-monai", **versions, "model": self.service.loaded_sha256()}

    async def text(self) -> Response:
        """The metrics for Prometheus."""
        text = await asyncio.to_thread(self.metrics.text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def _reasons(self) -> Iterator[str]:
        if self.drain.begun:
            yield "the server is about to stop"
        if self.service.loaded_sha256() is None:
            yield "no model is loaded"
        if not self.studies.startswith(("http://", "https://")) and not Path(self.studies).is_dir():
            yield "the folder of the scans is not there"
        try:
            require_writable(self.service.settings.workspace)
        except StorageError:
            yield "the workspace cannot be written"
        try:
            if self.audit is not None and self.audit.required:
                self.audit.hold_room().close()
        except StorageError:
            yield "the audit log cannot be written"
        waiting, _ = self.queues.segment.count()
        if waiting >= self.queues.segment.waiting:
            yield "the queue of segmentations is full"
