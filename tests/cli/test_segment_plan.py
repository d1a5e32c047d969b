"""What names and headers can tell is told before PyTorch is imported, the checkpoint loaded or a scan read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.io.formats import write_image_file
from tests.io.conftest import SeriesWriter, write_series
from tests.needs import need_module

__all__ = ["write_series"]

# Runs commands in one process; after each: the exit code, what was said, and whether PyTorch is there.
RUNNER = """
import contextlib, io, json, sys
from boltzformer_monai.cli import main
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, said.getvalue(), "torch" in sys.modules]))
"""


def private(dataset: Any, index: int) -> None:
    dataset.StudyInstanceUID, dataset.SOPClassUID = "1.2.3.4", "1.3.46.670589.11.0.0.12.1"


def scans(tmp_path: Path, write_series: SeriesWriter) -> dict[str, Path]:
    """A NIfTI scan, a folder of such, a DICOM series that no SEG can refer to, and what is named like a checkpoint."""
    folder = tmp_path / "scans"
    folder.mkdir()
    write_image_file(np.zeros((4, 5, 6), np.int16), np.eye(4), folder / "one.nii.gz")
    (tmp_path / "model.pt").write_bytes(b"no checkpoint")
    (tmp_path / "a file").write_bytes(b"")
    need_module("highdicom")
    odd = write_series(np.ones((3, 5, 4)), folder=tmp_path / "odd", change=private)[0].parent
    return {"one": folder / "one.nii.gz", "many": folder, "odd": odd, "model": tmp_path / "model.pt"}


def mistakes(tmp_path: Path, at: dict[str, Path]) -> dict[str, list[str]]:
    """What must be in the line → the arguments."""
    common = ["--prompts", "liver", "--checkpoint", str(at["model"]), "--output"]
    one, many, odd, out = str(at["one"]), str(at["many"]), str(at["odd"]), str(tmp_path / "out.nii.gz")
    seg, rtstruct = (str(tmp_path / name) for name in ("out.dcm", "out.rtstruct.dcm"))
    folder = str(tmp_path / "masks")
    return {
        "cannot write into": ["segment", one, *common, str(tmp_path / "a file" / "out.nii.gz")],
        "is a folder of scans": ["segment", many, *common, out],
        "unknown window": ["segment", one, *common, out, "--window", "lnug"],
        "SOPClassUID (0008,0016)": ["segment", odd, *common, seg],
        "is no DICOM series, which DICOM SEG must": ["segment", one, *common, seg],
        "is no DICOM series, which RTSTRUCT must": ["segment", one, *common, rtstruct],
        "(0008,0016) is private": ["segment", odd, *common, rtstruct],
        "ends in .rtstruct.dcm": ["segment", odd, *common, str(tmp_path / "my_rtstruct.dcm")],
        "is written by --report": ["segment", odd, *common, str(tmp_path / "lesions.sr.dcm")],
        "holds no DICOM series, which RTSTRUCT": [
            "segment",
            many,
            *common,
            folder,
            "--format",
            "rtstruct.dcm",
        ],
        "is a folder of scans, each": ["segment", many, *common, rtstruct],
        "a DICOM SEG holds a mask for each": [
            "segment",
            odd,
            *common,
            folder,
            "--masks",
            "--format",
            "dcm",
        ],
        "an RTSTRUCT holds a mask for each": [
            "segment",
            odd,
            *common,
            folder,
            "--masks",
            "--format",
            "rtstruct.dcm",
        ],
        "holds no DICOM slices": ["segment", str(many), *common, seg, "--series", "1.2"],
        "name of a report ends in": ["segment", one, *common, out, "--report", str(tmp_path / "a.pdf")],
        "which a DICOM SR must refer to": ["segment", one, *common, out, "--report", str(tmp_path / "a.sr.dcm")],
        "is private or unknown": ["segment", odd, *common, out, "--report", str(tmp_path / "a.sr.dcm")],
        "--threshold: must be from 0 to 1": ["segment", one, *common, out, "--threshold", "2"],
        "no bundle at": ["demo", "--bundle-root", str(tmp_path)],
    }


def test_mistakes_are_told_before_pytorch_is_imported(tmp_path: Path, write_series: SeriesWriter) -> None:
    wanted = mistakes(tmp_path, scans(tmp_path, write_series))
    command = [sys.executable, "-c", RUNNER, json.dumps(list(wanted.values()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(wanted)
    for said, (code, line, torch_there) in zip(wanted, answers, strict=True):
        errors = [each for each in line.splitlines() if each.startswith("error: ")]
        assert code == 2, (said, line)
        assert len(errors) == 1
        assert said in errors[0]
        assert not torch_there, said


def test_in_a_folder_each_scan_is_judged_before_its_inference(
    tmp_path: Path,
    write_series: SeriesWriter,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scans(tmp_path, write_series)
    top = tmp_path / "archive"
    for name in ("a", "b"):
        write_series(np.ones((3, 5, 4)), folder=top / name, uid=f"1.2.3.4.{ord(name)}", change=private)

    def never(*arguments: Any, **settings: Any) -> None:
        pytest.fail("a scan was read")

    monkeypatch.setattr("boltzformer_monai.cli.segment_jobs.read_volume", never)
    out = str(tmp_path / "out")
    arguments = ["--prompts", "liver", "--checkpoint", str(checkpoint), "--output", out, "--format", "dcm"]
    assert main(["segment", str(top), *arguments]) == 3
    failed = [line for line in caplog.messages if line.startswith("failed: ")]
    assert len(failed) == 2
    assert all("SOPClassUID (0008,0016) is private or unknown" in line for line in failed)


def test_a_missing_modality_is_told_before_a_scan_is_read(
    tmp_path: Path,
    write_series: SeriesWriter,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = scans(tmp_path, write_series)
    real = VolumeSegmenter.from_checkpoint

    def of_both(*arguments: Any, **settings: Any) -> VolumeSegmenter:
        segmenter = real(*arguments, **settings)
        targets = segmenter.description.data["targets"]
        segmenter.description.data["targets"] = [*targets, {**targets[0], "modality": "MR"}]
        return segmenter

    def never(*arguments: Any, **settings: Any) -> None:
        pytest.fail("a scan was read")

    monkeypatch.setattr(VolumeSegmenter, "from_checkpoint", of_both)
    monkeypatch.setattr("boltzformer_monai.cli.segment_jobs.read_volume", never)
    out = str(tmp_path / "out.nii.gz")
    assert main(["segment", str(at["one"]), "--prompts", "x", "--checkpoint", str(checkpoint), "--output", out]) == 2
    assert "give --modality" in capsys.readouterr().err
