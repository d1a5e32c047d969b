"""Spoiled DICOM series and multi-frame files: each reads as a sound volume or is refused in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.robustness.explore import CUTS, FLIPS, explore, flipped, put, sizes
from tests.robustness.judge import judge
from tests.robustness.samples import ARRAY, ct_slice, dicom_bytes, enhanced_ct

SYNTAXES = ["explicit", "implicit", "rle", "deflated"]
DICOM_EXAMPLES = sizes(cut=60, flip=100, tag=120, frame_tag=60, frame_flip=30, pixels=30)
"""Spoiled inputs of each test below."""
SLICES = 4
SCAN = ARRAY[:, :, :SLICES] * np.float32(2) - 1000


def series(syntax: str) -> dict[str, bytes]:
    return {f"{index}.dcm": dicom_bytes(ct_slice(index, syntax=syntax)) for index in range(SLICES)}


def is_right(volume: Any) -> bool:
    return volume.shape == SCAN.shape and np.array_equal(volume.array, SCAN) and volume.spacing == (0.75, 0.875, 2.5)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_unspoiled_series_is_right(syntax: str, tmp_path: Path) -> None:
    volume = judge(put(series(syntax), tmp_path).parent)
    assert volume is not None
    assert is_right(volume)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_slice_cut_off_anywhere_is_refused(syntax: str, tmp_path: Path) -> None:
    files = series(syntax)
    put(files, tmp_path)

    def examine(share: float) -> None:
        put({"2.dcm": files["2.dcm"][: int(share * len(files["2.dcm"]))]}, tmp_path)
        volume = judge(tmp_path)
        # The end of a compressed slice is a delimiter without which it can still be decoded.
        assert volume is None or (syntax in ("rle", "deflated") and is_right(volume))

    explore(CUTS, DICOM_EXAMPLES["cut"] // len(SYNTAXES), examine)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_changed_bytes_anywhere_in_a_slice(syntax: str, tmp_path: Path) -> None:
    files = series(syntax)
    put(files, tmp_path)

    def examine(flips: list[tuple[float, int]]) -> None:
        put({"2.dcm": flipped(files["2.dcm"], flips)}, tmp_path)
        judge(tmp_path)

    explore(FLIPS, DICOM_EXAMPLES["flip"] // len(SYNTAXES), examine)


VALUES: list[tuple[str, Any]] = [
    *[("US", value) for value in (0, 1, 3, 7, 8, 12, 16, 17, 32, 64, 65535)],
    *[("SS", -1), ("UL", 2**32 - 1), ("IS", "-5"), ("IS", "0"), ("IS", "2147483647"), ("IS", "1.5"), ("IS", "")],
    *[("DS", value) for value in ("nan", "inf", "1e400", "0", "-1", "", "nonsense", "1e30", "1e-30")],
    *[("DS", ["0", "0"]), ("DS", ["nan", "1"]), ("DS", ["0", "0", "0"]), ("DS", ["1", "2", "3", "4", "5", "6", "7"])],
    *[("DS", ["1", "0", "0", "1", "0", "0"]), ("DS", ["0"] * 6), ("DS", ["9e99"] * 3), ("DS", ["-0.5", "0.5"])],
    *[
        ("FD", float("nan")),
        ("FD", [1.0, float("inf"), 0.0]),
        ("LO", "nonsense"),
        ("LO", ["a", "b", "c"]),
        ("CS", "RGB"),
    ],
    *[("CS", "PALETTE COLOR"), ("CS", "MONOCHROME1"), ("UI", "1.2.840.10008.5.1.4.1.1.2.1"), ("UI", "not.a.uid")],
    *[("UN", b"\x00\xff\x00\xff"), ("OB", b"\x01"), ("OW", b""), ("SQ", []), ("AT", 0x7FE00010), ("PN", "Doe^J")],
]
TAGS = [
    *["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"],
    *["PhotometricInterpretation", "NumberOfFrames", "PixelSpacing", "ImagePositionPatient", "ImageType"],
    *["ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "RescaleType", "SliceThickness", "Modality"],
    *["SeriesInstanceUID", "SOPClassUID", "FrameOfReferenceUID", "PatientID", "SOPInstanceUID", "InstanceNumber"],
    *["PixelData", "PlanarConfiguration", "SpacingBetweenSlices", "GantryDetectorTilt", "ModalityLUTSequence"],
    *["FloatPixelData", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "SpecificCharacterSet"],
    *["SmallestImagePixelValue", "PixelPaddingValue", "AcquisitionNumber", "EchoTime", "TemporalPositionIndex"],
]
UNTOUCHED = ("InstanceNumber", "AcquisitionNumber", "SmallestImagePixelValue", "EchoTime")
SPOILED = st.tuples(
    st.sampled_from(TAGS), st.one_of(st.none(), st.sampled_from(VALUES)), st.sampled_from(["one", "all"]),
    st.sampled_from(SYNTAXES),
)  # fmt: skip


def test_nonsense_in_the_tags_of_a_series(tmp_path: Path) -> None:
    sound = {syntax: series(syntax) for syntax in SYNTAXES}

    def examine(drawn: tuple[str, tuple[str, Any] | None, str, str]) -> None:
        tag, value, scope, syntax = drawn
        files = dict(sound[syntax])
        for name in files if scope == "all" else ["2.dcm"]:
            files[name] = spoil(files[name], tag, value)
        put(files, tmp_path)
        volume = judge(tmp_path)
        if volume is not None and tag in UNTOUCHED:
            assert is_right(volume), drawn

    explore(SPOILED, DICOM_EXAMPLES["tag"], examine)


def spoil(content: bytes, tag: str, value: tuple[str, Any] | None, *path: str) -> bytes:
    """Return a DICOM file with one tag gone or nonsense, at the top or in the last item of nested sequences."""
    import pydicom
    from pydicom.datadict import tag_for_keyword

    dataset = pydicom.dcmread(io.BytesIO(content))
    item = dataset
    for name in path:
        item = item[name].value[-1]
    number = tag_for_keyword(tag)
    assert number is not None
    if number in item:
        del item[number]
    if value is not None:
        try:
            item.add_new(number, *value)
            return dicom_bytes(dataset)
        except Exception:  # noqa: BLE001 - pydicom will not write every nonsense; then without the tag
            if number in item:
                del item[number]
    return dicom_bytes(dataset)


PLACES: list[tuple[str, ...]] = [
    (),
    ("SharedFunctionalGroupsSequence",),
    ("SharedFunctionalGroupsSequence", "PixelMeasuresSequence"),
    ("SharedFunctionalGroupsSequence", "PlaneOrientationSequence"),
    ("SharedFunctionalGroupsSequence", "PixelValueTransformationSequence"),
    ("PerFrameFunctionalGroupsSequence",),
    ("PerFrameFunctionalGroupsSequence", "PlanePositionSequence"),
    ("PerFrameFunctionalGroupsSequence", "FrameContentSequence"),
]
FRAME_TAGS = [
    *["PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence"],
    *["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope"],
    *["RescaleIntercept", "NumberOfFrames", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"],
    *["Rows", "Columns", "PixelData", "DimensionIndexValues", "FrameType", "TemporalPositionIndex", "StackID"],
]


def test_nonsense_in_the_tags_of_a_multi_frame_file(tmp_path: Path) -> None:
    sound = dicom_bytes(enhanced_ct())

    def examine(drawn: tuple[tuple[str, ...], str, tuple[str, Any] | None]) -> None:
        path, tag, value = drawn
        put({"scan.dcm": spoil(sound, tag, value, *path)}, tmp_path)
        judge(tmp_path / "scan.dcm")

    values = st.one_of(st.none(), st.sampled_from(VALUES))
    explore(
        st.tuples(st.sampled_from(PLACES), st.sampled_from(FRAME_TAGS), values), DICOM_EXAMPLES["frame_tag"], examine
    )


def test_a_multi_frame_file_with_changed_bytes_or_cut_off(tmp_path: Path) -> None:
    sound = dicom_bytes(enhanced_ct())
    volume = judge(put({"scan.dcm": sound}, tmp_path))
    assert volume is not None
    assert is_right(volume)

    def examine(drawn: tuple[list[tuple[float, int]], float, bool]) -> None:
        flips, share, cut = drawn
        put({"scan.dcm": sound[: int(share * len(sound))] if cut else flipped(sound, flips)}, tmp_path)
        volume = judge(tmp_path / "scan.dcm")
        assert volume is None or not cut

    explore(st.tuples(FLIPS, CUTS, st.booleans()), DICOM_EXAMPLES["frame_flip"], examine)


@pytest.mark.parametrize("scope", ["slice", "frames"])
def test_too_few_or_too_many_pixels(scope: str, tmp_path: Path) -> None:
    """Fewer bytes than the header claims are refused, for one slice and for a stack of frames."""
    claims = st.sampled_from(["Rows", "Columns", "BitsAllocated", "NumberOfFrames", "bytes"])

    def examine(drawn: tuple[str, int]) -> None:
        tag, number = drawn
        dataset = ct_slice(2) if scope == "slice" else enhanced_ct()
        if tag == "bytes":
            dataset.PixelData = dataset.PixelData[: 2 * (number % (len(dataset.PixelData) // 2))]
        elif tag == "BitsAllocated":
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 32, 32, 31
        else:
            setattr(dataset, tag, 20 + number if tag != "NumberOfFrames" else 5 + number * 1000)
        files = series("explicit") | {"2.dcm": dicom_bytes(dataset)} if scope == "slice" else {}
        put(files or {"scan.dcm": dicom_bytes(dataset)}, tmp_path)
        assert judge(tmp_path) is None, drawn

    explore(st.tuples(claims, st.integers(0, 65000)), DICOM_EXAMPLES["pixels"] // 2, examine)


def test_a_line_break_in_a_value_does_not_break_the_message(tmp_path: Path) -> None:
    spoiled = ct_slice(2)
    spoiled.SpecificCharacterSet, spoiled.PhotometricInterpretation = "ISO_IR 100", "MONO\x85E2"
    assert judge(put(series("explicit") | {"2.dcm": dicom_bytes(spoiled)}, tmp_path).parent) is None
