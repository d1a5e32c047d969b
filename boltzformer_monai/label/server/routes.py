"""Set up MONAI Label's web server: middleware, checks, and the routes of the browser page."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Header, Query
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, RedirectResponse, Response
from monailabel.config import settings as stock
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from starlette.exceptions import HTTPException

import boltzformer_monai
from boltzformer_monai import __version__
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.findings.structured_report import shortened
from boltzformer_monai.findings.tables import write_lesions_csv
from boltzformer_monai.inferers.result_manifest import read_manifest
from boltzformer_monai.inferers.result_report import write_result_page, write_result_sr
from boltzformer_monai.inferers.results import write_results
from boltzformer_monai.io.dicom.files import is_dicom_file
from boltzformer_monai.io.formats import is_image_file, write_image_file
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.label.api_keys import KeyFile
from boltzformer_monai.label.datastore.dicomweb import DicomWebDatastore
from boltzformer_monai.label.datastore.dicomweb_cache import compact
from boltzformer_monai.label.disconnect import CancelOnDisconnect
from boltzformer_monai.label.files import temporary_file
from boltzformer_monai.label.infer_request import MAX_PROMPT_LENGTH, UNCERTAINTY, parse_request
from boltzformer_monai.label.safe_ids import check_json, image_path
from boltzformer_monai.label.server.audit import Audit, AuditLog
from boltzformer_monai.label.server.drain import Drain, DrainRequests
from boltzformer_monai.label.server.error_responses import ErrorResponses
from boltzformer_monai.label.server.header_texts import TemporaryFileResponse, scan_response
from boltzformer_monai.label.server.health import PATHS, HealthRoutes
from boltzformer_monai.label.server.metrics import Metrics
from boltzformer_monai.label.server.origin import OriginCheck
from boltzformer_monai.label.server.page_files import page_file
from boltzformer_monai.label.server.request_log import RequestLog
from boltzformer_monai.label.server.route_checks import Checks
from boltzformer_monai.label.server.route_guard import guard_stock_routes, put_in_front
from boltzformer_monai.label.server.sign_in import require_role, token_check, use_sign_in
from boltzformer_monai.label.server.uploads import UploadLimit
from boltzformer_monai.label.server.work_queues import WorkQueues
from boltzformer_monai.label.service import Segmented, SegmentService

_log = logging.getLogger(__name__)

RESULTS = {
    "labels.nii.gz": ("result.nii.gz", "application/gzip"),
    "uncertainty.nii.gz": ("result-uncertainty.nii.gz", "application/gzip"),
    "segmentation.dcm": ("result.dcm", "application/dicom"),
    "lesions.csv": ("lesions.csv", "text/csv"),
    "summary.json": ("result.json", "application/json"),
    "report.sr.dcm": ("result.sr.dcm", "application/dicom"),
    "report.html": ("result.html", "text/html"),
}
REPORTS = ("report.sr.dcm", "report.html")
"""Files that are made when they are asked for."""
_KEPT = 16  # results


def add_routes(
    app: FastAPI, server: MONAILabelApp, service: SegmentService, *, audit: AuditLog | None, drain: Drain
) -> None:
    """Add error responses, checks, limits and the page's routes to MONAI Label's running web server."""
    if getattr(app.state, "boltzformer", None) is server:
        return
    app.state.boltzformer = server
    settings = service.settings
    sessions = server.sessions()
    hidden = [server.studies, settings.workspace, settings.checkpoint.parent, Path(boltzformer_monai.__file__).parent]
    responses = ErrorResponses(hidden if sessions is None else [*hidden, sessions.store_path])
    responses.add_to(app)
    sign_in = use_sign_in(app, None if settings.keys is None else KeyFile(settings.keys))

    queues = WorkQueues(settings.queue)

    async def reload() -> dict[str, Any]:
        # MONAI Label's own would make a second app, with a second network in memory.
        await queues.segment.run(service.reload)
        return {}

    guard_stock_routes(app, Checks(server, service), responses, queues)
    put_in_front(app, sign_in, stock.MONAI_LABEL_API_STR)
    routes = _Routes(server, service, queues)
    put_in_front(app, routes.router, stock.MONAI_LABEL_API_STR)
    replaced = APIRouter(include_in_schema=False)
    only_admin = [require_role(stock.MONAI_LABEL_AUTH_ROLE_ADMIN)]
    replaced.add_api_route("/reload", reload, methods=["POST"], dependencies=only_admin)
    # MONAI Label's API pages load scripts from other servers, on the origin of the scans.
    replaced.add_api_route("/", routes.to_page, methods=["GET"])
    replaced.add_api_route("/docs", routes.to_openapi, methods=["GET"])
    put_in_front(app, replaced)
    metrics = Metrics(queues, service)
    put_in_front(app, HealthRoutes(str(server.studies), service, queues, metrics, drain, audit).router)
    # Starlette built the middleware stack before the startup event; the next request builds it anew.
    app.middleware_stack = None
    app.add_middleware(CancelOnDisconnect)
    app.add_middleware(UploadLimit, limit=settings.upload_mb * 2**20, owner=token_check(app))
    if audit is not None:
        app.add_middleware(
            Audit, log=audit, failed=metrics.audit_failures.inc, prefix=stock.MONAI_LABEL_API_STR.rstrip("/")
        )
    app.add_middleware(DrainRequests, drain=drain, always=PATHS)
    origins = [origin.rstrip("/") for origin in settings.origins]
    for each in app.user_middleware:
        if each.cls is CORSMiddleware:  # MONAI Label's allows all origins, and its setting for them breaks start_server
            each.kwargs["allow_origins"] = origins
    app.add_middleware(OriginCheck, origins=origins, hosts=settings.hosts, no_sign_in=not stock.MONAI_LABEL_AUTH_ENABLE)
    app.add_middleware(RequestLog, metrics=metrics, lines=settings.access_log)


@dataclass(frozen=True)
class _Result:
    """A result's files, and the scan that it is of."""

    folder: Path
    scan: Scan


class _Results:
    """Results by id; the oldest is deleted when there are more than ``_KEPT``."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="boltzformer-results-")
        self._results: OrderedDict[str, _Result] = OrderedDict()
        self._lock = threading.Lock()

    def new(self, scan: Scan) -> tuple[str, Path]:
        """Make an empty folder for a result of a scan; returns its id and path."""
        name = secrets.token_urlsafe(12)
        folder = Path(self._folder.name) / name
        folder.mkdir()
        with self._lock:
            self._results[name] = _Result(folder, scan)
            old = [self._results.popitem(last=False)[1].folder for _ in range(len(self._results) - _KEPT)]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        return name, folder

    def get(self, name: str) -> _Result | None:
        """The result of an id, or None if it was deleted."""
        with self._lock:
            return self._results.get(name)


class _Routes:
    """The page and its API."""

    def __init__(self, server: MONAILabelApp, service: SegmentService, queues: WorkQueues) -> None:
        self.server = server
        self.service = service
        self.queues = queues
        self.results = _Results()
        # The role that MONAI Label's infer and images need; the page's own files hold no data.
        api = APIRouter(prefix="/api", dependencies=[require_role(stock.MONAI_LABEL_AUTH_ROLE_USER)])
        api.add_api_route("/config", self.config, methods=["GET"])
        api.add_api_route("/complete", self.complete, methods=["GET"])
        api.add_api_route("/images/{image_id}/scan.nii.gz", self.scan, methods=["GET"])
        api.add_api_route("/segment", self.segment, methods=["POST"])
        api.add_api_route("/results/{rid}/{name}", self.result, methods=["GET"])
        api.add_api_route("/{path:path}", self.not_found, methods=["GET", "POST"], include_in_schema=False)
        self.router = APIRouter(prefix="/boltzformer", tags=["BoltzFormer"])
        self.router.include_router(api)
        self.router.add_api_route("", self.to_page, methods=["GET"], include_in_schema=False)
        self.router.add_api_route("/{path:path}", self.page, methods=["GET"], include_in_schema=False)

    def config(self) -> dict[str, Any]:
        """Scans, prompts and options for the page."""
        service = self.service
        store = self.server.datastore()
        network = service.model().segmenter.description.network
        images = []
        for name in sorted(store.list_images()):
            modality = store.get_image_info(name).get("Modality")
            images.append({"id": name, "modality": modality if modality in ("CT", "MR") else None})
        return {
            "model": "boltzformer",
            "version": __version__,
            "prompts": service.default_prompts(),
            "targets": service.targets(),
            "uncertainty": list(range(UNCERTAINTY[0], UNCERTAINTY[1] + 1)),
            "presence": bool(network.presence),
            "images": images,
            "dicom_seg": _can_write_seg(store, [each["id"] for each in images]),
        }

    def complete(
        self,
        q: Annotated[str, Query(max_length=MAX_PROMPT_LENGTH)] = "",
        limit: Annotated[int, Query(ge=1, le=50)] = 8,
    ) -> dict[str, Any]:
        """Names of targets that begin like the text, while it is typed."""
        return self.service.complete(q, limit)

    async def scan(self, image_id: str) -> FileResponse:
        """The scan as NIfTI."""
        return await self.queues.scans.run(self._scan, image_id)

    def _scan(self, image_id: str) -> FileResponse:
        store = self.server.datastore()
        path = image_path(store, image_id)
        self.service.note(path)
        if isinstance(store, DicomWebDatastore):
            path = Path(store.get_image_uri(image_id))
        sent: dict[str, Any] = {"media_type": "application/gzip", "filename": "scan.nii.gz"}
        if path.name.endswith(".nii.gz"):
            return scan_response(path, **sent)
        volume = self.service.volume(path)
        with temporary_file(".nii.gz") as file:
            write_image_file(compact(volume), volume.affine, file)
        return TemporaryFileResponse(file, **sent)

    async def segment(self, body: Annotated[Any, Body()]) -> dict[str, Any]:
        """Segment an image of the datastore."""
        return await self.queues.segment.run(self._segment, body)

    def _segment(self, body: Any) -> dict[str, Any]:
        content = check_json(body, "the request")
        image = content.get("image")
        if not isinstance(image, str):
            raise HTTPException(422, "image must be the id of an image, see config")
        path = image_path(self.server.datastore(), image)
        params = {key: value for key, value in content.items() if key != "image"}
        request = parse_request(params, default_prompts=self.service.default_prompts())
        with self.service.segmented(path, request) as segmented:
            rid, folder = self.results.new(segmented.scan)  # only now: a waiting request must not evict a result
            summary = write_results(
                segmented.result, folder / "result", segmented.settings, model=segmented.model, scan=segmented.scan
            )
            write_lesions_csv(
                folder / "lesions.csv",
                (
                    {"scan": image, "value": each["label"], "name": each["prompt"], **lesion}
                    for each in summary["prompts"]
                    for lesion in each["lesions"]
                ),
            )
            seg = self._dicom_seg(image, segmented, folder / "result.dcm")
        series = _is_series(path)
        reported = sum(len(each["lesions"]) for each in (seg or summary)["prompts"])
        return {
            "result": rid,
            **segmented.described(summary["prompts"]),
            "label_names": {each["prompt"]: each["label"] for each in summary["prompts"]},
            "uncertainty": request.repeats > 1,
            "dicom_seg": seg is not None,
            "dicom_sr": series,
            "dicom_sr_note": shortened(reported) if series else None,
        }

    async def result(self, rid: str, name: str) -> FileResponse:
        """A file of a result."""
        result = self.results.get(rid)
        if result is None:
            raise HTTPException(404, "this result has expired; segment again")
        if name not in RESULTS:
            raise HTTPException(404, f"no such file; a result may have {', '.join(RESULTS)}")
        await self.queues.fast.run(self.service.note, result.scan.place)
        file, kind = RESULTS[name]
        if name in REPORTS and not (result.folder / file).is_file():
            await self.queues.scans.run(self._report, result, file)
        if not (result.folder / file).is_file():
            raise HTTPException(404, f"this result has no {name}")
        return FileResponse(result.folder / file, media_type=kind, filename=name)

    def _report(self, result: _Result, file: str) -> None:
        """Write a report of the lesions; a DICOM SR of a DICOM scan only, of the masks in its SEG if there is one."""
        manifest = read_manifest(result.folder / "result.json")
        if file.endswith(".html"):
            write_result_page(result.folder / file, manifest, scan=result.scan)
        elif _is_series(result.scan.place):
            seg = result.folder / "result.dcm"
            if seg.is_file():
                manifest = read_manifest(result.folder / "seg.json")
            write_result_sr(
                result.folder / file,
                manifest,
                grid=self.service.volume(result.scan.place),
                scan=result.scan,
                seg=seg if seg.is_file() else None,
            )

    def not_found(self, path: str) -> None:
        """Any other path below /api."""
        raise HTTPException(404, "no such route")

    def to_page(self) -> RedirectResponse:
        """The page's URL ends in a slash."""
        return RedirectResponse(f"{stock.MONAI_LABEL_API_STR}/boltzformer/")

    def to_openapi(self) -> RedirectResponse:
        """The OpenAPI description of all routes as plain JSON."""
        return RedirectResponse("/openapi.json")

    def page(self, path: str, if_none_match: Annotated[str, Header()] = "") -> Response:
        """The page and its assets."""
        return page_file(path, known=if_none_match)

    def _dicom_seg(self, image_id: str, segmented: Segmented, path: Path) -> dict[str, Any] | None:
        """Write a DICOM SEG if the scan is DICOM and something was found; returns its manifest."""
        if not _is_series(segmented.scan.place):
            return None
        settings = dataclasses.replace(segmented.settings, ending=".dcm", repeats=1)  # without the uncertainty map
        stem = path.with_name("seg")
        try:
            manifest = write_results(segmented.result, stem, settings, model=segmented.model, scan=segmented.scan)
        except VolumeError as error:
            if error.reason == "write":
                raise
            _log.warning("%s: no DICOM SEG: %s", image_id, error)  # the label map is fine
            return None
        seg = stem.with_name("seg.dcm")
        if seg.is_file():
            seg.replace(path)
        return manifest if path.is_file() else None


def _is_series(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and not is_image_file(path) and is_dicom_file(path))


def _can_write_seg(store: Datastore, images: Sequence[str]) -> bool:
    """Whether results can be DICOM SEG: the scans are DICOM."""
    if isinstance(store, DicomWebDatastore):
        return True
    return any(_is_series(Path(store.get_image_uri(image))) for image in images)
