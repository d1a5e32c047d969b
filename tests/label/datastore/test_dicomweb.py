"""The datastore of a DICOMweb server, against a real Orthanc."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.needs import need_module

need_module("monailabel")

from monailabel.config import settings  # noqa: E402

from boltzformer_monai.errors import ConfigError, VolumeError  # noqa: E402
from boltzformer_monai.io.read import read_label_map, read_volume  # noqa: E402
from boltzformer_monai.label.datastore import dicomweb_client as archive_client  # noqa: E402
from boltzformer_monai.label.datastore.dicomweb import open_dicomweb  # noqa: E402
from boltzformer_monai.label.datastore.dicomweb_client import DicomWebError  # noqa: E402
from boltzformer_monai.label.safe_ids import UnknownIdError, image_path, root_of  # noqa: E402
from tests.label.dicom_series import NAMES, add_phantom, drawn, stored  # noqa: E402
from tests.label.orthanc import Orthanc, free_port, orthanc  # noqa: E402

pytestmark = pytest.mark.usefixtures("always_asked")


def test_series_are_the_images(archive: Orthanc, tmp_path: Path) -> None:
    first = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    second = add_phantom(archive, tmp_path / "b", "chest", seed=2)
    store = open_dicomweb(archive.url, tmp_path / "work")
    assert store.list_images() == sorted([first, second])
    assert store.status() == {"total": 2, "completed": 0, "label_tags": {"final": 0}}
    info = store.get_image_info(first)
    assert (info["Modality"], info["PatientID"]) == ("CT", "PHANTOM-1")
    folder = image_path(store, first)
    assert folder.is_dir()
    assert folder.is_relative_to(root_of(store))
    np.testing.assert_array_equal(read_volume(folder).array, read_volume(tmp_path / "a").array)
    nifti = read_volume(store.get_image_uri(first))
    np.testing.assert_array_equal(nifti.array, read_volume(folder).array)
    np.testing.assert_allclose(nifti.affine, read_volume(folder).affine, atol=1e-4)
    assert oct((tmp_path / "work" / "dicomweb").stat().st_mode)[-3:] == "700"


def test_only_listed_series_are_images(archive: Orthanc, tmp_path: Path) -> None:
    add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    for name in ("images", "labels", "1.2.3", "datastore"):
        with pytest.raises(UnknownIdError):
            image_path(store, name)
    with pytest.raises(ConfigError):
        image_path(store, "../work")


def test_what_is_no_scan_is_refused_and_not_offered_again(archive: Orthanc, tmp_path: Path) -> None:
    torn = add_phantom(archive, tmp_path / "s", "abdomen", seed=3, without=4)
    store = open_dicomweb(archive.url, tmp_path / "work")
    assert store.get_unlabeled_images() == [torn]
    with pytest.raises(VolumeError, match="slice"):
        store.get_image_uri(torn)
    assert store.list_images() == [torn]
    assert store.get_unlabeled_images() == []


def test_a_series_that_grew_is_fetched_again(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1, slices=6)
    store = open_dicomweb(archive.url, tmp_path / "work")
    assert read_volume(store.get_image_uri(uid)).shape[2] == 6
    assert add_phantom(archive, tmp_path / "b", "abdomen", seed=1, slices=8) == uid
    assert read_volume(store.image_folder(uid)).shape[2] == 8
    assert read_volume(store.get_image_uri(uid)).shape[2] == 8


def test_what_only_the_archive_may_do(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    for call in (
        lambda: store.add_image("x", "x.nii.gz", {}),
        lambda: store.remove_image(uid),
        lambda: store.remove_label(uid, "final"),
    ):
        with pytest.raises(ConfigError, match="archive"):
            call()
    assert store.list_images() == [uid]


def test_ct_and_mr_unless_a_filter_is_set(archive: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ct = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    (tmp_path / "mr").mkdir()
    for modality, uid in (("MR", "1.2.3.5"), ("US", "1.2.3.6")):
        dataset = pydicom.dcmread(next((tmp_path / "a").iterdir()))
        dataset.Modality, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = modality, uid, f"{uid}.1"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(tmp_path / "mr" / f"{uid}.dcm")
    archive.add(tmp_path / "mr")
    store = open_dicomweb(archive.url, tmp_path / "work")
    assert store.list_images() == sorted([ct, "1.2.3.5"])
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", {"Modality": "US"})
    assert store.list_images() == ["1.2.3.6"]


def test_background_processes_see_the_same_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI Label hands them its default, CT, as if somebody had chosen it."""
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", json.loads('{"Modality": "CT"}'))
    assert archive_client._filters() == [{"Modality": "CT"}, {"Modality": "MR"}]
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", {"Modality": "CT", "PatientID": "7"})
    assert archive_client._filters() == [{"Modality": "CT", "PatientID": "7"}]


def test_a_series_that_does_not_come_whole_is_no_scan(
    archive: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    client = store.archive._client
    whole = client.iter_series
    monkeypatch.setattr(client, "iter_series", lambda *place, **options: list(whole(*place, **options))[:-1])
    with pytest.raises(DicomWebError, match="7 of the 8"):
        store.image_folder(uid)
    monkeypatch.undo()
    assert read_volume(store.image_folder(uid)).shape[2] == 8


def test_config_tells_whether_seg_can_be_written(
    archive: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monailabel.datastore.local import LocalDatastore

    from boltzformer_monai.label.server import routes

    def told(store: Any) -> bool:
        return routes._can_write_seg(store, store.list_images())

    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    remote = open_dicomweb(archive.url, tmp_path / "work")
    assert told(remote) is True
    (tmp_path / "local").mkdir()
    shutil.copy(remote.get_image_uri(uid), tmp_path / "local" / "scan.nii.gz")
    assert told(LocalDatastore(str(tmp_path / "local"))) is False


def test_user_and_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with orthanc(tmp_path / "orthanc", ("reader", "s3cret")) as archive:
        uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
        with pytest.raises(DicomWebError, match="MONAI_LABEL_DICOMWEB_PASSWORD"):
            open_dicomweb(archive.url, tmp_path / "work").list_images()
        monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "reader")
        monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "s3cret")
        store = open_dicomweb(archive.url, tmp_path / "work")
        file, labels = drawn(store, uid, tmp_path / "label.nii.gz")
        store.save_label(uid, str(file), "final", dict(NAMES))
        assert len(stored(archive, modality="SEG")) == 1
        assert np.count_nonzero(read_label_map(store.get_label_uri(uid, "final")).array) == np.count_nonzero(labels)


def test_a_server_that_is_down_is_told_at_once(tmp_path: Path) -> None:
    store = open_dicomweb(f"http://127.0.0.1:{free_port()}/dicom-web", tmp_path)
    with pytest.raises(DicomWebError, match="cannot be reached"):
        store.list_images()


def test_a_server_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_client, "READ_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = open_dicomweb(f"http://127.0.0.1:{silent.getsockname()[1]}/dicom-web", tmp_path)
        with pytest.raises(DicomWebError, match="did not answer"):
            store.list_images()


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>hello</html>"), (200, b'["x", 3]'), (404, b""), (500, b"")])
def test_what_is_no_dicomweb_server(tmp_path: Path, status: int, body: bytes) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        store = open_dicomweb(f"http://127.0.0.1:{server.server_port}", tmp_path)
        try:
            if body == b'["x", 3]':
                assert store.list_images() == []
            else:
                with pytest.raises(DicomWebError, match="DICOMweb server"):
                    store.list_images()
        finally:
            server.shutdown()
