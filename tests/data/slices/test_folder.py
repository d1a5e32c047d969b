"""Whose folder it is, and what killed writers leave in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.volume import SliceSettings, write_volume
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.errors import DatasetError, StorageError
from tests.data.slice_cases import LABELS, add, make_volume, one_volume


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return one_volume(tmp_path / "set")


def test_folders_of_others_are_not_taken_for_ours(tmp_path: Path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nii.gz").write_bytes(b"scan")
        (tmp_path / name / "photo_axial_1.png").write_bytes(b"photo")
    with pytest.raises(DatasetError, match="not a slice data set"):
        add(SliceWriter(tmp_path))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4


def test_strangers_in_our_folders_are_left_alone(root: Path):
    (root / "images" / "notes").mkdir()
    for stranger in ("images/scan.nii.gz", "images/photo.png", "labels/a_axial_1.png"):
        (root / stranger).write_bytes(b"mine")
    add(SliceWriter(root), "b")
    for stranger in ("images/scan.nii.gz", "images/photo.png", "labels/a_axial_1.png"):
        assert (root / stranger).read_bytes() == b"mine"


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".run", ".ab12-dataset.json"]])
def test_a_writer_killed_at_its_very_start_locks_nobody_out(tmp_path: Path, left: list[str]):
    for name in left:
        (tmp_path / name).write_text("")
    add(SliceWriter(tmp_path))
    assert set(SliceReader(tmp_path).volumes) == {"case1"}
    assert not list(tmp_path.glob(".ab12*"))


@pytest.mark.parametrize("change", ["leaves", "comes"])
def test_between_the_two_tables_a_kill_leaves_what_reads(root: Path, monkeypatch: pytest.MonkeyPatch, change: str):
    add(SliceWriter(root), "second")
    rename, renamed = os.replace, []

    def interrupted(source: str, target: str) -> None:
        renamed.append(target)
        if len(renamed) == 2:
            raise SystemExit  # stands in for a kill: what follows does not happen
        rename(source, target)

    def change_it() -> None:
        with SliceWriter(root) as writer:
            if change == "comes":
                add(writer, "third")
            monkeypatch.setattr("boltzformer_monai.storage.os.replace", interrupted)
            if change == "comes":
                writer.flush()
            else:
                writer.hide(["second"])

    with pytest.raises(SystemExit):
        change_it()
    monkeypatch.undo()
    assert len(renamed) >= 2
    assert {row.volume for row in SliceReader(root).rows} >= {"case1"}


def test_a_process_that_outlives_its_run_writes_nothing(tmp_path: Path):
    image, label = make_volume()
    with SliceWriter(tmp_path) as writer:
        run = writer.run
    settings = {"volume_id": "late", "patient": "late", "site": "abdomen", "settings": SliceSettings(), "run": run}
    with pytest.raises(StorageError, match="the run that wanted volume late is over"):
        write_volume(tmp_path, image, label, LABELS, **settings)
    assert not list(tmp_path.glob("*/late*"))


def test_what_a_killed_writer_left_is_swept_away_and_its_finished_volumes_are_named(root: Path):
    image, label = make_volume()
    write_volume(
        root, image, label, LABELS, volume_id="late", patient="late", site="abdomen", settings=SliceSettings()
    )  # its record is there, but the writer died before the tables
    for stray in ("images/gone_axial_0000.png", ".staging/gone-1/images/x.png", "volumes/.12ab-gone.json"):
        (root / stray).parent.mkdir(parents=True, exist_ok=True)
        (root / stray).write_bytes(b"half")
    with SliceWriter(root):
        pass
    assert set(SliceReader(root).volumes) == {"case1", "late"}
    assert not list(root.rglob("*gone*"))
