"""What each of MONAI Label's routes may be asked; the keys of the table are the names of its functions.

A name that several modules use stands there with its module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.label.infer_request import parse_request, with_ticked_labels
from boltzformer_monai.label.safe_ids import (
    check_id,
    check_json,
    check_tag,
    check_target,
    image_path,
    label_path,
    parse_json,
)
from boltzformer_monai.label.server.check_parts import (
    check_label_info,
    image_info,
    only_keys,
    parse_into,
    plain_values,
    require_known,
    trainer_numbers,
    whole_numbers,
)
from boltzformer_monai.label.server.uploads import check_new_id, saved, upload_suffix
from boltzformer_monai.label.service import SegmentService

_SESSION = re.compile(r"[0-9a-fA-F-]{8,64}")
_TRAIN_KEYS = ("epochs", "learning_rate")
_Check = Callable[["Checks", dict[str, Any]], None]


class Checks:
    """Checks of arguments against the app's models, methods and datastore.

    Args:
        app: the running app.
        service: knows the default prompts.
    """

    def __init__(self, app: MONAILabelApp, service: SegmentService) -> None:
        self.app = app
        self.service = service

    def infer(self, arguments: dict[str, Any]) -> None:
        require_known(arguments["model"], self.app._infers, "model")
        if arguments.get("output") == "dicom_seg":
            msg = "no DICOM SEG by this route; POST /boltzformer/api/segment, or save the label: the archive gets a SEG"
            raise ConfigError(msg)
        params = parse_json(arguments.get("params") or "{}", "params")
        if "label_prompt" in params:
            params = with_ticked_labels(params, self.service.declared())
            arguments["params"] = json.dumps(params)
        parse_request(params, default_prompts=self.service.default_prompts())
        self._label_tag(params)
        if arguments.get("session_id"):
            self.session(arguments)
            if self.app.sessions() is None or self.app.sessions().get_session(arguments["session_id"]) is None:
                raise HTTPException(404, "there is no such session")
        if suffix := self._suffix(arguments.get("file")):
            arguments["file"].filename = f"upload{suffix}"
        arguments["label"] = None  # no input of this model
        if arguments.get("file") or arguments.get("session_id"):
            arguments["image"] = ""
        elif arguments.get("image"):
            image_path(self.app.datastore(), arguments["image"])

    def batch(self, arguments: dict[str, Any]) -> None:
        require_known(arguments["model"], self.app._infers, "model")
        params = check_json(arguments.get("params") or {}, "params")
        parse_request(params, default_prompts=self.service.default_prompts())
        whole_numbers(params, ("max_workers", "max_batch_size"))
        plain_values(params)
        self._label_tag(params)
        arguments["params"] = {
            "label_tag": DefaultLabelTag.ORIGINAL.value,
            **params,
            # The service chooses its device; MONAI Label divides by the number of GPUs where it chooses.
            "device": "cpu",
            "multi_gpu": False,
            "gpus": "all",
            "max_workers": 1,
        }

    def train(self, arguments: dict[str, Any]) -> None:
        params = check_json(arguments.get("params") or {}, "params")
        if "model" in arguments:
            require_known(arguments["model"], self.app._trainers, "trainer")
            only_keys(params, _TRAIN_KEYS)
            plain_values(params)
            trainer_numbers(params)
        else:
            only_keys(params, tuple(self.app._trainers))
            for each in params.values():
                only_keys(check_json(each, "params"), _TRAIN_KEYS)
                plain_values(each)
                trainer_numbers(each)
        if not self.app.datastore().get_labeled_images():
            raise HTTPException(409, "no final label to learn from; save one with its segment names first")

    def strategy(self, arguments: dict[str, Any]) -> None:
        require_known(arguments["strategy"], self.app._strategies, "strategy")
        params = check_json(arguments.get("params") or {}, "params")
        only_keys(params, ("labels",))
        if "labels" in params and not isinstance(params["labels"], list):
            msg = "labels must be a list of names"
            raise ConfigError(msg)
        self._label_tag(params)

    def scoring(self, arguments: dict[str, Any]) -> None:
        params = check_json(arguments.get("params") or {}, "params")
        if "method" in arguments:
            require_known(arguments["method"], self.app._scoring_methods, "scoring method")
            only_keys(params, ("prompts", "uncertainty"))
            plain_values(params)
            parse_request(params, default_prompts=self.service.default_prompts())
        else:
            only_keys(params, tuple(self.app._scoring_methods))
            for each in params.values():
                parse_request(check_json(each, "params"), default_prompts=self.service.default_prompts())

    def new_image(self, arguments: dict[str, Any]) -> None:
        image_info(parse_into(arguments, "params"))
        suffix = self._suffix(arguments["file"])
        name = check_new_id(arguments.get("image") or str(arguments["file"].filename)[: -len(suffix)])
        if name in self.app.datastore().list_images():
            image_path(self.app.datastore(), name)
        check_target(self.app.datastore(), f"{name}{suffix}")
        with saved(arguments["file"].file, suffix) as file:
            read_volume(file, tilt="keep")
        arguments["image"], arguments["file"].filename = name, f"upload{suffix}"

    def image(self, arguments: dict[str, Any]) -> None:
        image_info(parse_into(arguments, "info"))
        image_path(self.app.datastore(), arguments["image"])
        if not (check_sum := arguments.get("check_sum")):
            return
        parts = re.fullmatch(r"(?:(MD5|SHA256|SHA512):)?([0-9A-F]+)", check_sum.upper())
        if parts is None:
            msg = "check_sum must be ALGORITHM:HEX with MD5, SHA256 or SHA512"
            raise ConfigError(msg)
        arguments["check_sum"] = f"{parts[1] or 'SHA256'}:{parts[2].lower()}"

    def image_by_id(self, arguments: dict[str, Any]) -> None:
        store, name = self.app.datastore(), arguments["id"]
        image_path(store, name)
        for tag in store.get_labels_by_image_id(name):  # they go with it
            label_path(store, name, tag)

    def new_label(self, arguments: dict[str, Any]) -> None:
        check_label_info(parse_into(arguments, "params"))
        image_path(self.app.datastore(), check_id(arguments["image"]))
        arguments["tag"] = check_tag(arguments.get("tag") or DefaultLabelTag.FINAL.value)
        suffix = self._suffix(arguments["label"])
        check_target(self.app.datastore(), "labels", arguments["tag"], f"{arguments['image']}{suffix}")
        arguments["label"].filename = f"upload{suffix}"
        if self._remote():
            return  # the datastore reads it, on the grid of its series
        image = self.service.volume(image_path(self.app.datastore(), arguments["image"]))
        with saved(arguments["label"].file, suffix) as file:
            reorient_label(read_label_map(file), image)  # one that does not lie on the scan could never be learned

    def label(self, arguments: dict[str, Any]) -> None:
        parse_into(arguments, "info")
        parse_into(arguments, "params")
        name = arguments.get("label") or arguments.get("id") or arguments.get("image") or ""
        label_path(self.app.datastore(), name, arguments["tag"])

    def archive(self, arguments: dict[str, Any]) -> None:
        store = self.app.datastore()
        labelled = store.get_labeled_images()
        if not labelled:
            raise HTTPException(404, "no image has a final label yet")
        if self._remote():
            return  # all of its files are in the cache, and what cannot be used is left out
        for name in labelled:
            image_path(store, name)
            label_path(store, name, DefaultLabelTag.FINAL.value)

    def session(self, arguments: dict[str, Any]) -> None:
        if not _SESSION.fullmatch(arguments["session_id"]):
            raise HTTPException(404, "there is no such session")
        sessions = self.app.sessions() if arguments.get("image") is True else None
        session = sessions.get_session(arguments["session_id"]) if sessions is not None else None
        if session is not None and not Path(session.image).is_file():
            raise HTTPException(404, "this session has several files, not one image")

    def new_session(self, arguments: dict[str, Any]) -> None:
        for number, file in enumerate(arguments["files"]):
            file.filename = f"upload{number}{self._suffix(file)}"
        if not 0 <= arguments.get("expiry", 0) <= 7 * 24 * 3600:
            msg = "expiry must be from 0 to 604800 seconds"
            raise ConfigError(msg)
        # Archives are unpacked by no one: they could fill the disk or lead elsewhere.
        if arguments.get("uncompress"):
            msg = "archives are not unpacked here; send the files themselves"
            raise ConfigError(msg)

    def model_name(self, arguments: dict[str, Any]) -> None:
        require_known(arguments["model"], self.app._infers, "model")

    def refused(self, arguments: dict[str, Any]) -> None:
        raise HTTPException(405, "this server's model changes by training only")

    def no_slides(self, arguments: dict[str, Any]) -> None:
        raise HTTPException(404, "there is no model for whole-slide images here")

    def proxy(self, arguments: dict[str, Any]) -> None:
        path = str(arguments.get("path", ""))
        while path != unquote(path):  # what the DICOMweb server makes of it
            path = unquote(path)
        if not self._remote():
            raise HTTPException(404, "the studies are no DICOMweb server, so there is nothing to pass on")
        if ".." in path.split("/") or "\\" in path or "://" in path or any(ord(letter) < 32 for letter in path):
            raise HTTPException(404, "no such path on the DICOMweb server")

    def log(self, arguments: dict[str, Any]) -> None:
        for name, most in (("lines", 100_000), ("refresh", 86_400)):
            if not 0 <= (arguments.get(name) or 0) <= most:
                msg = f"{name} must be from 0 to {most}"
                raise ConfigError(msg)
        arguments["lines"] = arguments.get("lines") or 0
        arguments["html"] = False  # that page runs scripts of other servers, here where the scans are

    def static(self, arguments: dict[str, Any]) -> None:
        path = str(arguments.get("path", ""))
        if ".." in path or "\\" in path or "\0" in path or path.startswith(("/", ".")):
            raise HTTPException(404, "no such file")

    def _remote(self) -> bool:
        return str(self.app.studies).startswith(("http://", "https://"))

    def _suffix(self, upload: UploadFile | None) -> str:
        return upload_suffix(upload, limit=self.service.settings.upload_mb * 2**20)

    def _label_tag(self, params: Mapping[str, Any]) -> None:
        if params.get("label_tag"):
            check_tag(str(params["label_tag"]))


CHECKS: dict[str, _Check] = {
    "api_run_inference": Checks.infer,
    "api_sample": Checks.strategy,
    "api_run_method": Checks.scoring,
    "api_run_model": Checks.train,
    "batch_infer.api_run": Checks.batch,
    "train.api_run": Checks.train,
    "scoring.api_run": Checks.scoring,
    "api_add_image": Checks.new_image,
    "api_remove_image": Checks.image_by_id,
    "api_check_image": Checks.image,
    "api_download_image": Checks.image,
    "api_get_image_info": Checks.image,
    "api_put_image_info": Checks.image,
    "api_save_label": Checks.new_label,
    "api_remove_label": Checks.label,
    "api_check_label": Checks.label,
    "api_download_label": Checks.label,
    "api_get_label_info": Checks.label,
    "api_put_label_info": Checks.label,
    "api_update_label_info": Checks.label,
    "api_download_dataset": Checks.archive,
    "api_get_session": Checks.session,
    "api_remove_session": Checks.session,
    "api_create_session": Checks.new_session,
    "api_download_model": Checks.model_name,
    "api_model_info": Checks.model_name,
    "api_update_model": Checks.refused,
    "api_delete_model": Checks.refused,
    "api_run_wsi_inference": Checks.no_slides,
    "api_run_wsi_v2_inference": Checks.no_slides,
    "proxy_wado": Checks.proxy,
    "proxy_qido": Checks.proxy,
    "proxy_stow": Checks.proxy,
    "proxy": Checks.proxy,
    "api_get_logs": Checks.log,
    "api_get_ohif": Checks.static,
}
