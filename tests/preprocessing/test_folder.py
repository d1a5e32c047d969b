from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import BoltzFormerError, ConfigError, DatasetError, VolumeError
from preprocessing.cases import Case, LabelFile
from preprocessing.recipes import load_recipe
from tests.io.conftest import SeriesWriter
from tests.io.dicom_objects import write_rtstruct, write_seg
from tests.preprocessing.scan_files import write_image, write_label

folder_recipe = load_recipe("folder")

CT_NAMES = {"modality": "CT", "site": "abdomen", "labels": {"1": "liver", "2": "kidney right"}}
STACK = np.random.default_rng(0).integers(0, 2000, (4, 6, 8))


def listed(folder: Path, **options: Any) -> dict[str, Case]:
    cases = pickle.loads(pickle.dumps(folder_recipe(folder, **options)))
    assert not any(case.public for case in cases)
    assert len({case.volume_id for case in cases}) == len(cases)
    return {case.volume_id: case for case in cases}


def write_names(folder: Path, names: object = CT_NAMES) -> None:
    (folder / "labels.json").write_text(json.dumps(names))


def test_images_and_labels_of_equal_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_image(tmp_path / "images" / "anna.nii.gz")
    write_image(tmp_path / "images" / "bert.nii")
    (tmp_path / "images" / "._anna.nii.gz").write_bytes(b"macOS")
    (tmp_path / "images" / "notes.txt").write_text("x")
    write_label(tmp_path / "labels" / "anna.nrrd", 1, 2)
    write_label(tmp_path / "labels" / "carla.nii.gz", 1)
    write_names(tmp_path)
    cases = listed(tmp_path)
    assert set(cases) == {"anna", "bert"}
    assert cases["anna"].annotation == LabelFile(tmp_path / "labels" / "anna.nrrd", CT_NAMES["labels"])
    assert cases["bert"].annotation is None
    assert {(case.modality, case.site) for case in cases.values()} == {("CT", "abdomen")}
    drawn = cases["anna"].annotation.draw_on(cases["anna"].read_image())
    assert np.unique(drawn.volume.array).tolist() == [0, 1, 2]
    assert "1 labels have no image (carla" in caplog.text


def test_options_count_more_than_the_file(tmp_path: Path):
    write_image(tmp_path / "images" / "a.nii.gz")
    write_names(tmp_path)
    case = listed(tmp_path, modality="MR", site="leg")["a"]
    assert (case.modality, case.site) == ("MR", "leg")


def test_the_manner_of_nnu_net(tmp_path: Path):
    for name in ("liver_001_0000", "liver_002_0000"):
        write_image(tmp_path / "imagesTr" / f"{name}.nii.gz")
    write_label(tmp_path / "labelsTr" / "liver_001.nii.gz", 1)
    write_image(tmp_path / "imagesTs" / "liver_0009.nii.gz")  # a number of a patient, not of a channel
    cases = listed(tmp_path)
    assert set(cases) == {"liver_001", "liver_002", "liver_0009"}
    assert cases["liver_001"].annotation.path.name == "liver_001.nii.gz"
    assert cases["liver_001"].image.name == "liver_001_0000.nii.gz"
    assert cases["liver_001"].channel is None


def test_channels_in_files_of_their_own(tmp_path: Path):
    for number in range(2):
        write_image(tmp_path / "imagesTr" / f"p_{number:04d}.nii.gz", seed=number)
    write_image(tmp_path / "imagesTr" / "q_0000.nii.gz")
    write_label(tmp_path / "labelsTr" / "p.nii.gz", 1)
    with pytest.raises(ConfigError, match="one of 2 channels of a scan; choose one with --channel"):
        listed(tmp_path)
    cases = listed(tmp_path, channel=1)
    assert cases["p"].image.name == "p_0001.nii.gz"
    with pytest.raises(VolumeError, match=r"q_0001\.nii\.gz"):
        cases["q"].read_image()


def test_a_channel_of_four_dimensional_files(tmp_path: Path):
    import nibabel as nib

    path = write_image(tmp_path / "images" / "a.nii.gz", channels=3)
    image = listed(tmp_path, channel=2, modality="MR")["a"].read_image()
    np.testing.assert_array_equal(image.array, np.asarray(nib.load(path).dataobj)[..., 2])
    assert image.modality == "MR"


def test_a_folder_for_each_scan_with_names_of_its_own_or_common_ones(tmp_path: Path):
    for patient in ("anna", "bert/ct1", "carla"):
        write_image(tmp_path / patient / "image.nii.gz")
    write_label(tmp_path / "anna" / "label.nii.gz", 1)
    write_label(tmp_path / "bert" / "ct1" / "Label.nrrd", 1, 2)
    write_names(tmp_path)
    write_names(tmp_path / "anna", {"modality": "MR", "site": "leg", "labels": {"1": "sarcoma"}})
    cases = listed(tmp_path)
    assert {name: (case.patient, case.modality, case.site) for name, case in cases.items()} == {
        "anna": ("anna", "MR", "leg"),
        "bert/ct1": ("bert/ct1", "CT", "abdomen"),
        "carla": ("carla", "CT", "abdomen"),
    }
    assert cases["anna"].annotation.names == {"1": "sarcoma"}
    assert cases["bert/ct1"].annotation.names == CT_NAMES["labels"]
    assert cases["carla"].annotation is None


def test_a_folder_that_is_one_scan(tmp_path: Path):
    write_image(tmp_path / "anna" / "scan.nii.gz")
    write_label(tmp_path / "anna" / "seg.nii.gz", 1)
    assert set(listed(tmp_path / "anna")) == {"anna"}


def test_one_broken_labels_json_harms_only_its_scan(tmp_path: Path):
    for patient in ("anna", "bert"):
        write_image(tmp_path / patient / "image.nii.gz")
        write_label(tmp_path / patient / "label.nii.gz", 1)
        write_names(tmp_path / patient)
    (tmp_path / "anna" / "labels.json").write_text("{")
    cases = listed(tmp_path)
    with pytest.raises(DatasetError, match=r"anna/labels\.json"):
        cases["anna"].annotation.draw_on(cases["anna"].read_image())
    assert cases["bert"].annotation.draw_on(cases["bert"].read_image()).names == CT_NAMES["labels"]
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(DatasetError, match=r"labels\.json"):
        listed(tmp_path)


def referring(uid: str, patient: str = "p") -> Any:
    """Return the change that makes a SEG or RTSTRUCT refer to a series."""
    import pydicom

    def change(dataset: Any) -> None:
        series = pydicom.Dataset()
        series.SeriesInstanceUID = uid
        dataset.PatientID, dataset.SeriesInstanceUID = patient, "1.2.3.77"
        if dataset.Modality == "SEG":
            dataset.ReferencedSeriesSequence = [series]
            return
        study, frame = pydicom.Dataset(), pydicom.Dataset()
        study.RTReferencedSeriesSequence = [series]
        frame.RTReferencedStudySequence = [study]
        dataset.ReferencedFrameOfReferenceSequence = [frame]

    return change


@pytest.fixture
def archive(tmp_path: Path, write_series: SeriesWriter) -> Path:
    """Two series of one patient in one flat folder, one of another patient elsewhere."""
    top = tmp_path / "archive"

    def patient(name: str) -> Any:
        return lambda dataset, index: setattr(dataset, "PatientID", name)

    write_series(STACK, folder=top / "a", uid="1.2.3.4.1", change=patient("anna"))
    write_series(STACK, folder=top / "a", uid="1.2.3.4.2", change=patient("anna"), modality="MR")
    write_series(STACK, folder=top / "b" / "deep", uid="1.2.3.4.3", change=patient("bert"))
    return top


def test_dicom_series_wherever_they_lie(archive: Path):
    cases = listed(archive)
    assert {uid: (case.patient, case.image.name) for uid, case in cases.items()} == {
        "1.2.3.4.1": ("anna", "a"),
        "1.2.3.4.2": ("anna", "a"),
        "1.2.3.4.3": ("bert", "deep"),
    }
    assert {case.modality for case in cases.values()} == {None}
    assert [case.read_image().modality for case in cases.values()] == ["CT", "MR", "CT"]


def test_seg_and_rtstruct_find_the_series_that_they_refer_to(archive: Path, caplog: pytest.LogCaptureFixture):
    cases = listed(archive)
    image = cases["1.2.3.4.1"].read_image()
    mask = np.zeros(image.shape, bool)
    mask[2:4, 1:3, 1] = True
    (archive / "results").mkdir()
    write_seg(
        archive / "results" / "x.dcm", {1: mask}, image.affine, labels={1: "Liver"}, change=referring("1.2.3.4.1")
    )
    corners = np.array([(1.5, 1.5, 1), (1.5, 3.5, 1), (4.5, 3.5, 1), (4.5, 1.5, 1)])
    contour = corners @ image.affine[:3, :3].T + image.affine[:3, 3]
    write_rtstruct(archive / "b" / "rt.dcm", {"GTV": [contour]}, change=referring("1.2.3.4.3"))
    write_rtstruct(archive / "rt.dcm", {"GTV": [contour]}, change=referring("1.2.3.999"))
    cases = listed(archive)
    assert len(cases) == 3
    seg = cases["1.2.3.4.1"].annotation.draw_on(cases["1.2.3.4.1"].read_image())
    np.testing.assert_array_equal(seg.volume.array, mask)
    assert list((seg.names or {}).values()) == ["Liver"]
    rt = cases["1.2.3.4.3"].annotation.draw_on(cases["1.2.3.4.3"].read_image())
    assert rt.volume.array.any(axis=(0, 1)).tolist() == [False, True, False, False]
    assert cases["1.2.3.4.2"].annotation is None
    assert "1 annotations refer to series that are not there (rt.dcm" in caplog.text


def test_a_label_map_beside_the_only_series_of_a_folder(archive: Path):
    for patient in ("a", "b"):
        write_label(archive / patient / "label.nii.gz", 1)
        write_names(archive / patient)
    cases = listed(archive)
    assert cases["1.2.3.4.3"].annotation == LabelFile(archive / "b" / "label.nii.gz", CT_NAMES["labels"])
    assert cases["1.2.3.4.3"].site == "abdomen"
    assert cases["1.2.3.4.1"].annotation is None  # of two series, whose is it?


def test_two_annotations_of_one_series_must_be_chosen_from(archive: Path):
    for name in ("first.dcm", "second.dcm"):
        write_rtstruct(archive / name, {}, change=referring("1.2.3.4.3"))
    case = listed(archive)["1.2.3.4.3"]
    with pytest.raises(DatasetError, match=r"2 annotations refer to one series \(first.dcm, second.dcm\); keep one"):
        case.annotation.draw_on(case.read_image())
    assert [path.name for path in case.annotation.files()] == ["first.dcm", "second.dcm"]


def test_damaged_dicom_does_not_stop_the_listing_but_its_scan(archive: Path):
    (archive / "c").mkdir()
    (archive / "c" / "1.dcm").write_bytes(b"")
    spoilt = min((archive / "b" / "deep").iterdir())
    spoilt.write_bytes(spoilt.read_bytes()[:300])
    cases = listed(archive)
    assert set(cases) == {"1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3", "c"}
    for name in ("c", "1.2.3.4.3"):
        with pytest.raises(VolumeError):
            cases[name].read_image()
    assert cases["1.2.3.4.1"].read_image().shape == (8, 6, 4)


def test_files_that_are_no_scans_are_no_cases(archive: Path):
    (archive / "readme.txt").write_text("x")
    (archive / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert len(listed(archive)) == 3


@pytest.mark.parametrize("content", [None, "readme.txt"])
def test_nothing_found_says_what_was_looked_for(tmp_path: Path, content: str | None):
    if content:
        (tmp_path / content).write_text("x")
    with pytest.raises(DatasetError, match=r"looked for images/ with labels/, folders .* and DICOM series"):
        listed(tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        listed(tmp_path / "nowhere")


def test_the_shared_scans_are_listed(shared_data: Path):
    cases = listed(shared_data)
    assert {"amos_0018", "lung1_001", "ts_mr_3mm"} <= cases.keys()
    assert (cases["ts_mr_3mm"].modality, cases["amos_0018"].site) == ("MR", "abdomen")
    small = cases["ts_ct_3mm"]
    drawn = small.annotation.draw_on(small.read_image())
    assert len(drawn.names) > 30
    series = [case for case in cases.values() if "ts_ct_dicom" in case.image.parts]
    assert len(series) == 1
    drawn = series[0].annotation.draw_on(series[0].read_image())
    assert "liver" in drawn.names.values()
    outcomes = [outcome(case) for case in cases.values() if case.series]
    assert sum(isinstance(each, tuple) for each in outcomes) >= 3
    assert not any("\n" in each for each in outcomes if isinstance(each, str))


def outcome(case: Case) -> tuple[int, ...] | str:
    try:
        return case.read_image().shape
    except BoltzFormerError as error:
        return str(error)
