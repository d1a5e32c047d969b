"""A day at an archive: the real server before a real Orthanc, over HTTP."""

from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from tests.needs import need_module

need_module("monailabel")
need_module("highdicom")
import requests  # noqa: E402

from boltzformer_monai.io.read import read_volume  # noqa: E402
from tests.label.dicom_series import add_phantom, masks_by_highdicom, stored  # noqa: E402
from tests.label.live_server import running  # noqa: E402
from tests.label.orthanc import Orthanc, orthanc  # noqa: E402

pytestmark = pytest.mark.slow  # one day of one server: every test goes on where the one before ended

ASKED: dict[str, Any] = {"threshold": 0.3, "presence": False}
USER = ("reader", "s3cret")
_PATIENCE_S = 300


class Server:
    """The label server under test, its archive, and the series in it."""

    def __init__(self, url: str, archive: Orthanc, folder: Path, series: dict[str, str]) -> None:
        self.url, self.archive, self.folder, self.series = url, archive, folder, series

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=_PATIENCE_S, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}", timeout=_PATIENCE_S, **options)

    def segment(self, image: str, prompts: list[str], **options: Any) -> requests.Response:
        return self.post("/boltzformer/api/segment", json={"image": image, "prompts": prompts, **ASKED, **options})


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("archive")
    with orthanc(folder / "orthanc", USER) as archive:
        series = {
            "abdomen": add_phantom(archive, folder / "abdomen", "abdomen", seed=1),
            "chest": add_phantom(archive, folder / "chest", "chest", seed=2),
            "torn": add_phantom(archive, folder / "torn", "abdomen", seed=3, without=4),
        }
        environment = {"NO_PROXY": "127.0.0.1"}
        environment["MONAI_LABEL_DICOMWEB_USERNAME"], environment["MONAI_LABEL_DICOMWEB_PASSWORD"] = USER
        conf = {"checkpoint": checkpoint, "workspace": folder / "work"}
        with running(archive.url, folder, conf, environment=environment) as started:
            yield Server(started.url, archive, folder, series)


def opened(content: bytes) -> Any:
    return nibabel.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(content)))


def test_lists_what_the_archive_holds(server: Server) -> None:
    info = server.get("/info/").json()
    assert info["datastore"]["total"] == 3
    assert set(server.get("/datastore/?output=all").json()["objects"]) == set(server.series.values())
    config = server.get("/boltzformer/api/config").json()
    assert config["dicom_seg"] is True
    assert {each["id"]: each["modality"] for each in config["images"]} == dict.fromkeys(server.series.values(), "CT")


def test_scan_and_image_are_the_series_as_nifti(server: Server) -> None:
    uid = server.series["chest"]
    volume = read_volume(server.folder / "chest")
    for path in (f"/boltzformer/api/images/{uid}/scan.nii.gz", f"/datastore/image?image={uid}"):
        image = opened(server.get(path).content)
        np.testing.assert_array_equal(np.asarray(image.dataobj), volume.array)
        np.testing.assert_allclose(image.affine, volume.affine, atol=1e-4)


def test_stock_inference(server: Server) -> None:
    uid = server.series["abdomen"]
    params = {"prompts": "liver; left kidney", **ASKED}
    reply = server.post(f"/infer/boltzformer?image={uid}&output=image", data={"params": json.dumps(params)})
    assert reply.status_code == 200, reply.text
    labels = np.asarray(opened(reply.content).dataobj)
    assert labels.shape == read_volume(server.folder / "abdomen").shape
    assert labels.any()


def test_segmentation_as_dicom_seg(server: Server) -> None:
    uid = server.series["abdomen"]
    reply = server.segment(uid, ["left kidney"], uncertainty=2).json()
    assert reply["dicom_seg"] is True
    results = f"/boltzformer/api/results/{reply['result']}"
    labels = np.asarray(opened(server.get(f"{results}/labels.nii.gz").content).dataobj)
    seg = pydicom.dcmread(io.BytesIO(server.get(f"{results}/segmentation.dcm").content))
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    volume = read_volume(server.folder / "abdomen")
    masks = masks_by_highdicom(seg, server.folder / "abdomen", volume.affine, volume.shape)
    np.testing.assert_array_equal(masks["left kidney"], labels == 1)
    summary = server.get(f"{results}/summary.json").json()
    assert summary["ending"] == ".nii.gz"
    assert (reply["dicom_sr"], reply["dicom_sr_note"]) == (True, None)
    sr = pydicom.dcmread(io.BytesIO(server.get(f"{results}/report.sr.dcm").content))
    groups = sr.ContentSequence[-2].ContentSequence
    volumes = [item.MeasuredValueSequence[0].NumericValue for group in groups for item in group.ContentSequence
               if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Volume"]  # fmt: skip
    assert volumes == [lesion["volume_ml"] for lesion in summary["prompts"][0]["lesions"]]
    segments = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for group in groups
                for item in group.ContentSequence if item.ValueType == "IMAGE"]  # fmt: skip
    assert set(segments) == {seg.SOPInstanceUID}
    page = server.get(f"{results}/report.html")
    assert page.headers["content-type"].startswith("text/html")
    assert "left kidney" in page.text
    assert server.get(f"{results}/uncertainty.nii.gz").status_code == 200


def test_nothing_found_has_no_dicom_seg(server: Server) -> None:
    reply = server.segment(server.series["abdomen"], ["liver"], threshold=0.999999).json()
    assert reply["not_found"] == ["liver"]
    assert reply["dicom_seg"] is False
    assert server.get(f"/boltzformer/api/results/{reply['result']}/segmentation.dcm").status_code == 404
    sr = pydicom.dcmread(io.BytesIO(server.get(f"/boltzformer/api/results/{reply['result']}/report.sr.dcm").content))
    assert sr.ContentSequence[-1].ContentSequence[0].TextValue == "liver: no lesions found"


def test_what_cannot_be_used_is_the_clients_mistake(server: Server) -> None:
    torn = server.segment(server.series["torn"], ["liver"])
    assert torn.status_code == 422
    assert "slice" in torn.json()["detail"]
    for image, status in (("1.2.3.4", 404), ("images", 404), ("../../etc", 400)):
        reply = server.segment(image, ["liver"])
        assert reply.status_code == status, reply.text
    assert server.get(f"/datastore/image?image={server.series['torn']}").status_code == 422


def test_the_next_scan_is_one_that_can_be_used(server: Server) -> None:
    offered = [server.post("/activelearning/first", json={}).json()["id"] for _ in range(2)]
    assert server.series["torn"] not in offered


def test_corrected_label_reaches_archive_and_training(server: Server) -> None:
    uid = server.series["chest"]
    reply = server.segment(uid, ["liver"]).json()
    labels = server.get(f"/boltzformer/api/results/{reply['result']}/labels.nii.gz").content
    info = {"label_info": [{"name": "Bright Thing", "idx": 1}]}
    saved = requests.put(
        f"{server.url}/datastore/label?image={uid}&tag=final",
        data={"params": json.dumps(info)},
        files={"label": ("label.nii.gz", labels)},
        timeout=_PATIENCE_S,
    )
    assert saved.status_code == 200, saved.text
    (seg,) = stored(server.archive, modality="SEG")
    volume = read_volume(server.folder / "chest")
    masks = masks_by_highdicom(seg, server.folder / "chest", volume.affine, volume.shape)
    np.testing.assert_array_equal(masks["Bright Thing"], np.asarray(opened(labels).dataobj) == 1)
    assert server.get("/info/").json()["datastore"]["completed"] == 1
    # A SEG is no image.
    assert server.segment(seg.SeriesInstanceUID, ["liver"]).status_code == 404


def test_a_seg_from_elsewhere_is_learned_with_its_names(server: Server) -> None:
    uid = server.series["abdomen"]
    reply = server.segment(uid, ["Unheard Of"]).json()
    seg = server.get(f"/boltzformer/api/results/{reply['result']}/segmentation.dcm").content
    server.archive.ask("/instances", seg)  # as OHIF or a workstation would store it
    time.sleep(2.5)  # longer than a list is taken to be up to date
    assert server.get("/info/").json()["datastore"]["completed"] == 2
    label = np.asarray(opened(server.get(f"/datastore/label?label={uid}&tag=final").content).dataobj)
    expected = server.get(f"/boltzformer/api/results/{reply['result']}/labels.nii.gz").content
    np.testing.assert_array_equal(label, np.asarray(opened(expected).dataobj))
    trained = server.post("/train/boltzformer?run_sync=true", json={"epochs": 1})
    assert trained.status_code == 200, trained.text
    assert {"Unheard Of", "Bright Thing"} <= set(trained.json()["names"])
    assert server.post("/train/boltzformer?run_sync=true", json={"epochs": 1}).json()["trained"] is False
    assert "Unheard Of" in server.get("/info/").json()["models"]["boltzformer"]["config"]["prompts"]


def test_archive_down_is_said_and_overcome(server: Server) -> None:
    uid = server.series["abdomen"]
    server.archive.stop()
    try:
        time.sleep(2.5)
        started = time.monotonic()
        replies = {
            "info": server.get("/info/"),
            "list": server.get("/datastore/?output=all"),
            "config": server.get("/boltzformer/api/config"),
            "scan": server.get(f"/boltzformer/api/images/{uid}/scan.nii.gz"),
            "segment": server.segment(uid, ["liver"]),
            "infer": server.post(f"/infer/boltzformer?image={uid}", data={"params": "{}"}),
            "next": server.post("/activelearning/uncertainty", json={}),
            "train": server.post("/train/boltzformer?run_sync=true", json={}),
            "proxy": server.get("/proxy/dicom/studies"),
        }
        assert {name: reply.status_code for name, reply in replies.items()} == dict.fromkeys(replies, 503)
        assert "cannot be reached" in replies["segment"].json()["detail"]
        assert time.monotonic() - started < 120
    finally:
        server.archive.start()
    time.sleep(2.5)
    assert server.segment(uid, ["liver"]).status_code == 200
    assert server.get("/proxy/dicom/studies").status_code == 200
