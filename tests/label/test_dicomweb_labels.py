"""Labels of a DICOMweb server's scans: sent as DICOM SEG, read back with their names; against a real Orthanc."""

from __future__ import annotations

import errno
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
import requests

from tests.needs import need_module

need_module("monailabel")
need_module("highdicom")


from monailabel.interfaces.datastore import DefaultLabelTag  # noqa: E402

from boltzformer_monai.demo.phantom import make_phantom  # noqa: E402
from boltzformer_monai.demo.phantom_files import write_phantom_dicom  # noqa: E402
from boltzformer_monai.errors import StorageError, VolumeError  # noqa: E402
from boltzformer_monai.findings.lesions import find_lesions  # noqa: E402
from boltzformer_monai.io.dicom.seg_writer import write_dicom_seg  # noqa: E402
from boltzformer_monai.io.read import read_label_map, read_volume, write_label_map  # noqa: E402
from boltzformer_monai.label.datastore.dicomweb import open_dicomweb  # noqa: E402
from boltzformer_monai.label.datastore.dicomweb_client import DicomWebError  # noqa: E402
from boltzformer_monai.label.datastore.seg_labels import read_label  # noqa: E402
from boltzformer_monai.label.learning.corrected_labels import corrected_labels  # noqa: E402
from boltzformer_monai.label.safe_ids import UnknownIdError, label_path  # noqa: E402
from boltzformer_monai.label.server.error_responses import ErrorResponses  # noqa: E402
from boltzformer_monai.label.server.route_checks import Checks  # noqa: E402
from tests.label.dicom_series import NAMES, add_phantom, drawn, masks_by_highdicom, stored  # noqa: E402
from tests.label.orthanc import Orthanc  # noqa: E402

pytestmark = pytest.mark.usefixtures("always_asked")


def test_a_final_label_goes_to_the_archive_as_seg(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    file, labels = drawn(store, uid, tmp_path / "label.nii.gz")
    assert store.save_label(uid, str(file), "final", dict(NAMES)) == uid
    volume = read_volume(tmp_path / "a")
    (seg,) = stored(archive, modality="SEG")
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    source = pydicom.dcmread(next((tmp_path / "a").iterdir()), stop_before_pixels=True)
    assert (seg.StudyInstanceUID, seg.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    first, second = seg.SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Kidney"
    modifier = first.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeMeaning == "Left"
    assert {first.SegmentAlgorithmType, second.SegmentAlgorithmType} == {"SEMIAUTOMATIC"}
    masks = masks_by_highdicom(seg, tmp_path / "a", volume.affine, volume.shape)
    assert list(masks) == ["left kidney", "Böser Fleck"]
    np.testing.assert_array_equal(masks["left kidney"], labels == 3)
    np.testing.assert_array_equal(masks["Böser Fleck"], labels == 7)
    # Here it stays as it was saved, numbers included.
    assert store.get_labeled_images() == [uid]
    assert store.get_labels_by_image_id(uid) == {"final": uid}
    np.testing.assert_array_equal(read_label_map(label_path(store, uid, "final")).array, labels)
    assert store.get_label_info(uid, "final")["label_info"] == NAMES["label_info"]


def test_its_lesions_are_in_the_archive_as_sr(archive: Orthanc, tmp_path: Path) -> None:
    from highdicom.sr import Comprehensive3DSR

    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    file, labels = drawn(store, uid, tmp_path / "label.nii.gz")
    info = dict(NAMES)
    store.save_label(uid, str(file), "final", info)
    (seg,), (sr,) = stored(archive, modality="SEG"), stored(archive, modality="SR")
    assert (sr.StudyInstanceUID, sr.PatientID) == (seg.StudyInstanceUID, seg.PatientID)
    image = read_volume(tmp_path / "a")
    expected = [lesion for value in (3, 7) for lesion in find_lesions(labels == value, image)]
    groups = Comprehensive3DSR.from_dataset(sr).content.get_volumetric_roi_measurement_groups()
    for group, lesion in zip(groups, expected, strict=True):
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        read = [(each.name.meaning, each.value) for each in group.get_measurements()]
        assert read[:4] == [
            ("Volume", lesion.volume_ml), ("Long axis", lesion.long_axis_mm), ("Short axis", lesion.short_axis_mm),
            ("Diameter", lesion.diameter_mm),
        ]  # fmt: skip
    (found,) = corrected_labels(open_dicomweb(archive.url, tmp_path / "other"))
    assert found.image_id == uid  # no label, to this server


def test_a_label_is_saved_where_its_sr_cannot_be(
    archive: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    store_one = store.archive.store

    def only_seg(path: Path) -> tuple[str, str]:
        if path.name.endswith(".sr.dcm"):
            raise DicomWebError("the DICOMweb server is full")
        return store_one(path)

    monkeypatch.setattr(store.archive, "store", only_seg)
    file, _ = drawn(store, uid, tmp_path / "label.nii.gz")
    assert store.save_label(uid, str(file), "final", dict(NAMES)) == uid
    assert store.get_labeled_images() == [uid]
    assert "no DICOM SR of its lesions was stored: the DICOMweb server is full" in caplog.text


def test_another_server_reads_it_back_with_names(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    file, labels = drawn(store, uid, tmp_path / "label.nii.gz")
    store.save_label(uid, str(file), "final", dict(NAMES))
    other = open_dicomweb(archive.url, tmp_path / "other")
    (found,) = corrected_labels(other)
    assert (found.image_id, found.names) == (uid, {1: "left kidney", 2: "Böser Fleck"})
    read = read_label_map(found.label).array
    np.testing.assert_array_equal(read == 1, labels == 3)
    np.testing.assert_array_equal(read == 2, labels == 7)
    (again,) = corrected_labels(other)
    assert again.digest == found.digest


def test_the_newest_label_counts_and_a_deleted_one_does_not(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store, other = (open_dicomweb(archive.url, tmp_path / name) for name in ("work", "other"))
    file, labels = drawn(store, uid, tmp_path / "label.nii.gz")
    store.save_label(uid, str(file), "final", dict(NAMES))
    assert int((read_label_map(other.get_label_uri(uid, "final")).array > 0).sum()) == int((labels > 0).sum())
    time.sleep(1.1)  # what DICOM's dates tell apart on every server
    volume = read_volume(tmp_path / "a")
    write_label_map(np.where(labels == 3, 1, 0), volume, tmp_path / "second.nii.gz")
    store.save_label(uid, str(tmp_path / "second.nii.gz"), "final", {"label_info": [{"name": "cyst", "idx": 1}]})
    assert other.get_label_info(uid, "final")["label_info"] == [{"name": "cyst", "idx": 1}]
    np.testing.assert_array_equal(read_label_map(other.get_label_uri(uid, "final")).array == 1, labels == 3)
    for series in archive.ask("/series"):
        if archive.ask(f"/series/{series}")["MainDicomTags"]["Modality"] == "SEG":
            archive.ask(f"/series/{series}", method="DELETE")
    assert store.get_labeled_images() == []
    assert store.get_labels_by_image_id(uid) == {}
    with pytest.raises(UnknownIdError):
        store.get_label_uri(uid, "final")


def test_labels_that_cannot_be_sent_are_not_kept(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    volume = read_volume(tmp_path / "a")
    write_label_map(np.zeros(volume.shape, np.uint8), volume, tmp_path / "empty.nii.gz")
    with pytest.raises(VolumeError, match="no mask has a voxel"):
        store.save_label(uid, str(tmp_path / "empty.nii.gz"), "final", dict(NAMES))
    smaller = type(volume)(np.ones((volume.shape[0] - 1, *volume.shape[1:]), np.uint8), volume.affine)
    write_label_map(smaller.array, smaller, tmp_path / "other.nii.gz")
    with pytest.raises(VolumeError, match="grid"):
        store.save_label(uid, str(tmp_path / "other.nii.gz"), "final", dict(NAMES))
    assert store.get_labels_by_image_id(uid) == {}
    assert stored(archive, modality="SEG") == []


def test_a_sent_label_whose_copy_cannot_be_kept_is_said_to_be_saved(
    archive: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    file, labels = drawn(store, uid, tmp_path / "label.nii.gz")
    store.save_label(uid, str(file), "final", dict(NAMES))
    time.sleep(1.1)  # what DICOM's dates tell apart on every server
    write_label_map(np.where(labels == 3, 1, 0), read_volume(tmp_path / "a"), tmp_path / "second.nii.gz")
    cyst = {"label_info": [{"name": "cyst", "idx": 1}]}
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).is_relative_to(store.cache.labels.root):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(StorageError) as caught:
            store.save_label(
                uid, str(tmp_path / "second.nii.gz"), "final", {"label_info": [{"name": "cyst", "idx": 1}]}
            )
        status, told = ErrorResponses().describe(caught.value) or (0, "")
        assert status == 507
        assert "was saved on the DICOMweb server" in told
        assert "do not send it again" in told
        assert "could not be written (No space left on device)" in told
        assert "nothing was changed" not in told
        # What is here is not taken for what the archive has.
        with pytest.raises(StorageError, match="cannot be written"):
            store.get_label_uri(uid, "final")
    assert len(stored(archive, modality="SEG")) == 2
    assert store.get_label_info(uid, "final")["label_info"] == cyst["label_info"]
    np.testing.assert_array_equal(read_label_map(store.get_label_uri(uid, "final")).array == 1, labels == 3)


def test_drafts_stay_here(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    file, labels = drawn(store, uid, tmp_path / "label.nii.gz")
    store.save_label(uid, str(file), DefaultLabelTag.ORIGINAL, dict(NAMES))
    assert store.get_labels_by_image_id(uid) == {"original": uid}
    assert store.get_labeled_images() == []
    assert label_path(store, uid, "original").read_bytes() == file.read_bytes()
    store.remove_label(uid, "original")
    assert store.get_labels_by_image_id(uid) == {}


def test_bytes_of_ohif_are_a_label(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    _, labels = drawn(store, uid, tmp_path / "label.nii.gz")
    labels[labels == 3] = 1
    labels[labels == 7] = 2
    (tmp_path / "label.bin").write_bytes(labels.tobytes(order="F"))
    store.save_label(uid, str(tmp_path / "label.bin"), "final", {"label_info": [{"name": "liver"}, {"name": "cyst"}]})
    np.testing.assert_array_equal(read_label_map(store.get_label_uri(uid, "final")).array, labels)
    assert store.get_label_info(uid, "final")["label_info"] == [{"name": "liver", "idx": 1}, {"name": "cyst", "idx": 2}]
    (tmp_path / "short.bin").write_bytes(b"1")
    with pytest.raises(VolumeError, match="voxels"):
        store.save_label(uid, str(tmp_path / "short.bin"), "final", {})


def test_results_nobody_has_seen_say_so(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    file, _ = drawn(store, uid, tmp_path / "label.nii.gz")
    store.save_label(uid, str(file), "final", {"model": "boltzformer", "params": {}, **NAMES})
    (seg,) = stored(archive, modality="SEG")
    assert {each.SegmentAlgorithmType for each in seg.SegmentSequence} == {"AUTOMATIC"}


def test_all_labelled_scans_as_an_archive(archive: Orthanc, tmp_path: Path) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    add_phantom(archive, tmp_path / "b", "chest", seed=2)
    store = open_dicomweb(archive.url, tmp_path / "work")
    file, _ = drawn(store, uid, tmp_path / "label.nii.gz")
    store.save_label(uid, str(file), "final", dict(NAMES))
    with zipfile.ZipFile(store.get_dataset_archive(None)) as content:
        assert set(content.namelist()) == {f"image/{uid}.nii.gz", f"label/{uid}.nii.gz", "metadata.json"}


def test_a_label_that_cannot_be_used_does_not_hide_the_others(archive: Orthanc, tmp_path: Path) -> None:
    """A SEG whose series has lost a slice: left out of training and download."""
    good = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    bad = add_phantom(archive, tmp_path / "b", "chest", seed=2)
    store = open_dicomweb(archive.url, tmp_path / "work")
    for uid in (good, bad):
        store.save_label(uid, str(drawn(store, uid, tmp_path / "label.nii.gz")[0]), "final", dict(NAMES))
    (found,) = archive.ask("/tools/lookup", bad.encode())
    middle = archive.ask(f"/series/{found['ID']}")["Instances"][3]
    archive.ask(f"/instances/{middle}", method="DELETE")
    other = open_dicomweb(archive.url, tmp_path / "other")
    assert len(other.get_labeled_images()) == 2
    assert [each.image_id for each in corrected_labels(other)] == [good]
    Checks(SimpleNamespace(datastore=lambda: other, studies=archive.url), None).archive({})  # type: ignore[arg-type]
    with zipfile.ZipFile(other.get_dataset_archive(None)) as content:
        assert set(content.namelist()) == {f"image/{good}.nii.gz", f"label/{good}.nii.gz", "metadata.json"}


def test_a_passing_failure_of_the_archive_is_not_remembered(
    archive: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = add_phantom(archive, tmp_path / "a", "abdomen", seed=1)
    store = open_dicomweb(archive.url, tmp_path / "work")
    store.save_label(uid, str(drawn(store, uid, tmp_path / "label.nii.gz")[0]), "final", dict(NAMES))
    busy, broken = requests.Response(), requests.Response()
    busy.status_code, broken.status_code = 503, 500

    def fails(response: requests.Response) -> Callable[..., Any]:
        def ask(*_: Any, **__: Any) -> Any:
            raise requests.HTTPError(response=response)

        return ask

    other = open_dicomweb(archive.url, tmp_path / "other")
    with monkeypatch.context() as patched:
        patched.setattr(other.archive._client, "retrieve_series_metadata", fails(busy))
        with pytest.raises(DicomWebError, match="503"):
            other.get_labeled_images()
    assert other.get_labeled_images() == [uid]
    third = open_dicomweb(archive.url, tmp_path / "third")
    monkeypatch.setattr(third.archive._client, "retrieve_series_metadata", fails(broken))
    assert third.get_labeled_images() == []  # one damaged object hides no other


def test_a_compressed_series_of_a_scanner(archive: Orthanc, shared_data: Path, tmp_path: Path) -> None:
    series = shared_data / "ts_ct_dicom" / "dicom"
    (tmp_path / "real").mkdir()
    for file in sorted(series.iterdir()):  # anonymised so well that no archive takes it without these
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientID = "1.2.3.1", "1.2.3.02", "anonymous"
        dataset.save_as(tmp_path / "real" / f"{dataset.InstanceNumber}.dcm")
    archive.add(tmp_path / "real")
    store = open_dicomweb(archive.url, tmp_path / "work")
    (uid,) = store.list_images()
    volume = read_volume(store.image_folder(uid))
    np.testing.assert_array_equal(volume.array, read_volume(series).array)
    labels = np.zeros(volume.shape, np.uint8)
    labels[100:180, 200:300, 5:9] = 1
    write_label_map(labels, volume, tmp_path / "label.nii.gz")
    store.save_label(uid, str(tmp_path / "label.nii.gz"), "final", {"label_info": [{"name": "liver", "idx": 1}]})
    (seg,) = stored(archive, modality="SEG")
    folder = Path(store.image_folder(uid))
    np.testing.assert_array_equal(
        masks_by_highdicom(seg, folder, volume.affine, volume.shape)["liver"], labels.astype(bool)
    )


def test_of_overlapping_segments_the_smaller_is_seen(tmp_path: Path) -> None:
    image, _ = make_phantom("abdomen", seed=1, size=(48, 40, 8))
    folder = write_phantom_dicom(image, tmp_path / "scan", seed=1)
    volume = read_volume(folder)
    kidney, cyst = np.zeros(volume.shape, bool), np.zeros(volume.shape, bool)
    kidney[4:20, 6:18, 2:5] = True
    cyst[8:11, 8:24, 3] = True
    masks = [("cyst", None, cyst), ("kidney", None, kidney)]
    write_dicom_seg(tmp_path / "seg.dcm", scan=folder, masks=masks, grid=volume, algorithm="by hand", version="1")
    labels, names = read_label(tmp_path / "seg.dcm", volume, {})
    assert names == {1: "cyst", 2: "kidney"}
    np.testing.assert_array_equal(labels == 1, cyst)
    np.testing.assert_array_equal(labels == 2, kidney & ~cyst)
