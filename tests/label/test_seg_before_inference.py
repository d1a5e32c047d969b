"""A result that will be sent to an archive as DICOM SEG: the scan's headers are judged before the inference."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")
need_module("highdicom")

from boltzformer_monai.errors import VolumeError  # noqa: E402
from boltzformer_monai.label.app import MODEL, BoltzFormerApp  # noqa: E402
from boltzformer_monai.label.datastore.dicomweb import DicomWebDatastore  # noqa: E402
from tests.io.conftest import SeriesWriter, write_series  # noqa: E402

__all__ = ["write_series"]


class Store(DicomWebDatastore):
    """A store of one series."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._datastore_path = folder, str(folder.parent)
        self.saved: list[str] = []

    def list_images(self) -> list[str]:
        return ["1.2.3.4.1"]

    def image_folder(self, image_id: str) -> str:
        return str(self.folder)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        self.saved.append(label_tag)
        return image_id


@pytest.mark.parametrize(("tag", "sop_class", "asked"), [("final", "1.2.840.10008.5.1.4.1.1.2", True),
    ("final", "1.3.46.670589.11.0.0.12.1", False), ("original", "1.3.46.670589.11.0.0.12.1", True)])  # fmt: skip
def test_headers_are_judged_before_inference(write_series: SeriesWriter, tag: str, sop_class: str, asked: bool) -> None:
    def change(dataset: Any, index: int) -> None:
        dataset.StudyInstanceUID, dataset.SOPClassUID = "1.2.3.4", sop_class

    store = Store(write_series(np.ones((3, 5, 4)), change=change)[0].parent)
    calls = []

    def task(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        calls.append(request["image"])
        return "label.nii.gz", {"label_names": {}, "findings": []}

    app: Any = SimpleNamespace(datastore=lambda: store, _infers={MODEL: task}, _uploaded=lambda image: None)
    request = {"image": "1.2.3.4.1", "save_label": True, "label_tag": tag}
    if asked:
        BoltzFormerApp.infer(app, request)
        assert store.saved == [tag]
    else:
        with pytest.raises(VolumeError, match=r"SOPClassUID \(0008,0016\)"):
            BoltzFormerApp.infer(app, request)
    assert bool(calls) == asked
