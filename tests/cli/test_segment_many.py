"""``segment`` on a folder of scans: all of them, again, with a bad one, and interrupted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom, write_phantom_nifti
from boltzformer_monai.inferers.sliding_volume import SlidingVolumeInferer
from tests.needs import need_module


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two NIfTI files with a label beside one of them, and a DICOM series."""
    folder = tmp_path / "archive"
    for seed in (1, 2):
        image, label = make_phantom("abdomen", seed=seed, size=(32, 32, 4))
        write_phantom_nifti(image, label, folder / "nifti", f"scan{seed}")
    write_phantom_dicom(image, folder / "patient" / "series", seed=2)
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which scans went through the inferer, by their sources."""
    sources: list[str] = []
    real = SlidingVolumeInferer.segment

    def segment(self: SlidingVolumeInferer, volume: Any, network: Any) -> Any:
        sources.append(Path(volume.source).name)
        return real(self, volume, network)

    monkeypatch.setattr(SlidingVolumeInferer, "segment", segment)
    return sources


def _run(archive: Path, checkpoint: Path, out: Path, *more: object) -> int:
    given = [archive, "--prompts", "left kidney", "--checkpoint", checkpoint, "--output", out, *more]
    return main(["segment", *map(str, given)])


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


ALL = [f"{name}{tail}" for name in ("nifti/scan1", "nifti/scan2", "patient/series") for tail in (".json", ".nii.gz")]


def test_all_scans_then_only_what_changed(
    archive: Path,
    checkpoint: Path,
    tmp_path: Path,
    seen: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    assert _run(archive, checkpoint, out) == 0
    assert _files(out) == ALL
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 3
    _run(archive, checkpoint, out)
    assert caplog.messages[-1].startswith("0 segmented, 3 were complete already, 0 failed; left out: annotations: 2")
    assert f"{archive}: left out, annotations: nifti/scan1_label.nii.gz" in caplog.text
    before = {name: (out / name).read_bytes() for name in ALL}
    assert seen == ["scan1.nii.gz", "scan2.nii.gz", "series"]
    assert _run(archive, checkpoint, out) == 0
    assert len(seen) == 3
    (out / "nifti" / "scan2.nii.gz").unlink()
    (out / "patient" / "series.json").unlink()
    assert _run(archive, checkpoint, out) == 0
    assert seen[3:] == ["scan2.nii.gz", "series"]
    assert {name: (out / name).read_bytes() for name in ALL} == before
    assert _run(archive, checkpoint, out, "--seed", 1) == 0
    assert len(seen) == 8


def test_a_bad_scan_is_listed_and_the_others_are_done(
    archive: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = archive / "nifti" / "scan1.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    out = tmp_path / "out"
    assert _run(archive, checkpoint, out, "--preview", tmp_path / "pictures") == 3
    assert _files(out) == ALL[2:]
    assert _files(tmp_path / "pictures") == ["nifti/scan2.png", "patient/series.png"]
    assert [record.getMessage() for record in caplog.records][-1].startswith("failed: nifti/scan1: ")


def test_ctrl_c_keeps_what_is_finished(
    archive: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[str]
) -> None:
    out = tmp_path / "out"
    counted = SlidingVolumeInferer.segment

    def interrupted(self: SlidingVolumeInferer, volume: Any, network: Any) -> Any:
        if seen:
            raise KeyboardInterrupt
        return counted(self, volume, network)

    with monkeypatch.context() as patch:
        patch.setattr(SlidingVolumeInferer, "segment", interrupted)
        assert _run(archive, checkpoint, out) == 130
    assert _files(out) == ALL[:2]
    assert _run(archive, checkpoint, out) == 0
    assert seen == ["scan1.nii.gz", "scan2.nii.gz", "series"]
    assert _files(out) == ALL


def test_dicom_seg_of_an_archive_fails_for_other_scans_only(archive: Path, checkpoint: Path, tmp_path: Path) -> None:
    need_module("highdicom")
    assert _run(archive, checkpoint, tmp_path / "out", "--format", "dcm") == 3
    assert _files(tmp_path / "out") == ["patient/series.dcm", "patient/series.json"]


@pytest.mark.parametrize(
    ("more", "said"), [(["--output", "{archive}/out"], "folder of the scans"), (["--preview", "p.png"], "a folder")]
)
def test_mistakes(
    archive: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert _run(archive, checkpoint, tmp_path / "out", *[part.format(archive=archive) for part in more]) == 2
    stderr = capsys.readouterr().err
    assert said in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_scans(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert _run(tmp_path / "empty", checkpoint, tmp_path / "out") == 2
    assert "holds no scans" in capsys.readouterr().err


def test_a_doubtful_result_is_doubtful_when_it_is_complete_already(
    archive: Path, checkpoint: Path, tmp_path: Path
) -> None:
    given = ["segment", str(archive), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "doubt")]
    for _ in range(2):
        assert main([*given, "--prompts", "left kidney", "flux capacitor"]) == 4
    assert main([*given, "--prompts", "left kidney"]) == 0
