"""Checks of the arguments of MONAI Label's routes."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from boltzformer_monai.data.prompts import control_character
from boltzformer_monai.errors import BoltzFormerError, ConfigError, did_you_mean, reject_unknown
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.label.infer_request import KEYS, ClientParams, parse_request, with_ticked_labels
from boltzformer_monai.label.label_info import names_in
from boltzformer_monai.label.safe_ids import (
    check_id,
    check_json,
    check_tag,
    check_target,
    image_path,
    label_path,
    parse_json,
)
from boltzformer_monai.label.server.sign_in import check_role
from boltzformer_monai.label.server.uploads import check_new_id, saved, upload_suffix
from boltzformer_monai.label.service import SegmentService
from boltzformer_monai.label.validation import validated

_SESSION_ID = re.compile(r"[0-9a-fA-F-]{8,64}")
_CHECK_SUM = re.compile(r"(?:(MD5|SHA256|SHA512):)?([0-9A-F]+)")
_MAX_EXPIRY_S = 7 * 24 * 3600
_Count = Annotated[int, Field(strict=True, ge=0, le=100_000)]


class _TrainParams(ClientParams):
    epochs: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = None
    learning_rate: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None


class _BatchParams(ClientParams):
    max_workers: _Count | None = None
    max_batch_size: _Count | None = None


class _StrategyParams(ClientParams):
    labels: list[Any] | None = None


def _parse_field(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """Check a JSON form field, if the route has it."""
    if name not in arguments:
        return {}
    arguments[name] = arguments[name] or "{}"
    return parse_json(arguments[name], name)


def _require_known(name: str, known: Mapping[str, Any], what: str) -> None:
    if name not in known:
        raise HTTPException(404, f"there is no {what} {name[:60]!a}; {did_you_mean(name, known, show=str)}")


def _check_params(model: type[ClientParams], params: Any) -> dict[str, Any]:
    """Check an object of parameters; those of infer are allowed: clients send the same ones to every route."""
    params = check_json(params or {}, "params")
    reject_unknown(params, [*model.model_fields, *KEYS], what="parameter")
    validated(model, params)
    return params


def _check_label_info(params: Mapping[str, Any]) -> None:
    """Refuse segment names that cannot be read: the label would be kept without them, and never be learned."""
    listed = params.get("label_info")
    for each in listed if isinstance(listed, list) else ():
        name = each.get("name") if isinstance(each, dict) else None
        if isinstance(name, str) and (control := control_character(name)):
            raise ConfigError(f"the name {name[:60]!a} holds the control character U+{ord(control):04X}; leave it out")
    if listed and not names_in({"label_info": listed}):
        msg = 'label_info must be a list of {"name": "left kidney", "idx": 1}, idx being the value in the label map'
        raise ConfigError(f"{msg}; got {str(listed)[:60]!a}")


def _check_image_info(info: Mapping[str, Any]) -> None:
    if reserved := next((key for key in ("strategy", "name", "path", "ts") if key in info), None):
        raise ConfigError(f"{reserved!r} is set by the server")


def _check_range(arguments: dict[str, Any], name: str, high: int) -> None:
    if not 0 <= (arguments.get(name) or 0) <= high:
        raise ConfigError(f"{name} must be from 0 to {high}")


class Checks:
    """Checks against the app's models, methods and datastore; they may replace arguments."""

    def __init__(self, app: MONAILabelApp, service: SegmentService) -> None:
        self.app = app
        self.service = service

    def infer(self, arguments: dict[str, Any]) -> None:
        _require_known(arguments["model"], self.app._infers, "model")
        if arguments.get("output") == "dicom_seg":
            msg = "no DICOM SEG by this route; POST /boltzformer/api/segment, or save the label: the archive gets a SEG"
            raise ConfigError(msg)
        params = parse_json(arguments.get("params") or "{}", "params")
        if "label_prompt" in params:
            params = with_ticked_labels(params, self.service.declared())
            arguments["params"] = json.dumps(params)
        self.service.note(request=parse_request(params, default_prompts=self.service.default_prompts()))
        self._label_tag(params)
        if params.get("save_label"):
            check_role(arguments["user"], settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR)
        if arguments.get("session_id"):
            self.session(arguments)
            if self.app.sessions() is None or self.app.sessions().get_session(arguments["session_id"]) is None:
                raise HTTPException(404, "there is no such session")
        self._renamed(arguments.get("file"))
        arguments["label"] = None  # not an input of this model
        if arguments.get("file") or arguments.get("session_id"):
            arguments["image"] = ""
        elif arguments.get("image"):
            self._scan(arguments["image"])

    def batch(self, arguments: dict[str, Any]) -> None:
        _require_known(arguments["model"], self.app._infers, "model")
        params = _check_params(_BatchParams, arguments.get("params"))
        self.service.note(request=parse_request(params, default_prompts=self.service.default_prompts()))
        self._label_tag(params)
        arguments["params"] = {
            "label_tag": DefaultLabelTag.ORIGINAL.value,
            **params,
            # The service chooses its device; MONAI Label would divide by the number of GPUs.
            "device": "cpu",
            "multi_gpu": False,
            "gpus": "all",
            "max_workers": 1,
        }

    def train(self, arguments: dict[str, Any]) -> None:
        params = arguments.get("params")
        if "model" in arguments:
            _require_known(arguments["model"], self.app._trainers, "trainer")
            _check_params(_TrainParams, params)
        else:
            for each in self._by_method(params, self.app._trainers):
                _check_params(_TrainParams, each)
        if not self.app.datastore().get_labeled_images():
            raise HTTPException(409, "no final label to learn from; save one with its segment names first")

    def strategy(self, arguments: dict[str, Any]) -> None:
        _require_known(arguments["strategy"], self.app._strategies, "strategy")
        self._label_tag(_check_params(_StrategyParams, arguments.get("params")))

    def scoring(self, arguments: dict[str, Any]) -> None:
        params = arguments.get("params")
        if "method" in arguments:
            _require_known(arguments["method"], self.app._scoring_methods, "scoring method")
            each_params = [_check_params(ClientParams, params)]
        else:
            each_params = self._by_method(params, self.app._scoring_methods)
        for each in each_params:
            parse_request(each, default_prompts=self.service.default_prompts())

    def new_image(self, arguments: dict[str, Any]) -> None:
        _check_image_info(_parse_field(arguments, "params"))
        filename = str(arguments["file"].filename)
        suffix = self._renamed(arguments["file"])
        name = arguments["image"] = check_new_id(arguments.get("image") or filename[: -len(suffix)])
        if name in self.app.datastore().list_images():
            image_path(self.app.datastore(), name)
        check_target(self.app.datastore(), f"{name}{suffix}")
        with saved(arguments["file"]) as file:
            read_volume(file, tilt="keep")

    def image(self, arguments: dict[str, Any]) -> None:
        _check_image_info(_parse_field(arguments, "info"))
        self._scan(arguments["image"])
        if not (check_sum := arguments.get("check_sum")):
            return
        if (parts := _CHECK_SUM.fullmatch(check_sum.upper())) is None:
            raise ConfigError("check_sum must be ALGORITHM:HEX with MD5, SHA256 or SHA512")
        arguments["check_sum"] = f"{parts[1] or 'SHA256'}:{parts[2].lower()}"

    def image_by_id(self, arguments: dict[str, Any]) -> None:
        store, name = self.app.datastore(), arguments["id"]
        self._scan(name)
        for tag in store.get_labels_by_image_id(name):  # removed with it
            label_path(store, name, tag)

    def new_label(self, arguments: dict[str, Any]) -> None:
        _check_label_info(_parse_field(arguments, "params"))
        self._scan(check_id(arguments["image"]))
        arguments["tag"] = check_tag(arguments.get("tag") or DefaultLabelTag.FINAL.value)
        suffix = self._renamed(arguments["label"])
        check_target(self.app.datastore(), "labels", arguments["tag"], f"{arguments['image']}{suffix}")
        if self._remote():
            return  # the datastore reads it on the grid of its series
        image = self.service.volume(self._scan(arguments["image"]))
        with saved(arguments["label"]) as file:
            reorient_label(read_label_map(file), image)  # a label on another grid cannot be learned

    def label(self, arguments: dict[str, Any]) -> None:
        _parse_field(arguments, "info")
        _parse_field(arguments, "params")
        name = arguments.get("label") or arguments.get("id") or arguments.get("image") or ""
        label_path(self.app.datastore(), name, arguments["tag"])
        if not self._remote():  # where the scan would have to be downloaded
            with contextlib.suppress(BoltzFormerError):  # a label may outlive its scan
                self._scan(name)

    def archive(self, arguments: dict[str, Any]) -> None:
        store = self.app.datastore()
        labelled = store.get_labeled_images()
        if not labelled:
            raise HTTPException(404, "no image has a final label yet")
        if self._remote():
            return  # all files lie in the cache; labels that cannot be used are left out
        for name in labelled:
            image_path(store, name)
            label_path(store, name, DefaultLabelTag.FINAL.value)

    def session(self, arguments: dict[str, Any]) -> None:
        if not _SESSION_ID.fullmatch(arguments["session_id"]):
            raise HTTPException(404, "there is no such session")
        sessions = self.app.sessions() if arguments.get("image") is True else None
        session = sessions.get_session(arguments["session_id"]) if sessions is not None else None
        if session is not None and not Path(session.image).is_file():
            raise HTTPException(404, "this session has several files, not one image")

    def new_session(self, arguments: dict[str, Any]) -> None:
        for number, file in enumerate(arguments["files"]):
            self._renamed(file, f"upload{number}")
        _check_range(arguments, "expiry", _MAX_EXPIRY_S)
        # An archive could fill the disk, or name files outside its folder.
        if arguments.get("uncompress"):
            raise ConfigError("archives are not unpacked here; send the files themselves")

    def model_name(self, arguments: dict[str, Any]) -> None:
        _require_known(arguments["model"], self.app._infers, "model")

    def refused(self, arguments: dict[str, Any]) -> None:
        raise HTTPException(405, "the model of this server changes by training only")

    def no_slides(self, arguments: dict[str, Any]) -> None:
        raise HTTPException(404, "this server has no model for whole-slide images")

    def proxy(self, arguments: dict[str, Any]) -> None:
        if arguments["request"].method == "POST":  # it stores, by whatever prefix
            check_role(arguments["user"], settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR)
        path = str(arguments.get("path", ""))
        while path != unquote(path):  # the DICOMweb server decodes it again
            path = unquote(path)
        if not self._remote():
            raise HTTPException(404, "the studies are not on a DICOMweb server, so there is none to forward to")
        if ".." in path.split("/") or "\\" in path or "://" in path or any(ord(letter) < 32 for letter in path):
            raise HTTPException(404, "no such path on the DICOMweb server")

    def log(self, arguments: dict[str, Any]) -> None:
        _check_range(arguments, "lines", 100_000)
        _check_range(arguments, "refresh", 86_400)
        arguments["lines"] = arguments.get("lines") or 0
        arguments["html"] = False  # that page loads scripts from other servers, on the origin of the scans

    def static(self, arguments: dict[str, Any]) -> None:
        path = str(arguments.get("path", ""))
        if ".." in path or "\\" in path or "\0" in path or path.startswith(("/", ".")):
            raise HTTPException(404, "no such file")

    def _by_method(self, params: Any, methods: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The parameters of each method of a request to all of them."""
        by_method = check_json(params or {}, "params")
        reject_unknown(by_method, methods, what="method")
        return [check_json(each, "params") for each in by_method.values()]

    def _scan(self, image_id: str) -> Path:
        """The path of an image, which is noted for the audit log."""
        path = image_path(self.app.datastore(), image_id)
        self.service.note(path)
        return path

    def _remote(self) -> bool:
        return str(self.app.studies).startswith(("http://", "https://"))

    def _renamed(self, upload: UploadFile | None, name: str = "upload") -> str:
        """Check an upload and replace its name, which nothing may use; returns its extension."""
        suffix = upload_suffix(upload, limit=self.service.settings.upload_mb * 2**20)
        if upload is not None:
            upload.filename = f"{name}{suffix}"
        return suffix

    def _label_tag(self, params: Mapping[str, Any]) -> None:
        if params.get("label_tag"):
            check_tag(str(params["label_tag"]))
