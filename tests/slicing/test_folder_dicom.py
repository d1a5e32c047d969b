"""DICOM series in a folder tree: which files are one scan, what was drawn on it, and what damage does to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.cli.slice import main
from boltzformer_monai.data.slices.volume import SliceSettings
from boltzformer_monai.errors import ConfigError, DatasetError, VolumeError
from boltzformer_monai.slicing.cases import Case, LabelFile
from boltzformer_monai.slicing.slicing import JobSettings, source_digest
from tests.io.conftest import SeriesWriter
from tests.io.dicom_objects import write_rtstruct, write_seg
from tests.slicing.folder_cases import CT_NAMES, STACK, listed, write_names
from tests.slicing.scan_files import write_label


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
    match = r"2 annotations refer to one series \(first.dcm, second.dcm\); choose .* --option annotation=REGEX$"
    with pytest.raises(DatasetError, match=match):
        case.annotation.draw_on(case.read_image())
    assert [path.name for path in case.annotation.files()] == ["first.dcm", "second.dcm"]
    case = listed(archive, annotation="^sec")["1.2.3.4.3"]
    assert case.annotation == LabelFile(archive / "second.dcm")
    for pattern, number in (("third", 0), ("dcm$", 2)):
        case = listed(archive, annotation=pattern)["1.2.3.4.3"]
        with pytest.raises(DatasetError, match=rf"annotation=REGEX \('{pattern[:3]}.*' finds {number}\)"):
            case.annotation.draw_on(case.read_image())
    with pytest.raises(ConfigError, match="annotation '\\(' is not a regular expression"):
        listed(archive, annotation="(")


def test_a_pattern_leaves_the_only_annotation_of_a_series_alone(archive: Path):
    write_rtstruct(archive / "first.dcm", {}, change=referring("1.2.3.4.3"))
    assert listed(archive, annotation="other")["1.2.3.4.3"].annotation == LabelFile(archive / "first.dcm")


def test_patient_ids_of_dicom_need_no_guess(archive: Path, caplog: pytest.LogCaptureFixture):
    assert {case.patient for case in listed(archive, patient_pattern="(nothing)").values()} == {"anna", "bert"}
    assert {case.patient for case in listed(archive).values()} == {"anna", "bert"}
    assert "counted" not in caplog.text


def test_damaged_dicom_does_not_stop_the_listing_but_its_scan(archive: Path):
    (archive / "c").mkdir()
    (archive / "c" / "1.dcm").write_bytes(b"")
    spoilt = min((archive / "b" / "deep").iterdir())
    spoilt.write_bytes(spoilt.read_bytes()[:300])
    cases = listed(archive)
    assert set(cases) == {"1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3", "c/1.dcm"}
    for name in ("c/1.dcm", "1.2.3.4.3"):
        with pytest.raises(VolumeError):
            cases[name].read_image()
    assert cases["1.2.3.4.1"].read_image().shape == (8, 6, 4)


def test_files_that_are_no_scans_are_no_cases(archive: Path):
    (archive / "readme.txt").write_text("x")
    write_dicomdir(archive / "DICOMDIR")
    assert len(listed(archive)) == 3


def write_dicomdir(path: Path) -> None:
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3.88"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.dataset.FileDataset(str(path), pydicom.Dataset(), preamble=b"\0" * 128, file_meta=meta)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.save_as(path, write_like_original=False)


@pytest.fixture
def flat(tmp_path: Path, write_series: SeriesWriter) -> Path:
    """Three series of three patients in one folder, as exports of an archive and discs have them."""
    for number in range(1, 4):
        write_flat(write_series, tmp_path / "flat", number)
    return tmp_path / "flat"


def write_flat(write_series: SeriesWriter, folder: Path, number: int) -> list[Path]:
    return write_series(
        STACK,
        folder=folder,
        uid=f"1.2.3.4.{number}",
        change=lambda dataset, index: setattr(dataset, "PatientID", f"p{number}"),
    )


def test_one_damaged_file_of_a_flat_folder_does_not_spoil_the_series_beside_it(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = min(flat.iterdir()).read_bytes()
    (flat / "cut.dcm").write_bytes(whole[:300])
    output = tmp_path / "out"
    options = ["--recipe", "folder", "--input", str(flat), "--output", str(output), "--site", "abdomen"]
    assert main(options) == 3
    streams = capsys.readouterr()
    assert "3 volumes" in streams.out
    assert "1 scan refused" in streams.out
    assert "cut.dcm" in streams.err
    report = json.loads((output / "report.json").read_text())
    assert (report["done"], report["refused"]) == (3, 1)


@pytest.mark.parametrize("length", range(150, 640, 35))
def test_a_cut_slice_is_never_left_out_in_silence(flat: Path, length: int):
    """Whatever is left of it, the slice is in some case that is refused."""
    spoilt = min(flat.iterdir())
    spoilt.write_bytes(spoilt.read_bytes()[:length])
    cases = [case for case in listed(flat).values() if spoilt in case.files]
    assert len(cases) == 1
    with pytest.raises(VolumeError, match=spoilt.name):
        cases[0].read_image()


def test_a_series_more_leaves_the_others_as_they_are(flat: Path, tmp_path: Path, write_series: SeriesWriter):
    settings = JobSettings(root=tmp_path, slices=SliceSettings())
    before = {name: source_digest(case, settings) for name, case in listed(flat).items()}
    write_flat(write_series, flat, 4)
    after = {name: source_digest(case, settings) for name, case in listed(flat).items()}
    assert set(after) - set(before) == {"1.2.3.4.4"}
    assert {name: after[name] for name in before} == before
    changed = min(flat.glob("2-*.dcm"))
    changed.write_bytes(changed.read_bytes() + b"\0\0")
    again = {name: source_digest(case, settings) for name, case in listed(flat).items()}
    assert {name for name in after if after[name] != again[name]} == {"1.2.3.4.2"}


@pytest.mark.parametrize("voxels", ["scan.raw", "elsewhere.raw"])
def test_the_digest_of_a_scan_notices_other_voxels_beside_its_header(tmp_path: Path, voxels: str):
    header = tmp_path / "scan.mhd"
    header.write_text(f"NDims = 3\nElementDataFile = {voxels}\n", encoding="ascii")
    (tmp_path / voxels).write_bytes(b"1")
    case, settings = Case("scan", "p", header, None, ""), JobSettings(tmp_path / "out", SliceSettings())
    before = source_digest(case, settings)
    assert source_digest(case, settings) == before
    (tmp_path / voxels).write_bytes(b"12")
    assert source_digest(case, settings) != before
