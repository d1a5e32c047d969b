"""The readings are made here in the published form; the CT is a small DICOM series."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltzformer_monai.errors import BoltzFormerError, ConfigError, DatasetError, VolumeError
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.recipes import load_recipe
from boltzformer_monai.slicing.recipes.lidc_xml import Outline, fill_outline, read_readings
from tests.io.conftest import SeriesWriter

lidc = load_recipe("lidc")

COLUMNS, ROWS, SLICES = 20, 16, 5
UID = "1.2.3.4.1"
Points = list[tuple[int, int]]


def square(left: int, top: int, width: int) -> Points:
    """Outline of a square whose inside is width x width pixels with the corner (left + 1, top + 1)."""
    last = width + 1
    clockwise = [(k, 0) for k in range(last)] + [(last, k) for k in range(last)]
    clockwise += [(k, last) for k in range(last, 0, -1)] + [(0, k) for k in range(last, 0, -1)]
    return [(left + x, top + y) for x, y in [*clockwise, (0, 0)]]


def roi(index: int, points: Points, *, included: bool = True, uid: str | None = None, z: float | None = None) -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return (
        f"<roi><imageZposition>{10 + 2.5 * index if z is None else z}</imageZposition>"
        f"<imageSOP_UID>{f'{UID}.{index + 1}' if uid is None else uid}</imageSOP_UID>"
        f"<inclusion>{str(included).upper()}</inclusion>{edges}</roi>"
    )


def nodule(*rois: str, rated: bool = True) -> str:
    ratings = "<characteristics><subtlety>5</subtlety></characteristics>" if rated else ""
    return f"<unblindedReadNodule><noduleID>1</noduleID>{ratings}{''.join(rois)}</unblindedReadNodule>"


def message(*sessions: str, series: str = UID, root: str = "LidcReadMessage", xmlns: str = "http://www.nih.gov") -> str:
    header = f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
    readers = "".join(f"<readingSession>{session}</readingSession>" for session in sessions)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} uid="x" xmlns="{xmlns}">{header}{readers}</{root}>'


@pytest.fixture
def make(tmp_path: Path, write_series: SeriesWriter) -> Callable[..., Path]:
    """Return a function that writes one patient and returns the folder of all patients."""

    def write(text: str, *, patient: str = "LIDC-IDRI-0001", study: str = "study", uid: str = UID, **series) -> Path:
        folder = tmp_path / "LIDC-IDRI" / patient / study / "series"
        stack = np.random.default_rng(0).integers(0, 2000, (SLICES, ROWS, COLUMNS))
        write_series(stack, folder=folder, uid=uid, **series)
        if text:
            (folder / "069.xml").write_text(text)
        return tmp_path / "LIDC-IDRI"

    return write


def draw(folder: Path, **options: object) -> np.ndarray:
    (case,) = pickle.loads(pickle.dumps(lidc(folder, **options)))
    drawn = case.annotation.draw_on(case.read_image())
    assert drawn.names == {"1": "lung nodule"}
    return drawn.volume.array


def expected(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Return a mask (columns, rows, slices) of squares (slice, left, top, width), given by their first inner pixel."""
    mask = np.zeros((COLUMNS, ROWS, SLICES), np.uint8)
    for index, left, top, width in boxes:
        mask[left : left + width, top : top + width, index] = 1
    return mask


def test_the_outline_itself_is_not_the_nodule_and_columns_are_not_rows(make: Callable[..., Path]):
    text = message(*[nodule(roi(1, square(9, 2, 3)), roi(2, square(10, 3, 2)))] * 2, "", "")
    np.testing.assert_array_equal(draw(make(text)), expected((1, 10, 3, 3), (2, 11, 4, 2)))


@pytest.mark.parametrize("agreement", [1, 2, 3, 4])
def test_a_voxel_needs_that_many_readers(make: Callable[..., Path], agreement: int):
    # Four readers drew the same nodule, each a pixel further to the right.
    text = message(*(nodule(roi(3, square(4 + shift, 5, 4))) for shift in range(4)))
    drawn = draw(make(text), agreement=agreement)[:, 6, 3]
    votes = [0] * 5 + [1, 2, 3, 4, 3, 2, 1] + [0] * 8
    np.testing.assert_array_equal(drawn, np.array(votes) >= agreement)


def test_two_nodules_of_one_reader_are_one_vote(make: Callable[..., Path]):
    folder = make(message(nodule(roi(0, square(2, 2, 4))) + nodule(roi(0, square(3, 2, 4))), "", "", ""))
    assert draw(folder).sum() == 0
    assert draw(folder, agreement=1).sum() == 20


def test_small_nodules_and_other_findings_are_no_targets(make: Callable[..., Path]):
    small = nodule(roi(1, [(5, 5)]), rated=False) + nodule(roi(1, square(2, 2, 5)), rated=False)
    other = f"<nonNodule>{roi(1, [(7, 7)])}</nonNodule>"
    empty = "<unblindedReadNodule><characteristics/>" + roi(1, square(2, 2, 5)) + "</unblindedReadNodule>"
    drawn = draw(make(message(*[small + other + empty + nodule(roi(2, [(9, 9)]))] * 4)))
    assert drawn.sum() == 0


def test_holes_are_cut_out_whatever_the_order(make: Callable[..., Path]):
    hole, outer = roi(1, square(6, 6, 1), included=False), roi(1, square(4, 4, 5))
    want = expected((1, 5, 5, 5)) - expected((1, 7, 7, 1))
    np.testing.assert_array_equal(draw(make(message(*[nodule(hole, outer)] * 4))), want)


def test_a_slice_is_found_by_its_uid_before_its_position(make: Callable[..., Path]):
    rois = roi(1, square(4, 4, 2), z=999.0), roi(2, square(4, 4, 2), uid="9.9"), roi(3, square(4, 4, 2), uid="")
    drawn = draw(make(message(*[nodule(*rois)] * 4)))
    assert np.flatnonzero(drawn.any(axis=(0, 1))).tolist() == [1, 2, 3]


def test_slices_stored_from_head_to_feet(make: Callable[..., Path]):
    text = message(*[nodule(roi(1, square(4, 4, 2)), roi(3, square(9, 9, 3), uid="", z=2.5))] * 4)
    folder = make(text, step=(0.0, 0.0, -2.5))
    (case,) = lidc(folder)
    image = case.read_image()
    drawn = case.annotation.draw_on(image).volume
    voxels = np.argwhere(drawn.array)
    world = voxels @ image.affine[:3, :3].T + image.affine[:3, 3]
    assert sorted({(round(z, 3), int((np.abs(world[:, 2] - z) < 0.1).sum())) for z in world[:, 2]}) == [
        (2.5, 9), (7.5, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        (roi(1, square(4, 4, 2), uid="9.9", z=11.2), VolumeError, "z 11.2 mm, where .* has no slice"),
        (roi(1, square(4, 4, 2), uid="", z=60.0), VolumeError, "has no slice"),
        (roi(1, square(4, 4, 2), uid="", z=float("nan")), VolumeError, "has no slice"),
        (roi(1, square(15, 4, 5)), VolumeError, r"reaches pixel \(21, 10\) of a slice of 20x16"),
        (roi(1, [(3, 3), (-1, 3), (3, 5)]), VolumeError, "reaches pixel"),
        (roi(1, []), DatasetError, "no edgeMap"),
        (roi(1, [("x", 1)]), DatasetError, "cannot be understood"),  # type: ignore[list-item]
        (roi(1, [(10**30, 1), (2, 2)]), BoltzFormerError, "reaches pixel"),
    ],
)
def test_outlines_that_do_not_fit_the_scan(make: Callable[..., Path], wrong: str, error: type[Exception], match: str):
    with pytest.raises(error, match=match) as caught:
        draw(make(message(*[nodule(wrong)] * 4)))
    assert "\n" not in str(caught.value)
    assert "069.xml" in str(caught.value)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><LidcReadMessage>&b;</LidcReadMessage>'


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<LidcReadMessage>", "cannot be read as XML"),
        ("not XML", "cannot be read as XML"),
        (BOMB, "DOCTYPE"),
        (message(root="IdriReadMessage"), "is a IdriReadMessage"),
        (message("", "", "", "", series="1.2.3.999"), "is about another series"),
        (message(nodule(roi(1, square(4, 4, 2)))), "has 1 readers, an agreement of 2"),
    ],
)
def test_a_broken_or_wrong_xml_fails_when_it_is_needed(make: Callable[..., Path], text: str, match: str):
    (case,) = lidc(make(text))
    with pytest.raises(DatasetError, match=match) as caught:
        case.annotation.draw_on(case.read_image())
    assert "\n" not in str(caught.value)


def test_files_without_the_namespace_or_in_another_encoding_are_read(tmp_path: Path):
    text = message(nodule(roi(1, square(4, 4, 2))), xmlns="")
    (tmp_path / "a.xml").write_text(text.replace("UTF-8", "UTF-16"), encoding="utf-16")
    readings = read_readings(tmp_path / "a.xml")
    assert readings.series == UID
    assert readings.readers[0][0][0].points[0] == (4, 4)


def test_what_is_listed(make: Callable[..., Path], tmp_path: Path):
    text = message(*[nodule(roi(1, square(4, 4, 2)))] * 4)
    make(text)
    make(text, patient="LIDC-IDRI-0002", study="b")
    make(text, patient="LIDC-IDRI-0002", study="a")
    make(text, patient="LIDC-IDRI-0003", modality="DX")  # a chest X-ray
    folder = make("", patient="LIDC-IDRI-0004")  # no readings
    elsewhere = folder / "tcia-lidc-xml" / "157"
    elsewhere.mkdir(parents=True)
    (elsewhere / "158.xml").write_text(message(*[nodule(roi(1, square(4, 4, 2)))] * 4, series="1.2.3.4.5"))
    make("", patient="LIDC-IDRI-0005", uid="1.2.3.4.5")
    cases = lidc(folder)
    assert [(case.volume_id, case.patient) for case in cases] == [
        ("LIDC-IDRI-0001", "LIDC-IDRI-0001"),
        ("LIDC-IDRI-0002_1", "LIDC-IDRI-0002"),
        ("LIDC-IDRI-0002_2", "LIDC-IDRI-0002"),
        ("LIDC-IDRI-0005", "LIDC-IDRI-0005"),
    ]
    assert cases[1].image.parent.name == "a"
    assert {(case.modality, case.site, case.public) for case in cases} == {("CT", "chest", True)}
    assert cases[3].annotation.files() == (elsewhere / "158.xml",)


def test_a_damaged_scan_is_listed_and_fails_when_it_is_read(make: Callable[..., Path]):
    folder = make(message("", "", "", ""))
    first = min((folder / "LIDC-IDRI-0001" / "study" / "series").glob("*.dcm"))
    first.write_bytes(first.read_bytes()[:200])
    case: Case
    (case,) = lidc(folder)
    with pytest.raises(VolumeError, match=first.name):
        case.read_image()


def test_nothing_found_and_settings_that_do_not_fit(tmp_path: Path, make: Callable[..., Path]):
    with pytest.raises(DatasetError, match="no such folder"):
        lidc(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no CT series"):
        lidc(tmp_path)
    for settings_ in ({"modality": "MR"}, {"channel": 0}, {"agreement": "0"}):
        with pytest.raises(ConfigError):
            lidc(make(message("")), **settings_)


def flooded(outline: set[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    """Return what the outside cannot reach in steps along rows and columns, without the outline: slow and plain."""
    reached, todo = np.zeros((shape[0] + 2, shape[1] + 2), bool), [(0, 0)]
    while todo:
        x, y = todo.pop()
        inside = 0 <= x < shape[0] + 2 and 0 <= y < shape[1] + 2
        if inside and not reached[x, y] and (x - 1, y - 1) not in outline:
            reached[x, y] = True
            todo += [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
    mask = ~reached[1:-1, 1:-1]
    for x, y in outline:
        mask[x, y] = False
    return mask


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_filling_equals_flooding_from_outside(seed: int, backwards: bool):
    """On closed chains of neighbouring pixels around a star-shaped body, as readers draw them."""
    draws = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    radius = 6 + sum(draws.uniform(-1, 1) * np.cos(k * angles + draws.uniform(0, 6)) for k in (1, 2, 3))
    pixels = np.round(np.stack([12 + radius * np.cos(angles), 11 + radius * np.sin(angles)], axis=1)).astype(int)
    chain = [tuple(map(int, pixel)) for pixel in pixels]
    chain = [pixel for pixel, before in zip(chain, [chain[-1], *chain], strict=False) if pixel != before]
    outline = Outline("", 0.0, tuple(reversed(chain) if backwards else chain))
    np.testing.assert_array_equal(fill_outline(outline, (25, 23)), flooded(set(chain), (25, 23)))


def test_an_xml_of_more_than_any_reading_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.xml"
    with path.open("wb") as file:
        file.write(b"<LidcReadMessage>")
        file.truncate(50_000_000)
    with pytest.raises(DatasetError, match="has 50 MB, and at most 17 MB are read"):
        read_readings(path)
    os.mkfifo(tmp_path / "pipe.xml")
    with pytest.raises(DatasetError, match="pipe, socket or device"):
        read_readings(tmp_path / "pipe.xml")
