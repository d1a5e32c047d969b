"""Every file that ships with pydicom and nibabel is read with the right geometry, or refused in one line.

The table of outcomes is written to ``shipped_files.csv`` in ``$BOLTZFORMER_TEST_ARTIFACTS`` (else pytest's own folder).
"""

from __future__ import annotations

import csv
import importlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import REASONS
from tests.robustness.dicom_grid import dicom_grid
from tests.robustness.outcomes import read_all

_FOLDERS = {"pydicom": ["data/test_files", "data/charset_files"], "nibabel": [""]}
_COMPILED = (".pyc",)  # pytest leaves them there
# How many files each folder has in the versions where they were counted, and at least in any other.
_COUNTED = {
    ("pydicom", "3.0"): {"data/test_files/": 176, "data/charset_files/": 18},
    ("nibabel", "5.4"): {"tests/data/": 87, "": 114},
}
_AT_LEAST = {"pydicom": 150, "nibabel": 100}
Row = dict[str, Any]


def shipped_files() -> list[tuple[str, Path]]:
    """Return (name within its package, path) of all data files of the installed packages, without hidden ones."""
    found = []
    for package, folders in _FOLDERS.items():
        root = Path(importlib.import_module(package).__file__ or "").parent
        for folder in folders:
            for path in sorted((root / folder).rglob("*")):
                in_data = package == "pydicom" or "/tests/data/" in path.as_posix()
                if path.is_file() and in_data and path.suffix not in _COMPILED and path.name[0] != ".":
                    found.append((f"{package}/{path.relative_to(root).as_posix()}", path))
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The outcome of each file, by itself and alone in a folder; also written as an artefact."""
    work = tmp_path_factory.mktemp("shipped")
    files = shipped_files()
    if not files:
        pytest.skip("pydicom and nibabel ship no data files here")
    places = []
    for number, (_, path) in enumerate(files):
        folder = work / f"{number:03d}"
        folder.mkdir()
        (folder / path.name).symlink_to(path)
        places += [path, folder]
    rows = read_all(places, work, timeout=300)
    for place, row, index in zip(places, rows, range(len(rows)), strict=True):
        name, path = files[index // 2]
        row |= {"file": name, "as": "file" if place == path else "folder", "path": path, "place": place}
        package_root = str(path)[: -len(name.split("/", 1)[1])]
        row["shown"] = row["message"].replace(str(work) + "/", "").replace(package_root, "")
    artefacts = Path(os.environ.get("BOLTZFORMER_TEST_ARTIFACTS") or work)
    artefacts.mkdir(parents=True, exist_ok=True)
    with (artefacts / "shipped_files.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("file", "read as", "outcome", "reason", "message"))
        writer.writerows([row["file"], row["as"], row["outcome"], row["reason"], row["shown"]] for row in rows)
    return rows


def test_no_file_makes_the_reader_crash(table: list[Row]) -> None:
    crashed = [(row["file"], row["as"], row["reason"], row["message"]) for row in table if row["outcome"] == "crashed"]
    assert not crashed


def test_every_refusal_is_one_line_with_a_name_and_a_known_reason(table: list[Row]) -> None:
    for row in table:
        if row["outcome"] == "refused":
            assert row["reason"] in REASONS, row["file"]
            assert len(row["message"].splitlines()) == 1, row["file"]
            assert str(row["place"]) in row["message"] or row["path"].name in row["message"], row["message"]
            assert len(row["shown"]) < 400, row["message"]


def test_what_is_read_lies_where_its_header_says(table: list[Row]) -> None:
    """Judged by nibabel and by our own arithmetic on pydicom's headers, not by the reader's code."""
    read = [row for row in table if row["outcome"] == "read"]
    for row in read:
        shape, affine = expected_grid(row["path"])
        assert tuple(row["shape"]) == shape, row["file"]
        assert np.allclose(row["affine"], affine, rtol=0, atol=1e-4), row["file"]
        assert row["finite"], row["file"]


def expected_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the grid of a file without the reader under test."""
    if path.name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
        import nibabel

        image = nibabel.load(path)
        return tuple(image.shape[:3]), np.asarray(image.affine)
    return dicom_grid([path])


@pytest.mark.parametrize("package", _FOLDERS)
def test_every_file_was_found(package: str, table: list[Row]) -> None:
    """No file is lost on the way into the table, each is there as a file and alone in a folder."""
    names = Counter(row["file"] for row in table if row["file"].startswith(f"{package}/"))
    assert set(names.values()) == {2}
    release = ".".join(importlib.import_module(package).__version__.split(".")[:2])
    for folder, count in _COUNTED.get((package, release), {}).items():
        assert sum(name.startswith(f"{package}/{folder}") for name in names) == count, folder
    assert len(names) >= _AT_LEAST[package]


def test_the_summary_adds_up(table: list[Row]) -> None:
    counts = Counter(row["outcome"] for row in table)
    assert set(counts) <= {"read", "refused"}
    assert sum(counts.values()) == len(table) == 2 * len(shipped_files())
    reasons = Counter(row["reason"] for row in table if row["outcome"] == "refused")
    assert sum(reasons.values()) == counts["refused"]
    assert len(reasons) >= 8  # they are told apart


@pytest.mark.parametrize(
    ("name", "kind", "outcome", "reason"),
    [
        ("nibabel/tests/data/anatomical.nii", "file", "read", ""),
        ("nibabel/tests/data/standard.nii.gz", "file", "read", ""),
        ("nibabel/tests/data/example_nifti2.nii.gz", "file", "refused", "dimensions"),
        ("nibabel/tests/data/functional.nii", "file", "refused", "dimensions"),
        ("nibabel/tests/data/analyze.hdr", "file", "refused", "missing"),
        ("nibabel/tests/data/small.mnc", "file", "refused", "unsupported format"),
        ("nibabel/tests/data/small.mnc", "folder", "refused", "missing"),
        ("pydicom/data/test_files/CT_small.dcm", "folder", "read", ""),
        ("pydicom/data/test_files/MR_small.dcm", "folder", "read", ""),
        ("pydicom/data/test_files/MR_small_RLE.dcm", "folder", "read", ""),
        ("pydicom/data/test_files/MR_small_bigendian.dcm", "folder", "read", ""),
        ("pydicom/data/test_files/MR_small_jp2klossless.dcm", "folder", "read", ""),
        ("pydicom/data/test_files/MR_small_jpeg_ls_lossless.dcm", "folder", "read", ""),
        ("pydicom/data/test_files/MR_truncated.dcm", "folder", "refused", "truncated"),
        ("pydicom/data/test_files/SC_rgb_small_odd.dcm", "folder", "refused", "modality"),
        ("pydicom/data/test_files/liver_1frame.dcm", "folder", "refused", "not an image"),
        ("pydicom/data/test_files/rtstruct.dcm", "folder", "refused", "not an image"),
        ("pydicom/data/test_files/rtdose.dcm", "folder", "refused", "not an image"),
        ("pydicom/data/test_files/test-SR.dcm", "folder", "refused", "not an image"),
    ],
)
def test_known_files(table: list[Row], name: str, kind: str, outcome: str, reason: str) -> None:
    row = next((row for row in table if row["file"] == name and row["as"] == kind), None)
    if row is None:
        pytest.skip("not shipped with this version")
    assert (row["outcome"], row["reason"]) == (outcome, reason), row["message"]
