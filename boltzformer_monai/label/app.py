"""The MONAI Label app: tasks that share one service, and checked routes."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from boltzformer_monai import __version__
from boltzformer_monai.errors import BoltzFormerError, ConfigError, VolumeError
from boltzformer_monai.io.dicom.seg_writer import check_can_be_seg
from boltzformer_monai.label.datastore.dicomweb import DicomWebDatastore, open_dicomweb
from boltzformer_monai.label.datastore.folder import SCANS, FolderDatastore
from boltzformer_monai.label.disconnect import ignore_disconnect
from boltzformer_monai.label.infer_task import BoltzFormerInferTask
from boltzformer_monai.label.label_info import as_label_info
from boltzformer_monai.label.learning.scoring import MostUncertain, UncertaintyScoring
from boltzformer_monai.label.learning.train_task import BoltzFormerTrainTask
from boltzformer_monai.label.learning.workers import in_background
from boltzformer_monai.label.request_record import RequestRecord, current_request, recording, recording_job, started_by
from boltzformer_monai.label.safe_ids import image_path
from boltzformer_monai.label.server.audit import audit_log, audited_step
from boltzformer_monai.label.server.connections import Connections, limit_connections
from boltzformer_monai.label.server.drain import Drain, drain_on_sigterm
from boltzformer_monai.label.server.sessions import ScanSessions
from boltzformer_monai.label.server.temporary import hold_temporary_folder
from boltzformer_monai.label.server_settings import ServerSettings
from boltzformer_monai.label.service import SegmentService
from boltzformer_monai.limits import set_memory_gb

_log = logging.getLogger(__name__)

MODEL = "boltzformer"


class BoltzFormerApp(MONAILabelApp):
    """BoltzFormer on a MONAI Label server.

    Args:
        app_dir: folder that MONAI Label was started with.
        studies: folder of scans, or address of a DICOMweb server.
        conf: pairs of ``--conf``; see :class:`~boltzformer_monai.label.server_settings.ServerSettings`.

    Raises:
        BoltzFormerError: a setting or the checkpoint cannot be used.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self._temporary = hold_temporary_folder()
        self.settings = ServerSettings.from_conf(conf, studies=studies)
        if self.settings.memory_gb:
            set_memory_gb(self.settings.memory_gb, "memory_gb")
        self.audit = audit_log(self.settings)
        self.service = SegmentService(self.settings)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="BoltzFormer",
            description="Segmentation by free-text prompts. Research use only",
            version=__version__,
        )
        self._auto_update_scoring: bool = settings.MONAI_LABEL_AUTO_UPDATE_SCORING and self.settings.auto_scoring

    def init_datastore(self) -> Datastore:
        """Our datastore for folders; it lists scans only, unless MONAI Label's setting names other extensions."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        # Compared with the default: MONAI Label passes every setting to its background processes as if it were set.
        endings = settings.MONAI_LABEL_DATASTORE_FILE_EXT
        stock = type(settings).model_fields["MONAI_LABEL_DATASTORE_FILE_EXT"].default
        return FolderDatastore(
            self.studies,
            endings=SCANS if endings == stock else endings,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _init_dicomweb_datastore(self) -> Datastore:
        """Our datastore: it stores labels as DICOM SEG without tools that must be downloaded."""
        return open_dicomweb(self.studies, self.settings.workspace)

    def _load_sessions(self, load: bool = False) -> ScanSessions | None:
        """Our sessions, written atomically."""
        stock = super()._load_sessions(load)
        return None if stock is None else ScanSessions(stock.store_path, stock.expiry)

    def init_infers(self) -> dict[str, InferTask]:
        return {MODEL: BoltzFormerInferTask(self.service)}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {MODEL: BoltzFormerTrainTask(self.service, self._audited)}

    def init_strategies(self) -> dict[str, Strategy]:
        return {"uncertainty": MostUncertain(self.service), "random": Random(), "first": First()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {"uncertainty": UncertaintyScoring(self.service, self._audited)}

    def init_batch_infer(self) -> Callable[..., Any]:
        """MONAI Label's task, but a scan that cannot be used does not stop the others."""
        task = BatchInferTask()

        def run(request: dict[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
            job = current_request() or RequestRecord()  # MONAI Label's task may use threads

            def infer_or_log(each: dict[str, Any], store: Datastore) -> dict[str, Any]:
                try:
                    with recording(job), self._audited("batch"):
                        return dict(infer(each, store))
                except BoltzFormerError as error:
                    _log.warning("%s: not segmented: %s", each.get("image"), error)
                    return {"error": error.reason}

            return dict(task(request, datastore, infer_or_log))

        return run

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment an image of the datastore or an upload; other paths are refused.

        Raises:
            BoltzFormerError: the request or the scan cannot be used.
        """
        store = datastore or self.datastore()
        task = self._infers.get(request.get("model", MODEL))
        if task is None:
            raise ConfigError(f"there is no model {str(request.get('model'))[:60]!a}; there is {MODEL}")
        image_id = str(request["image"])
        uploaded = self._uploaded(image_id)
        path = uploaded or image_path(store, image_id)
        tag = str(request.get("label_tag") or DefaultLabelTag.ORIGINAL.value)
        saved = bool(request.get("save_label")) and uploaded is None
        if saved and tag == DefaultLabelTag.FINAL.value and isinstance(store, DicomWebDatastore):
            check_can_be_seg(path)
        file, params = task({**copy.deepcopy(request), "image": str(path)})
        label_id = file
        if file and saved:
            names = {value: name for name, value in params.get("label_names", {}).items()}
            info = {"model": MODEL, "params": params, "label_info": as_label_info(names)}
            try:
                label_id = store.save_label(image_id, file, tag, info)
            except BaseException:
                Path(file).unlink(missing_ok=True)
                raise
        return {"label": label_id, "tag": tag, "file": file, "params": params}

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        with in_background(not self._server_mode), recording_job(request) as own:
            return dict(super().train(own))

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        with in_background(not self._server_mode), ignore_disconnect(), recording_job(request) as own:
            return dict(super().scoring(own, datastore))

    def async_scoring(self, method: str | None, params: dict[str, Any] | None = None) -> Any:
        """Score in a process of its own; after a training in the training's.

        MONAI Label would send the server a request then, which may want a key.
        """
        if self._server_mode:
            return super().async_scoring(method, {**(params or {}), **started_by()})
        try:
            return {each: self.scoring({"method": each}) for each in ([method] if method else self._scoring_methods)}
        except BoltzFormerError as error:  # the training has ended well
            _log.error("not scored: %s", error)
            return {}

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        with in_background(not self._server_mode), ignore_disconnect(), recording_job(request) as own:
            return dict(super().batch_infer(own, datastore))

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Next image; DICOMweb series that turn out to be no scans (localizers) are skipped."""
        for _ in self.datastore().get_unlabeled_images():
            try:
                return dict(super().next_sample(request))
            except VolumeError as error:
                _log.warning("skipped: %s", error)
        return dict(super().next_sample(request))

    def server_mode(self, mode: bool) -> None:
        """Add the routes; MONAI Label calls this when its web server starts."""
        super().server_mode(mode)
        if mode:
            from monailabel.app import app  # makes the web server: only where there is one

            from boltzformer_monai.label.server.routes import add_routes

            drain = Drain(limit_s=self.settings.drain_s)
            add_routes(app, self, self.service, audit=self.audit, drain=drain)
            limits = Connections(
                header_s=self.settings.header_s, body_s=self.settings.body_s, limit=self.settings.connections
            )
            if not limit_connections(limits):
                _log.warning("the web server is not uvicorn: connection timeouts and its end are left to it")
            drain_on_sigterm(drain)

    def _audited(self, job: str) -> AbstractContextManager[None]:
        return audited_step(self.audit, job)

    def _uploaded(self, image: str) -> Path | None:
        """The file of an upload or a session, which MONAI Label passes as an absolute path."""
        if not os.path.isabs(image):
            return None
        path = Path(image).resolve()
        sessions = self.sessions()
        roots = [Path(tempfile.gettempdir())] + ([Path(sessions.store_path)] if sessions is not None else [])
        return path if any(path.is_relative_to(root.resolve()) for root in roots) and path.exists() else None
