from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.folder_tree import read_tree
from boltzformer_monai.io.scan_list import find_left_out, holds_only_image_files, list_scans, scan_files, split_ending
from tests.io.conftest import SeriesWriter


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a.nii.gz", ("a", ".nii.gz")), ("a.b.NRRD", ("a.b", ".NRRD")), ("a.b", ("a.b", "")), ("s.dcm", ("s", ".dcm"))],
)
def test_endings(name: str, parts: tuple[str, str]) -> None:
    assert split_ending(name) == parts


def test_image_files_and_series_are_listed_and_annotations_are_not(tmp_path: Path, write_series: SeriesWriter) -> None:
    annotations = ("sub/a_label.nii.gz", "x.seg.nrrd", "masks.nii", "a mask.nii")
    for name in ("b.nii.gz", "sub/a.nrrd", *annotations, ".hidden.nii", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    stack = np.ones((3, 4, 5))
    one = write_series(stack, folder=tmp_path / "one", uid="1.2.3.4.1")
    two = write_series(stack, folder=tmp_path / "two" / "deep", uid="1.2.3.4.2")
    three = write_series(stack, folder=tmp_path / "two" / "deep", uid="1.2.3.4.3")
    found = {scan.name: scan for scan in list_scans(tmp_path)}
    assert list(found) == ["b", "one", "sub/a", "two/deep/1.2.3.4.2", "two/deep/1.2.3.4.3"]
    assert (found["one"].series, set(found["one"].files)) == ("1.2.3.4.1", set(one))
    assert set(found["two/deep/1.2.3.4.2"].files) == set(two)
    assert set(found["two/deep/1.2.3.4.3"].files) == set(three)
    assert found["b"].place == tmp_path / "b.nii.gz"
    assert found["b"].series is None


def test_a_folder_that_is_one_series_is_named_after_itself(tmp_path: Path, write_series: SeriesWriter) -> None:
    write_series(np.ones((3, 4, 5)), folder=tmp_path / "scan")
    assert [scan.name for scan in list_scans(tmp_path / "scan")] == ["scan"]


def test_a_damaged_slice_stays_with_its_series(tmp_path: Path, write_series: SeriesWriter) -> None:
    files = write_series(np.ones((3, 4, 5)), folder=tmp_path / "one")
    files[0].write_bytes(files[0].read_bytes()[:100])
    (scan,) = list_scans(tmp_path)
    assert set(scan.files) == set(files)


def test_nothing_and_two_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="holds no scans"):
        list_scans(tmp_path)
    (tmp_path / "a.nii").touch()
    (tmp_path / "A.nrrd").touch()
    with pytest.raises(VolumeError, match="would both become"):
        list_scans(tmp_path)


def test_folders_of_annotations_are_left_out(tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr", "labels", "masks", "seg", "segmentations", "labels-test", "maskulinum"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nii.gz").touch()
    scans = list_scans(tmp_path)
    assert [scan.name for scan in scans] == ["imagesTr/a", "maskulinum/a"]
    left = find_left_out(read_tree(tmp_path, follow=False), [scan.place for scan in scans])
    assert {kind: len(paths) for kind, paths in left.items()} == {"annotations": 6}
    assert [scan.name for scan in list_scans(tmp_path / "labelsTr")] == ["a"]  # asked for by name


def test_a_folder_that_cannot_be_opened_is_listed_with_its_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.nii").touch()
    (tmp_path / "sub" / "closed").mkdir(parents=True)
    real = os.scandir
    shut = {str(tmp_path / "sub" / "closed")}

    def scandir(path: Any) -> Any:
        if str(path) in shut:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = {scan.name: scan.problem for scan in list_scans(tmp_path)}
    assert list(found) == ["a", "sub/closed"]
    assert found["a"] == ""
    assert "Permission denied" in found["sub/closed"]
    shut.add(str(tmp_path))
    with pytest.raises(VolumeError, match="cannot be opened"):
        list_scans(tmp_path)


def test_a_folder_of_image_files_is_told_from_a_series(tmp_path: Path, write_series: SeriesWriter) -> None:
    write_series(np.ones((3, 4, 5)), folder=tmp_path / "dicom")
    (tmp_path / "dicom" / "result.nii.gz").touch()
    (tmp_path / "files").mkdir()
    assert not holds_only_image_files(tmp_path / "files")
    for name in ("a.nii.gz", "a.json"):
        (tmp_path / "files" / name).touch()
    assert holds_only_image_files(tmp_path / "files")
    assert not holds_only_image_files(tmp_path / "dicom")


@pytest.mark.parametrize(
    ("header", "text", "data"),
    [
        ("a.mhd", "NDims = 3\nElementDataFile = a.raw\n", "a.raw"),
        ("a.nhdr", "NRRD0004\ntype: short\ndata file: ./a.raw\n", "a.raw"),
        ("a.hdr", "", "a.img"),
        ("A.HDR", "", "A.IMG"),
        ("a.mha", "NDims = 3\nElementDataFile = LOCAL\n", None),
        ("a.nrrd", "NRRD0004\ntype: short\n\ndata file: a.raw\n", None),
        ("a.mhd", "NDims = 3\nElementDataFile = LIST\na.raw\n", None),
    ],
)
def test_a_header_and_the_file_of_its_voxels(tmp_path: Path, header: str, text: str, data: str | None) -> None:
    (tmp_path / header).write_text(text, encoding="latin-1")
    for name in ("a.raw", data or "other.raw"):
        (tmp_path / name).touch()
    assert scan_files(tmp_path / header) == [tmp_path / header, *([tmp_path / data] if data else [])]
