"""Files without suffix among DICOM slices without suffix: a lost slice must not go unnoticed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.archive import find_series
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.scan_list import list_scans
from tests.io.conftest import SeriesWriter

STACK = np.random.default_rng(0).integers(0, 2000, (4, 6, 8))
UIDS = "CT.1.3.6.{}"


@pytest.fixture
def slices(write_series: SeriesWriter) -> list[Path]:
    """Return slices named as a PACS exports them."""
    return [path.rename(path.with_name(UIDS.format(570 + index))) for index, path in enumerate(write_series(STACK))]


@pytest.mark.parametrize("index", [0, 2, 3])
@pytest.mark.parametrize("content", [b"", b"garbage" * 30])
def test_a_damaged_slice_is_named(slices: list[Path], index: int, content: bytes):
    slices[index].write_bytes(content)
    with pytest.raises(VolumeError, match=rf"{slices[index].name}: {'is not DICOM' if content else 'is empty'}"):
        read_volume(slices[0].parent)
    archive = find_series(sorted(slices))
    assert sorted(archive.series[0].files) == sorted(slices)  # the recipe refuses the series, too
    with pytest.raises(VolumeError, match=slices[index].name):
        read_volume(slices[0].parent, files=archive.series[0].files)


@pytest.mark.parametrize("content", [b"", b"garbage" * 30])
def test_a_list_of_scans_keeps_a_damaged_slice(slices: list[Path], content: bytes):
    """Scans of a folder are read by their files alone: without its last slice this one would look whole."""
    slices[3].write_bytes(content)
    (scan,) = list_scans(slices[0].parent)
    with pytest.raises(VolumeError, match=slices[3].name):
        read_volume(scan.place, series=scan.series, files=scan.files)


@pytest.mark.parametrize("name", ["1.2.840.99.7", "CT.1.3.6", "empty.txt"])
def test_refused_by_name_or_as_empty(slices: list[Path], name: str):
    (slices[0].parent / name).write_bytes(b"" if name.endswith("txt") else b"x" * 200)
    with pytest.raises(VolumeError, match=name):
        read_volume(slices[0].parent)


def test_others_are_left_out(slices: list[Path], caplog: pytest.LogCaptureFixture):
    for name in ("README", "notes.txt", "report.pdf"):
        (slices[0].parent / name).write_text("something else")
    with caplog.at_level(logging.WARNING):
        assert read_volume(slices[0].parent).shape == (8, 6, 4)
        find_series(sorted(slices[0].parent.iterdir()))
    assert [message.count("README") for message in caplog.messages] == [1, 1]


def test_slices_with_suffix_have_no_strangers(write_series: SeriesWriter, caplog: pytest.LogCaptureFixture):
    folder = write_series(STACK)[0].parent
    (folder / "VERSION").touch()
    (folder / "1.2.3").write_text("x")
    assert read_volume(folder).shape == (8, 6, 4)
    assert not [record for record in caplog.records if record.name.startswith("boltzformer_monai")]
