"""Own routes beside MONAI Label's: the page, and what it needs; and everything that is added to the web server."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Body, Depends, FastAPI
from fastapi.responses import FileResponse, RedirectResponse
from monailabel.config import settings as stock
from monailabel.endpoints.user.auth import RBAC
from starlette.exceptions import HTTPException

from boltzformer_monai import __version__
from boltzformer_monai.inferers.results import write_results
from boltzformer_monai.io.formats import write_image_file
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.label.checks import Checks
from boltzformer_monai.label.guard import guard_stock_routes, put_in_front
from boltzformer_monai.label.infer_request import UNCERTAINTY, parse_request
from boltzformer_monai.label.replies import add_error_replies
from boltzformer_monai.label.result_store import ResultStore
from boltzformer_monai.label.safety import check_json, image_path
from boltzformer_monai.label.service import Segmented
from boltzformer_monai.label.upload_limit import UploadLimit

if TYPE_CHECKING:
    from boltzformer_monai.label.app import BoltzFormerApp

_log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
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
RESULTS = {
    "labels.nii.gz": ("result.nii.gz", "application/gzip"),
    "uncertainty.nii.gz": ("result-uncertainty.nii.gz", "application/gzip"),
    "segmentation.dcm": ("result.dcm", "application/dicom"),
    "summary.json": ("result.json", "application/json"),
}


def add_routes(app: FastAPI, server: BoltzFormerApp) -> None:
    """Add error replies, checks, the upload limit and own routes to MONAI Label's running web server."""
    if getattr(app.state, "boltzformer", None) is server:
        return
    app.state.boltzformer = server
    add_error_replies(app)

    def reload() -> dict[str, Any]:
        # MONAI Label would make a second app, with a second network in memory.
        server.service.reload()
        return {}

    guard_stock_routes(app, Checks(server, server.service))
    put_in_front(app, _Routes(server).router)
    app.add_api_route("/reload", reload, methods=["POST"], include_in_schema=False, dependencies=[_access()])
    app.router.routes.insert(0, app.router.routes.pop())
    # The server's stack of handlers was built before it told us that it starts; the next request builds it anew.
    app.middleware_stack = None
    app.add_middleware(UploadLimit, limit=server.settings.upload_mb * 2**20)


class _Routes:
    """The page's interface.

    Args:
        server: the app.
    """

    def __init__(self, server: BoltzFormerApp) -> None:
        self.server = server
        self.results = ResultStore()
        self.router = APIRouter(prefix="/boltzformer", tags=["BoltzFormer"], dependencies=[_access()])
        api = "/api"
        self.router.add_api_route(f"{api}/config", self.config, methods=["GET"])
        self.router.add_api_route(f"{api}/images/{{image_id}}/scan.nii.gz", self.scan, methods=["GET"])
        self.router.add_api_route(f"{api}/segment", self.segment, methods=["POST"])
        self.router.add_api_route(f"{api}/results/{{rid}}/{{name}}", self.result, methods=["GET"])
        self.router.add_api_route(
            f"{api}/{{path:path}}", self.nothing, methods=["GET", "POST"], include_in_schema=False
        )
        self.router.add_api_route("", self.to_page, methods=["GET"], include_in_schema=False)
        self.router.add_api_route("/{path:path}", self.page, methods=["GET"], include_in_schema=False)

    def config(self) -> dict[str, Any]:
        """What the page offers."""
        service = self.server.service
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
            "dicom_seg": _remote(self.server),
        }

    def scan(self, image_id: str) -> FileResponse:
        """The scan as NIfTI."""
        path = image_path(self.server.datastore(), image_id)
        if path.name.endswith(".nii.gz"):
            return FileResponse(path, media_type="application/gzip", filename="scan.nii.gz")
        _, folder = self.results.new()
        volume = self.server.service.volume(path)
        write_image_file(_compact(volume), volume.affine, folder / "scan.nii.gz")
        return FileResponse(folder / "scan.nii.gz", media_type="application/gzip", filename="scan.nii.gz")

    def segment(self, body: Annotated[Any, Body()]) -> dict[str, Any]:
        """Segment an image of the datastore."""
        content = check_json(body, "the request")
        image = content.get("image")
        if not isinstance(image, str):
            raise HTTPException(422, "image must be the id of an image, see config")
        path = image_path(self.server.datastore(), image)
        params = {key: value for key, value in content.items() if key != "image"}
        request = parse_request(params, default_prompts=self.server.service.default_prompts())
        rid, folder = self.results.new()
        with self.server.service.segmented(path, request) as segmented:
            summary = write_results(segmented.result, folder / "result", segmented.recipe, scan=segmented.scan)
            has_seg = self._dicom_seg(image, segmented, folder / "result.dcm")
        findings = summary["prompts"]
        return {
            "result": rid,
            "findings": findings,
            "label_names": {each["prompt"]: each["label"] for each in findings},
            "not_found": [each["prompt"] for each in findings if not each["found"]],
            "uncertainty": request.repeats > 1,
            "dicom_seg": has_seg,
            "seconds": segmented.seconds,
            "cached": segmented.cached,
        }

    def result(self, rid: str, name: str) -> FileResponse:
        """A file of a result."""
        folder = self.results.folder(rid)
        if folder is None:
            raise HTTPException(404, "this result is no longer kept; segment again")
        if name not in RESULTS:
            raise HTTPException(404, f"a result has no file of this name; it may have {', '.join(RESULTS)}")
        file, kind = RESULTS[name]
        if not (folder / file).is_file():
            raise HTTPException(404, f"this result has no {name}")
        return FileResponse(folder / file, media_type=kind, filename=name)

    def nothing(self, path: str) -> None:
        """Whatever else is asked below /api."""
        raise HTTPException(404, "there is no such part of the interface")

    def to_page(self) -> RedirectResponse:
        """The page's address ends in a slash."""
        return RedirectResponse(f"{stock.MONAI_LABEL_API_STR}/boltzformer/")

    def page(self, path: str) -> FileResponse:
        """The page and its assets."""
        name = path or "index.html"
        kind = TYPES.get(Path(name).suffix.lower())
        if kind is None or "\0" in name or not re.fullmatch(r"[\w./@-]+", name) or ".." in name:
            raise HTTPException(404, "the page has no such file")
        file = (PAGE / name).resolve()
        if not file.is_relative_to(PAGE.resolve()) or not file.is_file():
            raise HTTPException(404, "the page has no such file" if path else "the page is not installed")
        return FileResponse(file, media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

    def _dicom_seg(self, image_id: str, segmented: Segmented, path: Path) -> bool:
        """Write the SEG where the scan is DICOM."""
        return False


def _access() -> Any:
    """MONAI Label's own check, the same that guards its routes."""
    return Depends(RBAC(stock.MONAI_LABEL_AUTH_ROLE_USER))


def _remote(server: BoltzFormerApp) -> bool:
    return str(server.studies).startswith(("http://", "https://"))


def _compact(volume: Volume) -> np.ndarray:
    """Whole numbers as int16, which viewers read faster."""
    array = volume.array
    whole = bool(np.all(array == np.rint(array))) and array.min() >= -32768 and array.max() <= 32767
    return array.astype(np.int16) if whole else array
