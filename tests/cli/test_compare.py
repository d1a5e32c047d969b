from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom
from boltzformer_monai.io.read import read_volume


@pytest.fixture
def visits(tmp_path: Path) -> dict[str, Path]:
    """Two scans of a patient in one frame of reference, with labels: one lesion grew, one is new."""
    image, _ = make_phantom("abdomen", seed=1, size=(36, 32, 5))
    for name, date in (("early", "20240101"), ("late", "20240411")):
        folder = write_phantom_dicom(image, tmp_path / name, seed=1)
        _change(folder, StudyDate=date, SeriesDate=date, AcquisitionDate=date)
        scan = read_volume(folder)
        labels = np.zeros(scan.shape, np.uint8)
        labels[5:9, 5:9, 1:3] = 1
        if name == "late":
            labels[5:9, 5:9, 1:4] = 1
            labels[20:23, 20:22, 2] = 1
        nib.save(nib.Nifti1Image(labels, scan.affine), tmp_path / f"{name}.nii.gz")
    return {path.name: path for path in tmp_path.iterdir()}


def _change(folder: Path, **values: str) -> None:
    for path in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for name, value in values.items():
            setattr(dataset, name, value)
        dataset.save_as(path)


def _run(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def _measured(visits: dict[str, Path], folder: Path) -> list[Path]:
    files = []
    for name in ("early", "late"):
        files.append(folder / "out" / f"{name}.json")
        labels = visits[f"{name}.nii.gz"]
        assert _run("measure", labels, "--image", visits[name], "--names", "1=cyst", "--json", files[-1]) == 0
    return files


def test_two_lists_of_one_patient(visits: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    early, late = _measured(visits, tmp_path)
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert _run("compare", early, late, "--json", tmp_path / "c.json", "--report", page) == 0
    line = json.loads(capsys.readouterr().out)
    assert {name: line[name] for name in ("new", "gone", "grown")} == {"new": 1, "gone": 0, "grown": 1}
    found = json.loads((tmp_path / "c.json").read_text())
    (pair,) = found["pairs"]
    assert (pair["target"], pair["status"], pair["volume_ratio"]) == ("cyst", "grown", 1.5)
    assert (pair["earlier"]["number"], pair["later"]["number"], pair["later"]["voxels"]) == (1, 1, 48)
    assert found["days"] == 101
    assert pair["doubling_days"] == pytest.approx(101 * np.log(2) / np.log(1.5), rel=1e-5)
    assert [each["voxels"] for each in found["new"]] == [6]
    assert found["gone"] == []
    assert found["registration"]["method"] == "same frame of reference"
    text = page.read_text(encoding="utf-8")
    assert "cyst" in text
    assert "+50 %" in text
    assert "PHANTOM" not in text + (tmp_path / "c.json").read_text()


def test_label_maps_with_their_scans_and_other_limits(visits: dict[str, Path], capsys: Any) -> None:
    both = visits["early.nii.gz"], visits["late.nii.gz"]
    images = ("--images", visits["early"], visits["late"])
    assert _run("compare", *both, *images, "--days", "10", "--change", "0.6", "--names", "1=cyst") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"][0]["status"], found["days"]) == ("stable", 10)
    assert _run("compare", *both) == 2
    assert "--images" in capsys.readouterr().err


def test_another_patient_is_refused(visits: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    early, late = _measured(visits, tmp_path)
    assert _run("compare", late, early) == 2
    assert "is the earlier one" in capsys.readouterr().err
    _change(visits["late"], PatientID="ANOTHER")
    assert _run("compare", early, late) == 2
    error = capsys.readouterr().err
    assert "another patient" in error
    assert "ANOTHER" not in error
    assert _run("compare", early, late, "--same-patient") == 0
    _change(visits["late"], PatientID="")
    capsys.readouterr()
    assert _run("compare", early, late) == 0
    assert [each["kind"] for each in json.loads(capsys.readouterr().out)["caveats"]] == ["unstated patient"]


def test_files_that_are_no_lists_are_refused(visits: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    early, late = _measured(visits, tmp_path)
    (tmp_path / "bad.json").write_text('{"format": "boltzformer-lesions", "version": 1, "files": 3}')
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "folder.json").mkdir()
    for arguments, part in (
        ((early, tmp_path / "bad.json"), "damaged"),
        ((early, tmp_path / "other.json"), "no list of lesions"),
        ((early, tmp_path / "missing.json"), "missing.json"),
        ((early, late, "--report", tmp_path / "a.pdf"), "must end in .html"),
        ((early, late, "--json", early), "is an input"),
        ((early, late, "--json", tmp_path / "folder.json"), "is a folder"),
    ):
        assert _run("compare", *arguments) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1
