"""Odd headers and DICOM SEG: repaired in the SEG, or refused by name, and known before any mask is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.seg_writer import check_can_be_seg, write_dicom_seg
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.segmentation import read_segmentation
from tests.io.conftest import FileWriter, SeriesWriter
from tests.needs import need_module
from tests.sizes import count

need_module("highdicom")

SECRET = "told her mother"
LONG = b"1234567890" * 9
# Values as bytes of a file; None: the attribute is not there.
UIDS = (None, b"", b"abc", b"1.2.\xe4", b"1." + LONG, b"1.2\\1.3", b"1..2", b"\0")
NUMBERS = (None, b"", b" ", b"abc", b"-1", b"0", b"1\\2", b"1e999", b"1,5")
TEXTS = (None, b"", b"\xe4\xf6\xff", LONG, b"a\\b", b"a\x0ab", b"a^b^c^d^e^f^g", b"=\xff=", b"  x ")
DATES = (
    None,
    b"",
    b"19700101-19800101",
    b"1970.01.01",
    b"unknown",
    b"19701301",
    b"\xff\xfe",
    b"700101",
    b"19700101\\1",
)
TIMES = (None, b"", b"25", b"12:30:15", b"123015.1234567", b"noon", b"1230-1330", b"240000", b"\xff")
VALUES: Mapping[str, tuple[bytes | None, ...]] = {
    "SliceThickness": NUMBERS,
    "SpacingBetweenSlices": NUMBERS,
    "SeriesNumber": (*NUMBERS, b"99999999999", b"-5"),
    "PatientBirthDate": DATES,
    "StudyDate": DATES,
    "StudyTime": TIMES,
    "PatientSex": (None, b"", b"m", b"Male", b"U", b"M\\F", b"\xff", b"unknown"),
    "PatientID": TEXTS,
    "PatientName": TEXTS,
    "ReferringPhysicianName": TEXTS,
    "StudyID": TEXTS,
    "AccessionNumber": TEXTS,
    "PatientAge": (b"abc", b"\xff"),
    "StudyInstanceUID": UIDS,
    "SeriesInstanceUID": UIDS,
    "FrameOfReferenceUID": UIDS,
    "SOPInstanceUID": UIDS,
    "SOPClassUID": (*UIDS, b"1.2.840.113619.4.26", b"1.3.46.670589.11.0.0.12.1"),
    "SpecificCharacterSet": (None, b"FOO", b"ISO_IR 100", b"\\ISO 2022 IR 87", b"\xff"),
    "LossyImageCompression": (b"01", b"XX", b"", b"\xff"),
    "LossyImageCompressionRatio": (b"abc", b"", b"7.5"),
    "NumberOfFrames": (b"1", b""),
    "PositionReferenceIndicator": TEXTS,
    "ImagePositionPatient": (None, b"", b"abc", b"1\\2", b"0\\0\\nan"),
    "ImageOrientationPatient": (None, b"", b"abc", b"1\\0\\0\\0\\1", b"0\\0\\0\\0\\0\\0"),
    "PixelSpacing": (None, b"", b"abc", b"1", b"0\\1", b"-1\\1"),
}
FAULTS = count(len(VALUES) * 4, thorough=1000)
# The patient stays whom the archive knows, however it is written, and an object with that is counted as invalid.
PATIENT = r"\(0x0010,0x00[12]0\)|PatientName|PatientID|Dicom dataset contains invalid data"
IN_WORDS = ("several patients", "several series", "several frames of reference", "mixed modalities")


def spoil(path: Path, keyword: str, value: bytes | None, *, preface: bool = False) -> None:
    import pydicom
    from pydicom.dataelem import RawDataElement

    dataset = pydicom.dcmread(path)
    tag = pydicom.tag.Tag(keyword)
    if value is None:
        dataset.pop(tag, None)
    else:
        vr = pydicom.datadict.dictionary_VR(tag)
        value += b"\0" * (len(value) % 2) if vr == "UI" else b" " * (len(value) % 2)
        dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    if preface:
        dataset.file_meta.pop(pydicom.tag.Tag(f"MediaStorage{keyword}"), None)
    dataset.save_as(path)


def stated(dataset: Any, index: int = 0) -> None:
    dataset.StudyInstanceUID, dataset.StudyID, dataset.AccessionNumber = "1.2.3.4", "7", "A1"
    dataset.PatientName, dataset.PatientSex, dataset.PatientBirthDate = "Doe^Jane", "F", "19700101"
    dataset.StudyDate, dataset.StudyTime, dataset.SeriesNumber = "20200101", "101112", 4
    for keyword in ("PatientComments", "AdditionalPatientHistory", "StudyDescription", "Allergies", "EthnicGroup"):
        setattr(dataset, keyword, SECRET[:16])


def says_what(error: VolumeError, keywords: set[str]) -> bool:
    """Whether a refusal names one of the attributes that were spoiled, in one line without words of Python."""
    line = str(error)
    assert "\n" not in line
    assert not re.search(r"Error\b|object has no|NoneType|Traceback|\b0x", line), line
    if error.reason == "header":
        return any(re.search(rf"\b{keyword} \([0-9A-F]{{4}},[0-9A-F]{{4}}\)", line) for keyword in keywords)
    return error.reason in IN_WORDS or any(keyword in line for keyword in keywords)


def objections(path: Path) -> set[str]:
    """What dciodvfy calls an error."""
    found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False)
    return {line for line in found.stderr.splitlines() if line.startswith("Error")}


@pytest.mark.slow
def test_random_header_faults(write_series: SeriesWriter, tmp_path: Path) -> None:
    import highdicom
    import pydicom

    whole = write_series(np.arange(2 * 7 * 6).reshape(2, 7, 6), change=stated)[0].parent
    mask = np.zeros(read_volume(whole).shape, bool)
    mask[1:4, 2:6, 1:] = mask[0, 0, 0] = True
    write_dicom_seg(
        tmp_path / "sound.dcm", scan=whole, masks=[("kidney", None, mask)], grid=read_volume(whole), algorithm="x",
        version="0",
    )  # fmt: skip
    checked = shutil.which("dciodvfy") is not None  # test_seg_writer.py tells where it is missing
    usual = objections(tmp_path / "sound.dcm") if checked else set()
    written = refused = 0
    keywords = list(VALUES)
    for number in range(FAULTS):
        random = np.random.default_rng((11, number))
        folder, out = tmp_path / "scan", tmp_path / "seg.dcm"
        shutil.copytree(whole, folder)
        faults = {keywords[(number + step * 7) % len(keywords)] for step in range(int(random.integers(1, 3)))}
        files = sorted(folder.iterdir())
        for keyword in sorted(faults):
            value = VALUES[keyword][int(random.integers(len(VALUES[keyword])))]
            for path in files if random.random() < 0.75 else files[:1]:
                spoil(path, keyword, value, preface=keyword.startswith("SOP") and random.random() < 0.6)
        refusal = None
        try:
            volume = read_volume(folder)
            check_can_be_seg(folder, names=["kidney"])
        except VolumeError as error:
            refusal = error
        if refusal is not None:
            assert says_what(refusal, faults), (number, faults, str(refusal))
            refused += 1
        else:  # from here on nothing may fail: inference has run
            masks = [("kidney", None, mask)]
            write_dicom_seg(out, scan=folder, masks=masks, grid=volume, algorithm="x", version="0")
            read = pydicom.dcmread(out)
            assert number % 3 or list(highdicom.seg.segread(out).segment_numbers) == [1]
            np.testing.assert_array_equal(read_segmentation(out, volume).volume.array == 1, mask)
            assert SECRET[:16].encode() not in out.read_bytes()
            assert read.PatientSex in ("", "F", "M")
            if number % 15 == 0 and checked:
                own = {line for line in objections(out) - usual if not re.search(PATIENT, line)}
                assert not own, (number, faults, own)
            written += 1
        shutil.rmtree(folder)
        out.unlink(missing_ok=True)
    assert written > FAULTS / 3
    assert refused > FAULTS / 5


@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("PatientBirthDate", b"1970.01.01", "19700101"),
        ("PatientBirthDate", b"unknown", ""),
        ("PatientSex", b"m", "M"),
        ("PatientSex", b"unknown", ""),
        ("StudyTime", b"12:30:15", "123015"),
        ("StudyTime", b"noon", ""),
        ("StudyDate", b"20201332", ""),
        ("AccessionNumber", b"A123456789012345678", ""),
        ("PatientID", LONG[:80], LONG[:80].decode()),
    ],
)
def test_odd_values_are_mended_or_left_empty(
    write_series: SeriesWriter, tmp_path: Path, keyword: str, value: bytes, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    import pydicom

    files = write_series(np.ones((3, 7, 6)), change=stated)
    for path in files:
        spoil(path, keyword, value)
    before = [path.read_bytes() for path in files]
    volume = read_volume(files[0].parent)
    masks = [("kidney", None, np.ones(volume.shape, bool))]
    write_dicom_seg(tmp_path / "seg.dcm", scan=files[0].parent, masks=masks, grid=volume, algorithm="x", version="0")
    assert pydicom.dcmread(tmp_path / "seg.dcm")[keyword].value == kept
    assert [path.read_bytes() for path in files] == before
    assert (f"{keyword} (" in caplog.text) == (not kept)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("boltzformer_monai")]
    assert len(value) < 4 or not any(value.decode() in line for line in ours)


@pytest.mark.parametrize("thickness", [None, b"", b"abc", b"0"])
def test_without_a_thickness_the_distance_of_the_slices_is_stated(
    write_series: SeriesWriter, tmp_path: Path, thickness: bytes | None
) -> None:
    import pydicom

    files = write_series(np.ones((3, 7, 6)), change=stated)
    for path in files:
        spoil(path, "SliceThickness", thickness)
    volume = read_volume(files[0].parent)
    masks = [("kidney", None, np.ones(volume.shape, bool))]
    write_dicom_seg(tmp_path / "seg.dcm", scan=files[0].parent, masks=masks, grid=volume, algorithm="x", version="0")
    measures = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (2.5, 2.5)


def test_only_what_archives_file_by_is_repeated(write_series: SeriesWriter, tmp_path: Path) -> None:
    import pydicom

    def change(dataset: Any, index: int) -> None:
        stated(dataset)
        dataset.OtherPatientNames, dataset.PatientAge, dataset.Occupation = SECRET, "050Y", SECRET[:16]
        dataset.AdmittingDiagnosesDescription, dataset.PositionReferenceIndicator = SECRET, SECRET
        dataset.add_new(0x00091001, "LO", SECRET)

    files = write_series(np.ones((3, 7, 6)), change=change)
    volume = read_volume(files[0].parent)
    masks = [("kidney", None, np.ones(volume.shape, bool))]
    write_dicom_seg(tmp_path / "seg.dcm", scan=files[0].parent, masks=masks, grid=volume, algorithm="x", version="0")
    read = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (read.PatientName, read.PatientID, read.AccessionNumber) == ("Doe^Jane", "phantom-1", "A1")
    assert (read.StudyDate, read.StudyTime, read.SeriesNumber) == ("20200101", "101112", 1004)
    assert SECRET[:16].encode() not in (tmp_path / "seg.dcm").read_bytes()
    assert "PatientAge" not in read


def test_lossy_without_a_ratio_is_still_said(write_series: SeriesWriter, tmp_path: Path) -> None:
    import pydicom

    def change(dataset: Any, index: int) -> None:
        stated(dataset)
        dataset.LossyImageCompression = "01"

    files = write_series(np.ones((3, 7, 6)), change=change)
    volume = read_volume(files[0].parent)
    masks = [("kidney", None, np.ones(volume.shape, bool))]
    write_dicom_seg(tmp_path / "seg.dcm", scan=files[0].parent, masks=masks, grid=volume, algorithm="x", version="0")
    assert pydicom.dcmread(tmp_path / "seg.dcm").LossyImageCompression == "01"


def test_orientation_per_frame_only(write_enhanced: FileWriter, tmp_path: Path) -> None:
    positions = np.array([(-10.0, -20.0, 5.0 + 2.5 * k) for k in range(4)])

    def change(dataset: Any) -> None:
        stated(dataset)
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
            frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
        del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence

    path = write_enhanced(np.arange(4 * 7 * 6).reshape(4, 7, 6), positions, change=change)
    volume = read_volume(path)
    check_can_be_seg(path)
    mask = volume.array > volume.array.mean()
    out = tmp_path / "seg.dcm"
    write_dicom_seg(out, scan=path, masks=[("kidney", None, mask)], grid=volume, algorithm="x", version="0")
    np.testing.assert_array_equal(read_segmentation(out, volume).volume.array == 1, mask)


def test_any_prompt_can_be_a_label(write_series: SeriesWriter, tmp_path: Path) -> None:
    import pydicom

    folder = write_series(np.ones((3, 7, 6)), change=stated)[0].parent
    names = ["kidney", "a\\b" * 40, "蚂蚁", "a\ud800b"]
    check_can_be_seg(folder, names=names)
    volume = read_volume(folder)
    masks = [(name, None, np.arange(volume.array.size).reshape(volume.shape) % 4 == k) for k, name in enumerate(names)]
    write_dicom_seg(tmp_path / "seg.dcm", scan=folder, masks=masks, grid=volume, algorithm="x", version="0")
    labels = [segment.SegmentLabel for segment in pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence]
    assert (labels[0], labels[2]) == ("kidney", "蚂蚁")
    assert all(isinstance(label, str) and 0 < len(label) <= 64 for label in labels)  # a backslash would part it
