"""``/train/boltzformer``: learns from the final labels of the datastore, each label once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from filelock import FileLock, Timeout
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from boltzformer_monai.engines.key_metric import find_key_metric
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.label.learning.corrected_labels import corrected_labels, write_slices
from boltzformer_monai.label.learning.fine_tune import fine_tune
from boltzformer_monai.label.request_record import changing
from boltzformer_monai.label.service import SegmentService
from boltzformer_monai.precision import device_by_name
from boltzformer_monai.storage import file_sha256, writing

_log = logging.getLogger(__name__)


class BoltzFormerTrainTask(TrainTask):
    """Fine-tuning on the corrected labels; MONAI Label runs it in a process of its own.

    Args:
        audited: around a training, with the name of the job.

    Raises:
        ConfigError: the key metric of the settings is unknown.
    """

    def __init__(self, service: SegmentService, audited: Callable[[str], AbstractContextManager[None]]) -> None:
        super().__init__("Learns from the final labels; the names of their segments become prompts")
        self.service = service
        self.audited = audited
        find_key_metric(service.settings.key_metric)

    def config(self) -> dict[str, Any]:
        """What 3D Slicer offers for editing."""
        return {"epochs": self.service.settings.epochs, "learning_rate": self.service.settings.learning_rate}

    def stats(self) -> dict[str, Any]:
        """What the checkpoint in use has learned from this server's labels."""
        learned = self.service.learned()
        return {"names": list(learned.get("names", [])), "labels": len(learned.get("labels", []))}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train on all final labels, unless the checkpoint has learned from exactly these.

        Raises:
            DatasetError: there is no label to learn from, or another training is under way.
            StorageError: the workspace cannot be written.
        """
        settings = self.service.settings
        with writing(settings.workspace):
            settings.workspace.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(settings.workspace / "training.lock").acquire(timeout=0)
        except Timeout:
            msg = (
                "another training of this server is under way; wait for it, or stop it by DELETE /train/ "
                "(one that a killed server left behind ends by itself, or with its process)"
            )
            raise DatasetError(msg) from None
        with held, self.audited("train"), writing(settings.workspace, much_else=True):
            return self._train(request, datastore)

    def _train(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        started = time.monotonic()
        settings = self.service.settings
        datastore.refresh()
        labels = corrected_labels(datastore)
        if not labels:
            raise DatasetError("no final label with names to learn from; save one with its segment names first")
        if sorted(each.digest for each in labels) == sorted(self.service.learned().get("labels", [])):
            _log.info("all %d labels were learned already; nothing to do", len(labels))
            return {"trained": False, "reason": "all labels were learned already", "labels": len(labels)}
        description = self.service.model().segmenter.description
        dataset = settings.workspace / "dataset"
        neighbours = description.network.neighbours
        used = write_slices(labels, dataset, data=description.data, modality=settings.modality, neighbours=neighbours)
        if not used:
            raise DatasetError("none of the final labels can be used; the server's log says why")
        names = list(dict.fromkeys(name for each in used for _, name in sorted(each.names.items())))
        # What cannot be used counts as learned too: trying it again would fail again.
        learned = {"names": names, "labels": sorted(each.digest for each in labels)}
        with changing("model trained", scans=self.service.hashes([each.image for each in used])) as change:
            best = fine_tune(
                checkpoint=settings.current_checkpoint,
                dataset=dataset,
                folder=settings.workspace / "training",
                output=settings.trained_checkpoint,
                device=device_by_name(settings.device),
                precision=settings.precision,
                epochs=int(request.get("epochs") or settings.epochs),
                learning_rate=float(request.get("learning_rate") or settings.learning_rate),
                learned=learned,
                key_metric=settings.key_metric,
            )
            change["sha256"] = file_sha256(settings.trained_checkpoint)
        _log.info("learned %s from %d labels", ", ".join(names), len(used))
        seconds = round(time.monotonic() - started, 1)
        key = settings.key_metric.removeprefix("val_")
        return {"trained": True, "names": names, "labels": len(used), key: best, "seconds": seconds}
