"""Spoiled annotations: each is drawn on the scan's grid or refused in one line, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from boltzformer_monai.io.segmentation import Segmentation, read_segmentation
from tests.robustness.annotations import IMAGE, SOUND, is_right, layers_nifti
from tests.robustness.explore import CUTS, FLIPS, explore, flipped, put, sizes
from tests.robustness.judge import judge_annotation
from tests.robustness.test_corruption_dicom import VALUES, spoil

EXAMPLES = sizes(cut=12, flip=20, tag=40, line=30, field=50)
"""Spoiled inputs for each parameter of the tests below."""
# Further nonsense for what an annotation has and a scan has not: names, numbers of segments, contours.
_VALUES = [
    *VALUES,
    *[("LO", "two\nlines"), ("LO", ""), ("LO", "9" * 5000), ("CS", "CLOSED\nPLANAR"), ("UI", "1.2\r\n3"), ("US", 2)],
    *[("DS", ["1", "2"]), ("DS", ["1e9", "1e9", "1e9"] * 3), ("DS", ["0", "0", "7"] * 4), ("DS", ["nan"] * 9)],
]


def draw(place: Path) -> Segmentation | None:
    return judge_annotation(lambda: read_segmentation(place, IMAGE), IMAGE, place)


@pytest.mark.parametrize("name", SOUND)
def test_the_unspoiled_annotation_is_right(name: str, tmp_path: Path) -> None:
    make, overlap = SOUND[name]
    drawn = draw(put(make(tmp_path), tmp_path))
    assert drawn is not None
    assert is_right(drawn, overlap=overlap)


@pytest.mark.parametrize("name", SOUND)
def test_an_annotation_cut_off_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    make, overlap = SOUND[name]
    ((file, content),) = make(tmp_path).items()

    def examine(share: float) -> None:
        drawn = draw(put({file: content[: int(share * len(content))]}, tmp_path))
        assert drawn is None or is_right(drawn, overlap=overlap)  # a DICOM file may end in a byte of padding

    explore(CUTS, EXAMPLES["cut"], examine)


@pytest.mark.parametrize("name", SOUND)
def test_changed_bytes_anywhere_in_an_annotation(name: str, tmp_path: Path) -> None:
    make, overlap = SOUND[name]
    ((file, content),) = make(tmp_path).items()

    def examine(flips: list[tuple[float, int]]) -> None:
        drawn = draw(put({file: flipped(content, flips)}, tmp_path))
        if file.endswith(".gz"):  # there is a checksum
            assert drawn is None or is_right(drawn, overlap=overlap)

    explore(FLIPS, EXAMPLES["flip"], examine)


_GROUPS, _FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_SEG_PLACES: list[tuple[tuple[str, ...], list[str]]] = [
    ((), ["SegmentationType", "MaximumFractionalValue", "SegmentSequence", "NumberOfFrames", "Rows", "Columns"]),
    ((), ["BitsAllocated", "SamplesPerPixel", "PixelData", "SOPClassUID", "FrameOfReferenceUID", _GROUPS, _FRAME]),
    (("SegmentSequence",), ["SegmentNumber", "SegmentLabel", "SegmentedPropertyTypeCodeSequence"]),
    (("SegmentSequence", "SegmentedPropertyTypeCodeSequence"), ["CodeMeaning"]),
    ((_GROUPS,), ["PlaneOrientationSequence", "PixelMeasuresSequence"]),
    ((_GROUPS, "PlaneOrientationSequence"), ["ImageOrientationPatient"]),
    ((_GROUPS, "PixelMeasuresSequence"), ["PixelSpacing", "SliceThickness", "SpacingBetweenSlices"]),
    ((_FRAME,), ["PlanePositionSequence", "SegmentIdentificationSequence"]),
    ((_FRAME, "PlanePositionSequence"), ["ImagePositionPatient"]),
]
_RTSTRUCT_PLACES: list[tuple[tuple[str, ...], list[str]]] = [
    ((), ["StructureSetROISequence", "ROIContourSequence", "ReferencedFrameOfReferenceSequence", "SOPClassUID"]),
    (("StructureSetROISequence",), ["ROINumber", "ROIName", "ReferencedFrameOfReferenceUID"]),
    (("ROIContourSequence",), ["ReferencedROINumber", "ContourSequence"]),
    (("ROIContourSequence", "ContourSequence"), ["ContourData", "NumberOfContourPoints", "ContourGeometricType"]),
]
_IDENTIFIED = (_FRAME, "SegmentIdentificationSequence")


@pytest.mark.parametrize("name", ["SEG binary", "SEG fractional", "SEG label map", "RTSTRUCT"])
def test_nonsense_in_the_tags_of_an_annotation(name: str, tmp_path: Path) -> None:
    make, overlap = SOUND[name]
    ((file, content),) = make(tmp_path).items()
    places = [(path, tag) for path, tags in (_RTSTRUCT_PLACES if name == "RTSTRUCT" else _SEG_PLACES) for tag in tags]
    if name in ("SEG binary", "SEG fractional"):
        places.append((_IDENTIFIED, "ReferencedSegmentNumber"))

    def examine(drawn: tuple[tuple[tuple[str, ...], str], tuple[str, Any] | None]) -> None:
        (path, tag), value = drawn
        read = draw(put({file: spoil(content, tag, value, *path)}, tmp_path))
        if read is not None and tag in ("SegmentLabel", "CodeMeaning", "SliceThickness", "ROIName"):
            assert is_right(read, overlap=overlap), drawn

    values = st.one_of(st.none(), st.sampled_from(_VALUES))
    explore(st.tuples(st.sampled_from(places), values), EXAMPLES["tag"], examine)


_NONSENSE = ["", "0", "-1", "1", "2", "3", "256", "65536", "4294967296", "9" * 30, "9" * 5000, "1.5", "1e400", "nan"]
_NONSENSE += ["8 7 5", "2 8 7 5", "60000 60000 60000", "0 0 0", "left", "ascii", "gzip", "float", "\xff", "a b", "\x00"]
_NONSENSE += ["(1,0,0) (0,1,0) (0,0,1)", "none none none", "(nan,0,0) (0,1,0) (0,0,1)", "vector domain domain domain"]


@pytest.mark.parametrize("name", ["seg.nrrd", "seg.nrrd gzip", "seg.nrrd layers"])
def test_nonsense_in_the_header_of_a_slicer_segmentation(name: str, tmp_path: Path) -> None:
    make, overlap = SOUND[name]
    ((file, content),) = make(tmp_path).items()
    end = content.find(b"\n\n")
    lines = content[:end].decode().split("\n")

    def examine(drawn: tuple[int, str, str]) -> None:
        number, action, value = drawn
        changed = list(lines)
        number %= len(lines)
        if action == "drop":
            del changed[number]
        elif action == "double":
            changed.insert(number, changed[number])
        elif action == "key":  # another segment than the one that it was about
            changed[number] = re.sub(r"Segment\d", f"Segment{value}", changed[number])
        else:
            changed[number] = re.sub(r"([:=] ?=?).*", lambda match: match[1] + value, changed[number], count=1)
        read = draw(put({file: "\n".join(changed).encode("latin-1") + content[end:]}, tmp_path))
        if read is not None and ("Name" in lines[number] or "_ID" in lines[number]) and action == "value":
            assert is_right(read, overlap=overlap), drawn

    actions = st.sampled_from(["value"] * 6 + ["drop", "double", "key"])
    explore(st.tuples(st.integers(0, 99), actions, st.sampled_from(_NONSENSE)), EXAMPLES["line"], examine)


_FIELDS: list[tuple[str, int | None, list[float]]] = [
    ("dim", 0, [-1, 0, 1, 2, 3, 5, 6, 7, 8, 300]),
    *[("dim", axis, [-32768, -1, 0, 1, 2, 3, 9, 32767]) for axis in (1, 2, 3, 4, 5)],
    *[
        (row, axis, [float("nan"), float("inf"), 0.0, 1e30])
        for row in ("srow_x", "srow_y", "srow_z")
        for axis in (0, 3)
    ],
    ("datatype", None, [0, 1, 4, 16, 32, 128, 256, 999]),
    ("bitpix", None, [1, 16, -8]),
    ("vox_offset", None, [float("nan"), -1.0, 100.0, 360.0, 1e9]),
    ("scl_slope", None, [float("inf"), float("nan"), 0.5, -1.0, 1e38, 255.0]),
    ("scl_inter", None, [float("inf"), float("nan"), -1.0, 0.5, 3.0]),
    ("sform_code", None, [0, 99]),
    ("intent_code", None, [1002, 1007]),
]


def test_nonsense_in_the_header_of_layers(tmp_path: Path) -> None:
    import nibabel

    ((file, content),) = layers_nifti(tmp_path).items()

    def examine(drawn: tuple[tuple[str, int | None, list[float]], int]) -> None:
        (field, axis, values), which = drawn
        header = nibabel.Nifti1Header(content[:348], check=False)
        value = values[which % len(values)]
        header.structarr[field] = value if axis is None else np.where(np.arange(header.structarr[field].size) == axis,
                                                                      value, header.structarr[field])  # fmt: skip
        read = draw(put({file: header.binaryblock + content[348:]}, tmp_path))
        assert read is None or field not in ("vox_offset", "bitpix", "datatype") or is_right(read), (field, value)

    explore(st.tuples(st.sampled_from(_FIELDS), st.integers(0, 9)), EXAMPLES["field"], examine)
