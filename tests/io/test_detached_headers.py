"""Headers whose voxels lie in another file: only files of the header's own folder are read, whatever ITK would do."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.scan_list import scan_files

_SECRET = bytes(range(8))
_META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
    "ElementSpacing = 1 1 1\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
)
_NRRD = (
    "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\nencoding: raw\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of scans beside a file that is none of them."""
    (tmp_path / "secret").write_bytes(_SECRET)
    (tmp_path / "scans" / "deep").mkdir(parents=True)
    return tmp_path / "scans"


def _write(folder: Path, ending: str, name: str) -> Path:
    header = folder / f"scan{ending}"
    lines = f"{_META}ElementDataFile = {name}\n" if ending == ".mhd" else f"{_NRRD}data file: {name}\n"
    header.write_text(lines, encoding="utf-8")
    return header


@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".nrrd"])
@pytest.mark.parametrize("name", ["../secret", "deep/../../secret", "{root}/secret", "link", "way/secret"])
def test_voxels_outside_the_folder_are_refused_by_name(folder: Path, ending: str, name: str) -> None:
    (folder / "link").symlink_to("../secret")
    (folder / "way").symlink_to("..")
    name = name.format(root=folder.parent)
    header = _write(folder, ending, name)
    with pytest.raises(VolumeError, match="outside its own folder; copy that file beside the header") as caught:
        read_volume(header)
    assert caught.value.reason == "unsupported format"
    assert name in str(caught.value)
    assert scan_files(header) == [header]


@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".nrrd"])
@pytest.mark.parametrize("name", ["scan.raw", "./scan.raw", "deep/scan.raw", "deep/../scan.raw", "{root}/scan.raw"])
def test_voxels_in_the_folder_are_read(folder: Path, ending: str, name: str) -> None:
    for place in (folder, folder / "deep"):
        (place / "scan.raw").write_bytes(_SECRET)
    name = name.format(root=folder)
    header = _write(folder, ending, name)
    expected = np.arange(8, dtype=np.float32).reshape(2, 2, 2).transpose(2, 1, 0)
    np.testing.assert_array_equal(read_volume(header).array, expected)
    assert [path.resolve() for path in scan_files(header)] == [header, (folder / name).resolve()]


def test_a_header_that_is_linked_into_another_folder_takes_the_voxels_there(folder: Path, tmp_path: Path) -> None:
    header = _write(folder, ".mhd", "scan.raw")
    (folder / "scan.raw").write_bytes(_SECRET)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "scan.mhd").symlink_to(header)
    with pytest.raises(VolumeError, match="is not there"):
        read_volume(tmp_path / "links" / "scan.mhd")


# What ITK takes for the name of a file although the lines, read as they are meant, name none.
_DISGUISED = {
    "colon.mha": f"{_META}ElementDataFile : ../secret\nElementDataFile = LOCAL\n",
    "colon-and-equals.mha": f"{_META}ElementDataFile : LIST 3 =\n../secret\nElementDataFile = LOCAL\n",
    "long-key.mha": f"{_META}{'a' * 500}ElementDataFile = ../secret\nElementDataFile = LOCAL\n",
    "list.mhd": f"{_META}ElementDataFile = LISTED 3\n../secret\n",
    "list.nhdr": f"{_NRRD}data file: LISTED\n",
    "comment.nrrd": f"{_NRRD}# a\rdata file: ../secret\n\n",
    "pair.nrrd": f"{_NRRD}key:=a\rdata file: ../secret\n\n",
}


@pytest.mark.parametrize("name", _DISGUISED)
def test_names_in_disguise_are_refused(folder: Path, name: str) -> None:
    (folder / "LISTED 3").write_bytes(b"\0" * 8)
    (folder / "LISTED").write_bytes(b"\0" * 8)
    (folder / name).write_bytes(_DISGUISED[name].encode() + b"\0" * 8)
    with pytest.raises(VolumeError):
        read_volume(folder / name)


def test_no_header_of_random_lines_shows_a_file_outside_its_folder(folder: Path) -> None:
    """300 headers with lines that name the secret in every way that was thought of; its bytes are never voxels."""
    draw = random.Random(0)  # noqa: S311
    keys = [
        "ElementDataFile",
        "elementdatafile",
        "data file",
        "datafile",
        "DATA FILE",
        "Comment",
        "#",
        "key",
        " ",
        "\t",
    ]
    signs = [" = ", "=", " : ", ":", ":=", ": ", "\r", " ", " =: "]
    values = [
        "../secret",
        str(folder.parent / "secret"),
        "LIST",
        "LISTS 3",
        "LOCAL",
        "link",
        "%d 1 2 1",
        "a\0../secret",
    ]
    (folder / "link").symlink_to("../secret")
    (folder / "LISTS 3").write_bytes(b"\1" * 8)
    (folder / "inside").write_bytes(b"\1" * 8)
    values.append("inside")
    read = 0
    for number in range(300):
        meta = draw.random() < 0.5
        lines = (_META if meta else _NRRD).splitlines()
        for _ in range(draw.randint(1, 3)):
            line = "".join(draw.choice(part) for part in (keys, signs, values))
            place = draw.randint(1, len(lines))
            lines[place:place] = [draw.choice(["", "# a\r", "k = v\r", "a" * 500]) * (draw.random() < 0.3) + line]
        if draw.random() < 0.5:
            lines.append("ElementDataFile = LOCAL" if meta else "")
        header = folder / f"{number}{draw.choice(['.mha', '.mhd'] if meta else ['.nrrd', '.nhdr'])}"
        header.write_bytes("\n".join([*lines, ""]).encode() + b"\1" * 8)
        try:
            array = read_volume(header).array
        except VolumeError:
            continue
        read += 1
        assert (array == 1).all(), header.read_bytes()
    assert read > 5
