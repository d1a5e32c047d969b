"""A result that nobody has seen goes to the archive with what must be known of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.caveats import Caveat  # noqa: E402
from boltzformer_monai.demo.phantom import make_phantom  # noqa: E402
from boltzformer_monai.demo.phantom_files import write_phantom_dicom  # noqa: E402
from boltzformer_monai.errors import ConfigError  # noqa: E402
from boltzformer_monai.io.read import read_volume, write_label_map  # noqa: E402
from boltzformer_monai.label.app import MODEL, BoltzFormerApp  # noqa: E402
from boltzformer_monai.label.datastore.dicomweb import DicomWebDatastore  # noqa: E402
from boltzformer_monai.label.datastore.dicomweb_cache import Cache  # noqa: E402
from boltzformer_monai.label.label_info import caveats_in  # noqa: E402

LONG = "foo lesion " + "that is described at length " * 12
UNKNOWN = Caveat("unknown prompt", "the network was never shown this", "foo lesion")
LONG_UNKNOWN = Caveat("unknown prompt", "nor this", LONG)
OF_ALL = Caveat("not HU", "the voxels are not in HU")
MILD = Caveat("another plane", "trained on axial slices")


class Store(DicomWebDatastore):
    """A store of one series, whose archive keeps what it is sent."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.sent: list[Any] = []
        archive: Any = SimpleNamespace(store=self._kept, download=None, forget=lambda: None)
        super().__init__(archive, Cache(root))
        self.folder = folder

    def _kept(self, seg: Path) -> tuple[str, str]:
        self.sent.append(pydicom.dcmread(seg))
        return self.sent[-1].SeriesInstanceUID, self.sent[-1].SOPInstanceUID

    def list_images(self) -> list[str]:
        return ["1.2.3.4.1"]

    def image_folder(self, image_id: str) -> str:
        return str(self.folder)


def sent(tmp_path: Path, params: dict[str, Any]) -> Any:
    """The SEG that infer sends for a label map of three prompts, by what the model says of them."""
    image, _ = make_phantom("abdomen", seed=1, size=(36, 32, 5))
    folder = write_phantom_dicom(image, tmp_path / "cache" / "series", seed=1)
    store = Store(folder, tmp_path / "cache")
    grid = read_volume(folder)
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:5], labels[6:9], labels[12:14] = 1, 2, 3

    def task(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        write_label_map(labels, grid, tmp_path / "label.nii.gz")
        return str(tmp_path / "label.nii.gz"), {"label_names": {"liver": 1, "foo lesion": 2, LONG: 3}, **params}

    app: Any = SimpleNamespace(datastore=lambda: store, _infers={MODEL: task}, _uploaded=lambda image: None)
    BoltzFormerApp.infer(app, {"image": "1.2.3.4.1", "save_label": True, "label_tag": "final"})
    seg, report = store.sent
    assert (seg.Modality, report.Modality) == ("SEG", "SR")
    return seg


def test_infer_sends_its_caveats_along(tmp_path: Path) -> None:
    caveats = (UNKNOWN, LONG_UNKNOWN, OF_ALL)
    seg = sent(tmp_path, {"caveats": [each.as_dict() for each in caveats]})
    assert seg.SeriesDescription == "Segmentation by text prompts, IN DOUBT: see its segments"
    liver, unknown, long = seg.SegmentSequence
    assert [each.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for each in seg.SegmentSequence] == [
        "Liver", "Tissue", "Tissue",
    ]  # fmt: skip
    assert liver.SegmentDescription == OF_ALL.text
    assert unknown.SegmentDescription == f"{UNKNOWN.text}. {OF_ALL.text}"
    assert long.SegmentDescription.endswith(f"{LONG_UNKNOWN.text}. {OF_ALL.text}")
    assert {each.SegmentAlgorithmType for each in seg.SegmentSequence} == {"AUTOMATIC"}


def test_what_is_not_in_doubt_keeps_its_code(tmp_path: Path) -> None:
    seg = sent(tmp_path, {"caveats": [MILD.as_dict()]})
    assert seg.SeriesDescription == "Segmentation by text prompts"
    assert seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    assert {each.SegmentDescription[-len(MILD.text) :] for each in seg.SegmentSequence} == {MILD.text}


@pytest.mark.parametrize(
    "each", ["text", {"kind": "not HU"}, {"kind": "x", "text": "y"}, {"kind": "not HU", "text": "y", "prompt": 3}]
)
def test_caveats_that_are_none_are_one_line(each: Any) -> None:
    with pytest.raises(ConfigError):
        caveats_in({"model": "boltzformer", "params": {"caveats": [each]}})
    assert caveats_in({"model": "x", "params": {"caveats": "none"}}) == caveats_in({"params": 3}) == ()
