"""Archives made of links: followed once, without loops; a dangling one is one scan's problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.folder_tree import read_tree
from tests.slicing.folder_cases import listed
from tests.slicing.scan_files import write_image


def test_links_to_folders_are_followed(tmp_path: Path):
    write_image(tmp_path / "store" / "p1" / "image.nii.gz")
    write_image(tmp_path / "store" / "p2" / "image.nii.gz")
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("p1", "p2"):
        (archive / name).symlink_to(tmp_path / "store" / name)
    assert set(listed(archive)) == {"p1", "p2"}


def test_every_folder_comes_once(tmp_path: Path):
    top, outside = tmp_path / "top", tmp_path / "outside"
    write_image(top / "p1" / "image.nii.gz")
    write_image(outside / "p2" / "image.nii.gz")
    (top / "a").symlink_to(top / "p1")  # sorted before what it links to
    (top / "loop").symlink_to(top)
    (top / "p1" / "up").symlink_to(tmp_path)
    (top / "z").symlink_to(outside)
    (outside / "back").symlink_to(top)
    places = [place.relative_to(top).as_posix() for place, _ in read_tree(top).folders]
    assert places == [".", "p1", "z", "z/p2"]
    assert set(listed(top)) == {"p1", "z/p2"}
    assert {path.relative_to(top).as_posix() for path in read_tree(top).links} == {"a", "loop", "p1/up", "z/back"}


def test_a_dangling_link_is_one_refused_case(tmp_path: Path):
    write_image(tmp_path / "p1" / "image.nii.gz")
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1" / "image.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    cases = listed(tmp_path)
    assert set(cases) == {"c1", "p1"}
    with pytest.raises(VolumeError, match=r"c1.image\.nii\.gz: no such file"):
        cases["c1"].read_image()
    cases["p1"].read_image(tilt="keep")
