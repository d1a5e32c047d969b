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
from boltzformer_monai.inferers.results import write_results
from boltzformer_monai.inferers.run_settings import ModelRecord, RunSettings
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.scan_list import Scan
from tests.inferers.volume_stub import StubResult


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
    assert "from +25 % and −20 % of the volume on" in text
    assert "</strong> not compared" in text
    assert text.count('<td data-name="status">') == 2
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


@pytest.mark.slow
def test_two_patients_are_refused_even_if_no_header_names_them(tmp_path: Path, capsys: Any) -> None:
    """They agree as a whole: a body in air."""
    for seed in (1, 3):
        image, labels = make_phantom("abdomen", seed=seed, size=(64, 64, 16))
        for name, array in (("scan", image.array), ("labels", labels.array)):
            nib.save(nib.Nifti1Image(array, image.affine), tmp_path / f"{name}{seed}.nii.gz")
    both = [tmp_path / f"labels{seed}.nii.gz" for seed in (1, 3)]
    images = ["--images", *(tmp_path / f"scan{seed}.nii.gz" for seed in (1, 3)), "--modality", "CT"]
    assert _run("compare", *both, *images) == 2
    error = capsys.readouterr().err
    assert "look like two patients" in error
    assert "--same-patient" in error
    assert error.count("\n") == 1
    assert _run("compare", *both, *images, "--same-patient") == 0
    registration = json.loads(capsys.readouterr().out)["registration"]
    assert registration["similarity"] > 0.9
    assert registration["detail"] < 0.9


def test_lists_with_different_limits_are_compared_from_the_larger_one_on(
    visits: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    """Else a small lesion that was there all the time, but not listed, is a new one."""
    files = []
    for name, limit in (("early", 50), ("late", 0)):
        files.append(tmp_path / f"{name}.json")
        labels = visits["late.nii.gz"]
        call = ["measure", labels, "--image", visits[name], "--names", "1=cyst", "--json", files[-1]]
        assert _run(*call, "--lesion-min-ml", limit) == 0
    capsys.readouterr()
    assert _run("compare", *files) == 0
    captured = capsys.readouterr()
    counts = json.loads(captured.out)["counts"]
    assert counts == {"new": 0, "gone": 0, "grown": 0, "shrunk": 0, "stable": 1, "not_compared": 0}
    assert "compared from 50 ml on" in captured.err


def test_results_of_segment_with_what_they_looked_for_and_their_limits(
    visits: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    """A DICOM SEG has no segment of what was not found; a lesion of it is gone all the same."""
    results = []
    for name, cyst in (("early", True), ("late", False)):
        scan = Scan(name, visits[name])
        grid = read_volume(scan.place)
        masks = {prompt: np.zeros(grid.shape, bool) for prompt in ("cyst", "spleen")}
        masks["cyst"][5:9, 5:9, 1:3] = cyst
        masks["spleen"][15:20, 5:12, 2:5] = masks["spleen"][30, 30, 0] = True
        settings = RunSettings(prompts=tuple(masks), ending=".dcm", lesion_min_ml=10)
        stub: Any = StubResult(grid, masks)
        write_results(stub, tmp_path / f"{name}-out", settings, model=ModelRecord(sha256="ab" * 32), scan=scan)
        results.append(tmp_path / f"{name}-out.json")
    assert _run("compare", *results, "--images", visits["early"], visits["late"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"new": 0, "gone": 1, "grown": 0, "shrunk": 0, "stable": 1, "not_compared": 0}
    assert (found["gone"][0]["target"], found["pairs"][0]["target"]) == ("cyst", "spleen")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"version": 2}, "version 2"),
        ({"lesion_min_mm": float("nan")}, "damaged"),
        ({"lesion_min_mm": float("inf")}, "damaged"),
        ({"lesion_min_ml": -1}, "damaged"),
        ({"targets": [{"value": "abc", "name": "cyst"}]}, "no segment number"),
        ({"targets": [{"value": None, "name": "cyst"}]}, "no segment number"),
        ({"targets": [{"value": 1}]}, "damaged"),
    ],
)
def test_lists_that_were_changed_by_hand_are_refused_in_one_line(
    visits: dict[str, Path], tmp_path: Path, capsys: Any, changes: dict[str, Any], part: str
) -> None:
    early, late = _measured(visits, tmp_path)
    capsys.readouterr()
    early.write_text(json.dumps(json.loads(early.read_text()) | changes))
    assert _run("compare", early, late) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_names_that_are_numbers_are_names(visits: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    both = _measured(visits, tmp_path)
    capsys.readouterr()
    for file in both:
        record = json.loads(file.read_text())
        record["targets"][0]["name"] = 7
        file.write_text(json.dumps(record))
    assert _run("compare", *both) == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["target"] == "7"


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
