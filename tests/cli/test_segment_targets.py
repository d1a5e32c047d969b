"""``segment`` writes over nothing that is not its own; it says so before the work, in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.cli import main, segment_jobs
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom, write_phantom_nifti
from boltzformer_monai.inferers import preview
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.inferers.volume_result import VolumeResult
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.io.volume import Volume


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scan, a series and an archive in the working folder."""
    image, label = make_phantom("abdomen", seed=1, size=(32, 32, 4))
    write_phantom_nifti(image, label, tmp_path, "scan")
    write_phantom_dicom(image, tmp_path / "series", seed=1)
    for name in ("one", "two"):
        write_phantom_nifti(image, label, tmp_path / "archive", name)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded or segmented."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(VolumeSegmenter, "from_checkpoint", refuse)


def _run(image: object, checkpoint: Path, output: object, *more: object) -> int:
    given = [image, "--prompts", "left kidney", "--checkpoint", checkpoint, "--output", output, *more]
    return main(["segment", *map(str, given)])


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("image", "output", "more", "said"),
    [
        ("scan.nii.gz", "scan.NII.GZ", [], "an input"),
        ("series", "series/slice_0001.dcm", [], "among the scans"),
        ("series", "series/notes.nii.gz", [], "among the scans"),
        ("series", "series/fresh.nii.gz", ["--preview", "series/picture.png"], "among the scans"),
        ("x-uncertainty.nii.gz", "x.nii.gz", ["--uncertainty", 2], "an input"),
        ("out/01_left_kidney.nii.gz", "out", ["--masks"], "an input"),
        ("scan.nii.gz", "prompts.nii.gz", ["--prompts-file", "prompts.json"], "an input"),
        ("scan.nii.gz", "sub.nrrd", [], "sub.json"),
        ("scan.nii.gz", "folder.nii.gz", [], "folder"),
        ("archive", "results", ["--preview", "archive/pictures"], "folder of the scans"),
        ("archive", "results", ["--preview", "pictures.jpg"], "pictures.jpg"),
        ("archive", "foreign", [], "two.json"),
        ("archive", "linked", [], "an input"),
        ("archive", "out.nii.gz", [], "a folder instead of out.nii.gz"),
        ("archive", "out.mha", [], "no name of a folder"),
        ("archive", "out.nii.gx", [], "no name of a folder"),
        ("scan.nii.gz", "out.png", ["--masks"], "no name of a folder"),
        ("pair.mhd", "pair.json/out.nii.gz", [], "pair.json"),
    ],
)
def test_what_would_be_lost_is_refused_before_the_work(
    room: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    image: str,
    output: str,
    more: list[Any],
    said: str,
) -> None:
    scan = (room / "scan.nii.gz").read_bytes()
    for name in ("x-uncertainty.nii.gz", "out/01_left_kidney.nii.gz"):
        (room / name).write_bytes(scan)
    for name in ("series/notes.nii.gz", "series/picture.png", "pair.mhd"):
        (room / name).touch()
    for name in ("sub.json", "foreign/two.json", "pair.json", "prompts.json"):
        (room / name).parent.mkdir(exist_ok=True)
        (room / name).write_text('{"SliceThickness": 3}', encoding="utf-8")
    (room / "folder.nii.gz").mkdir()
    (room / "linked").mkdir()
    (room / "linked" / "two.nii.gz").symlink_to(room / "archive" / "two.nii.gz")
    before = _contents(room)
    assert _run(image, checkpoint, output, *more) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert said in stderr
    assert _contents(room) == before


def test_a_leftover_that_became_an_input_is_not_removed(
    room: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("scan.nii.gz", checkpoint, "x.nii.gz", "--uncertainty", 2) == 0
    before = _contents(room)
    assert _run("x-uncertainty.nii.gz", checkpoint, "x.nii.gz", "--modality", "CT") == 2
    assert "an input" in capsys.readouterr().err
    assert _contents(room) == before


def test_results_of_ours_are_replaced_in_the_series_too(room: Path, checkpoint: Path) -> None:
    for seed in (0, 1):
        assert _run("series", checkpoint, "series/result.nii.gz", "--seed", seed) == 0
    assert json.loads((room / "series" / "result.json").read_text(encoding="utf-8"))["seed"] == 1


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("more", [[], ["--preview", "{closed}/p.png"]])
def test_a_place_that_takes_no_file_is_found_at_once(
    room: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    closed = room / "closed"
    real = os.open

    def deny(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(path).startswith(str(closed)) and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", deny)
    output = "out/a.nii.gz" if more else closed / "a.nii.gz"
    assert _run("scan.nii.gz", checkpoint, output, *[part.format(closed=closed) for part in more]) == 2
    assert capsys.readouterr().err == (
        f"error: cannot write into {closed} (Permission denied); choose another place, or allow it\n"
    )


def test_too_little_memory_is_one_line(
    room: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def big(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(segment_jobs, "read_volume", big)
    assert _run("scan.nii.gz", checkpoint, "o.nii.gz") == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: scan.nii.gz: does not fit into memory")
    assert stderr.count("\n") == 1
    assert _run("archive", checkpoint, "results") == 3


def test_a_folder_that_cannot_be_opened_is_a_failed_scan(
    room: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (room / "archive" / "closed").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert _run("archive", checkpoint, "results") == 3
    assert sorted(path.name for path in (room / "results").rglob("*.nii.gz")) == ["one.nii.gz", "two.nii.gz"]
    assert "closed: cannot be opened (Permission denied)" in caplog.records[-1].getMessage()


def test_the_contact_sheet_knows_the_modality_that_inference_settled_on(
    room: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modalities: list[str] = []

    def sheet(result: VolumeResult, **_: Any) -> bytes:
        modalities.append(result.grid.modality)
        return b""

    monkeypatch.setattr(preview, "contact_sheet", sheet)
    assert _run("scan.nii.gz", checkpoint, "o.nii.gz", "--preview", "o.png") == 0  # trained on CT only
    assert modalities == ["CT"]


def test_the_source_is_what_was_read(room: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = segment_jobs.read_volume

    def changed(place: Path, **settings: Any) -> Volume:
        volume = real(place, **settings)
        os.utime(place, (1, 1))
        return volume

    before = segment_jobs.source_digest(Scan("scan", room / "scan.nii.gz"))
    monkeypatch.setattr(segment_jobs, "read_volume", changed)
    assert _run("scan.nii.gz", checkpoint, "o.nii.gz") == 0
    assert json.loads((room / "o.json").read_text(encoding="utf-8"))["source"] == before
