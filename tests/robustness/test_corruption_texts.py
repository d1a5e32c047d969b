"""Spoiled readings of LIDC-IDRI and spoiled labels.json: each is understood or refused in one line, nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import strategies as st

from boltzformer_monai.data.label_names import LabelMap, canonical_labels, read_label_names
from boltzformer_monai.io import Volume, read_volume
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.slicing.recipes.lidc import LidcConsensus
from tests.robustness.explore import CUTS, FLIPS, explore, flipped, put, sizes
from tests.robustness.judge import attempt, judge_annotation
from tests.robustness.samples import ct_slice, dicom_bytes

EXAMPLES = sizes(xml_bytes=40, xml_element=60, json_bytes=40, json_value=50)
"""Spoiled inputs of each test below."""
_SLICES = 4
_PIXELS = [0, 8, 9, 0]  # in each slice: 3 x 3 inside an outline 4 wide; the hole takes 1 and keeps its own outline
_NUMBERS = [
    "",
    "0",
    "-1",
    "12",
    "13",
    "16",
    "17",
    "1e400",
    "nan",
    "9.5",
    "9" * 30,
    "-" + "9" * 20,
    "\u0663",
]
_TEXTS = ["two\nlines", "\x85", "1.2.3.4", "1.2.3.4.9", "FALSE", "x" * 5000, "\u2028", "background", "liver"]


def ct(folder: Path) -> Volume:
    put({f"{index}.dcm": dicom_bytes(ct_slice(index)) for index in range(_SLICES)}, folder)
    return read_volume(folder)


def readings() -> bytes:
    """Return two readers who outlined the same 3 x 3 pixels in two slices, once with a hole."""
    sessions = ""
    for _ in range(2):
        rois = "".join(_roi(index, 4, 4) for index in (1, 2)) + _roi(1, 2, 5, included=False)
        rated = "<characteristics><subtlety>5</subtlety></characteristics>"
        nodule = f"<unblindedReadNodule><noduleID>1</noduleID>{rated}{rois}</unblindedReadNodule>"
        sessions += f"<readingSession>{nodule}</readingSession>"
    header = "<ResponseHeader><SeriesInstanceUid>1.2.3.4</SeriesInstanceUid></ResponseHeader>"
    root = "LidcReadMessage"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="http://www.nih.gov">{header}{sessions}</{root}>'.encode()


def _roi(index: int, width: int, first: int, *, included: bool = True) -> str:
    corners = [(first, first), (first + width, first), (first + width, first + width), (first, first + width)]
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in corners)
    place = f"<imageZposition>{7 + 2.5 * index}</imageZposition><imageSOP_UID>1.2.3.4.{index + 1}</imageSOP_UID>"
    return f"<roi>{place}<inclusion>{str(included).upper()}</inclusion>{edges}</roi>"


def consensus(folder: Path, image: Volume, content: bytes) -> Segmentation | None:
    place = put({"069.xml": content}, folder)
    drawn = judge_annotation(lambda: LidcConsensus(place, folder, "1.2.3.4", 2).draw_on(image), image, place)
    assert drawn is None or drawn.names == {"1": "lung nodule"}
    assert drawn is None or set(np.unique(drawn.volume.array).tolist()) <= {0, 1}
    return drawn


def voxels(drawn: Segmentation) -> int:
    return int(np.count_nonzero(drawn.volume.array))


def test_the_unspoiled_readings_are_right(tmp_path: Path) -> None:
    image = ct(tmp_path)
    drawn = consensus(tmp_path, image, readings())
    assert drawn is not None
    slices = [int(np.count_nonzero(drawn.volume.array[:, :, index])) for index in range(_SLICES)]
    assert slices == _PIXELS


def test_readings_with_changed_bytes_or_cut_off(tmp_path: Path) -> None:
    image, sound = ct(tmp_path), readings()

    def examine(drawn: tuple[list[tuple[float, int]], float, bool]) -> None:
        flips, share, cut = drawn
        read = consensus(tmp_path, image, sound[: int(share * len(sound))] if cut else flipped(sound, flips))
        assert read is None or not cut

    explore(st.tuples(FLIPS, CUTS, st.booleans()), EXAMPLES["xml_bytes"], examine)


def test_nonsense_in_the_elements_of_readings(tmp_path: Path) -> None:
    image, sound = ct(tmp_path), ElementTree.fromstring(readings())

    def examine(drawn: tuple[int, str, str]) -> None:
        number, action, text = drawn
        root = copy.deepcopy(sound)
        parents = [parent for parent in root.iter() for _ in parent]
        children = [child for parent in root.iter() for child in parent]
        number %= len(children)
        parent, child = parents[number], children[number]
        if action == "text":
            child.text = text.replace("\x00", "")
        elif action == "drop":
            parent.remove(child)
        elif action == "double":
            parent.append(copy.deepcopy(child))
        else:
            child.tag = "roi"
        read = consensus(tmp_path, image, ElementTree.tostring(root, encoding="utf-8"))
        if read is not None and child.tag.endswith(("noduleID", "subtlety")) and action in ("text", "double"):
            assert voxels(read) == sum(_PIXELS)

    actions = st.sampled_from(["text"] * 6 + ["drop", "double", "rename"])
    texts = st.sampled_from([*_NUMBERS, *_TEXTS, "9" * 5000])
    explore(st.tuples(st.integers(0, 500), actions, texts), EXAMPLES["xml_element"], examine)


LABELS = {
    "modality": "CT",
    "site": "abdomen",
    "labels": {"0": "background", "1": "spleen", "2+3": "kidney", "4": "liver"},
}


def labels(folder: Path, content: bytes) -> LabelMap | None:
    place = put({"labels.json": content}, folder)
    read = attempt(lambda: read_label_names(place), place)
    if read is not None:
        assert read.modality in ("CT", "MR", "unknown")
        assert isinstance(read.site, str)
        assert canonical_labels(read.labels)
    return read


def test_labels_with_changed_bytes_or_cut_off(tmp_path: Path) -> None:
    sound = json.dumps(LABELS).encode()
    assert labels(tmp_path, sound) == LabelMap({"1": "spleen", "2+3": "kidney", "4": "liver"}, "CT", "abdomen")

    def examine(drawn: tuple[list[tuple[float, int]], float, bool]) -> None:
        flips, share, cut = drawn
        read = labels(tmp_path, sound[: int(share * len(sound))] if cut else flipped(sound, flips))
        assert read is None or not cut

    explore(st.tuples(FLIPS, CUTS, st.booleans()), EXAMPLES["json_bytes"], examine)


_JSON: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    float("nan"),
    [],
    {},
    ["a"],
    {"1": "a"},
    {"1": 1},
    *_NUMBERS,
    *_TEXTS,
]


def test_nonsense_in_the_values_of_labels(tmp_path: Path) -> None:
    def examine(drawn: tuple[str, Any, str]) -> None:
        where, value, text = drawn
        content = copy.deepcopy(LABELS)
        names: Any = content["labels"]
        if where == "all":
            content = value
        elif where == "name":
            names["1"] = value
        elif where == "number":
            names[text] = "aorta"
        elif where == "sum":
            names[f"1+{text}"] = "aorta"
        else:
            content[where] = value
        read = labels(tmp_path, json.dumps(content, allow_nan=True).encode())
        assert where != "all" or read is None

    where = st.sampled_from(["all", "modality", "site", "labels", "name", "number", "sum", "something else"])
    explore(
        st.tuples(where, st.sampled_from(_JSON), st.sampled_from(_NUMBERS + _TEXTS)), EXAMPLES["json_value"], examine
    )


@pytest.mark.parametrize(
    "content", ['{"labels": {"' + "9" * 5000 + '": "liver"}}', "[" * 200000], ids=["digits", "deep"]
)
def test_labels_beyond_what_python_parses(content: str, tmp_path: Path) -> None:
    assert labels(tmp_path, content.encode()) is None
