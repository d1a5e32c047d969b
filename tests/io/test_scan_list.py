from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.scan_list import list_scans, split_ending
from tests.io.conftest import SeriesWriter


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a.nii.gz", ("a", ".nii.gz")), ("a.b.NRRD", ("a.b", ".NRRD")), ("a.b", ("a.b", "")), ("s.dcm", ("s", ".dcm"))],
)
def test_endings(name: str, parts: tuple[str, str]) -> None:
    assert split_ending(name) == parts


def test_image_files_and_series_are_listed_and_annotations_are_not(tmp_path: Path, write_series: SeriesWriter) -> None:
    for name in ("b.nii.gz", "sub/a.nrrd", "sub/a_label.nii.gz", "x.seg.nrrd", "masks.nii", ".hidden.nii", "notes.txt"):
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
