from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.cli.measure import label_names
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.results import write_results
from boltzformer_monai.inferers.run_settings import ModelRecord, RunSettings
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.scan_list import Scan
from tests.inferers.volume_stub import StubResult

AFFINE = np.diag([-0.8, -0.8, 2.0, 1])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A label map with three lesions of two targets, and its scan."""
    array = np.random.default_rng(0).normal(40, 10, (40, 36, 20)).astype(np.float32)
    labels = np.zeros(array.shape, np.uint8)
    labels[5:15, 5:10, 4:8] = 1
    labels[25:28, 25:28, 10] = 1
    labels[30:34, 5:9, 15:17] = 3
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "labels.nii.gz")
    return tmp_path / "labels.nii.gz", tmp_path / "scan.nii.gz"


def _run(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def test_json_and_csv_of_a_label_map(files: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    labels, image = files
    code = _run(
        "measure", labels, "--image", image, "--modality", "CT", "--names", "1=liver lesion", "3==cyst",
        "--json", tmp_path / "out" / "a.json", "--csv", tmp_path / "out" / "a.csv",
    )  # fmt: skip
    assert code == 0
    line = json.loads(capsys.readouterr().out)
    assert line["lesions"] == {"liver lesion": 2, "=cyst": 1}
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert [(each["value"], each["name"]) for each in record["targets"]] == [(1, "liver lesion"), (3, "=cyst")]
    first, second = record["targets"][0]["lesions"]
    array, drawn = (np.asarray(nib.load(path).dataobj) for path in (image, labels))
    assert (first["voxels"], second["voxels"]) == (200, 9)
    assert first["volume_ml"] == pytest.approx(200 * 0.8 * 0.8 * 2 / 1000)
    assert first["mean_hu"] == pytest.approx(array[5:15, 5:10, 4:8].mean(), rel=1e-4)
    assert first["centre_mm"] == pytest.approx([-0.8 * 9.5, -0.8 * 7, 2 * 5.5])
    assert (first["slices"], second["axial_slice"]) == ([4, 7], 10)
    assert record["targets"][0]["voxels"] == (drawn == 1).sum()
    assert first["confidence"] is None
    assert {name: (tmp_path / "out" / path).resolve() for name, path in record["files"].items()} == {
        "labels": labels.resolve(),
        "image": image.resolve(),
    }
    with (tmp_path / "out" / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["number"], row["voxels"]) for row in rows] == [
        ("liver lesion", "1", "200"),
        ("liver lesion", "2", "9"),
        ("'=cyst", "1", "32"),
    ]
    assert float(rows[0]["x_mm"]) == first["centre_mm"][0]
    assert (rows[1]["first_slice"], rows[1]["last_slice"], rows[1]["confidence"]) == ("10", "10", "")


def test_without_json_the_list_is_printed_and_an_unstated_modality_is_told(
    files: tuple[Path, Path], capsys: Any
) -> None:
    labels, image = files
    assert _run("measure", labels, "--image", image, "--lesion-min-ml", "0.05") == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert [(each["name"], len(each["lesions"])) for each in record["targets"]] == [("1", 1), ("3", 0)]
    assert [each["kind"] for each in record["caveats"]] == ["unstated modality"]
    assert "nothing states the modality" in captured.err
    assert record["targets"][0]["lesions"][0]["mean_hu"] is not None
    assert _run("measure", labels, "--image", image, "--modality", "MR") == 0
    assert json.loads(capsys.readouterr().out)["targets"][0]["lesions"][0]["mean_hu"] is None


@pytest.mark.parametrize("ending", [".dcm", ".nrrd"])
def test_what_segment_wrote_is_measured_with_its_names_and_the_same_lesions(
    tmp_path: Path, capsys: Any, ending: str
) -> None:
    image, _ = make_phantom("abdomen", seed=1, size=(36, 32, 5))
    scan = Scan("series", write_phantom_dicom(image, tmp_path / "scan", seed=1))
    grid = read_volume(scan.place)
    masks = {name: np.zeros(grid.shape, bool) for name in ("liver lesion", "spleen")}
    masks["liver lesion"][2:9, 3:8, 1:3] = masks["liver lesion"][20:22, 20, 2] = True
    masks["spleen"][15:20, 5:12, 2:5] = True
    settings = RunSettings(prompts=tuple(masks), ending=ending)
    result: Any = StubResult(grid, masks)
    written = write_results(result, tmp_path / "out", settings, model=ModelRecord(sha256="ab" * 32), scan=scan)
    assert _run("measure", tmp_path / f"out{ending}", "--image", scan.place) == 0
    targets = json.loads(capsys.readouterr().out)["targets"]
    for prompt, target in zip(written["prompts"], targets, strict=True):
        assert (target["name"], target["value"]) == (prompt["prompt"], prompt["label"])
        for expected, found in zip(prompt["lesions"], target["lesions"], strict=True):
            assert found == {**expected, "confidence": None}


@pytest.mark.parametrize("ending", [".dcm", ".nrrd"])
def test_report_as_sr_and_as_page(tmp_path: Path, capsys: Any, ending: str) -> None:
    from highdicom.sr import srread

    image, _ = make_phantom("abdomen", seed=1, size=(36, 32, 5))
    scan = Scan("series", write_phantom_dicom(image, tmp_path / "scan", seed=1))
    grid = read_volume(scan.place)
    masks = {name: np.zeros(grid.shape, bool) for name in ("liver lesion", "spleen")}
    masks["liver lesion"][2:9, 3:8, 1:3] = masks["liver lesion"][20:22, 20, 2] = True
    masks["spleen"][15:20, 5:12, 2:5] = True
    result: Any = StubResult(grid, masks)
    settings = RunSettings(prompts=tuple(masks), ending=ending)
    write_results(result, tmp_path / "out", settings, model=ModelRecord(sha256="ab" * 32), scan=scan)
    call = ["measure", tmp_path / f"out{ending}", "--image", scan.place, "--lesion-min-ml", "0.1"]
    assert _run(*call, "--report", tmp_path / "a.sr.dcm") == 0
    targets = json.loads(capsys.readouterr().out)["targets"]
    content = srread(tmp_path / "a.sr.dcm").content
    groups = [*content.get_volumetric_roi_measurement_groups(), *content.get_image_measurement_groups()]
    volumes = [group.get_measurements()[0].value for group in groups]
    assert volumes == [lesion["volume_ml"] for each in targets for lesion in each["lesions"]]
    assert [group.finding_sites[0].value.meaning for group in groups] == ["Liver"] * (len(groups) - 1) + ["Spleen"]
    # Newer versions of highdicom name images as TID 1501 does.
    kinds = {"Referenced Segment"} if ending == ".dcm" else {"Source", "Source of Measurement"}
    found = {item.name.meaning for group in groups for item in group[0].ContentSequence if item.ValueType == "IMAGE"}
    assert len(found) == 1
    assert found <= kinds
    assert _run(*call, "--report", tmp_path / "a.html", "--json", tmp_path / "a.json") == 0
    page = (tmp_path / "a.html").read_text()
    assert "liver lesion" in page
    assert "Lesions under 0.1 ml are not listed" in page
    assert f"{targets[0]['lesions'][0]['volume_ml']:.3g}" in page
    assert str(tmp_path) not in page


def test_reports_that_cannot_be_written_are_refused(files: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    labels, image = files
    (tmp_path / "folder.html").mkdir()
    for report, part in (
        ("a.dcm", "ends in .sr.dcm or .html"),
        ("a.pdf", "ends in .sr.dcm or .html"),
        (tmp_path / ".html", "ends in .sr.dcm or .html"),
        (tmp_path / "folder.html", "it is a folder"),
        (tmp_path / "none" / "a.html", "there is no folder"),
        (tmp_path / "a.sr.dcm", "is no DICOM"),
    ):
        assert _run("measure", labels, "--image", image, "--report", report) == 2
        error = capsys.readouterr().err
        assert part in error
        assert len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "labels.nii.gz", "scan.nii.gz"]


def test_what_cannot_be_measured_is_refused_in_one_line(files: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    labels, image = files
    for arguments, part in (
        (("--json", "a.txt"), "must end in .json"),
        (("--csv", tmp_path), "must end in .csv"),
        (("--names", "liver"), "VALUE=NAME"),
        (("--lesion-min-mm", "-1"), "must be from 0"),
    ):
        assert _run("measure", labels, "--image", image, *arguments) == 2
        assert part in capsys.readouterr().err
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), AFFINE), other)
    assert _run("measure", labels, "--image", other) == 2
    assert "not on the grid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["abc=liver"], "no segment number"),
        (["1.0=liver"], "no segment number"),
        (["²=liver"], "no segment number"),
        (["1+=liver"], "no segment number"),
        (["0=air"], "background"),
        (["1=liver", "1=spleen"], "two names"),
    ],
)
def test_names_of_what_is_no_label_value_are_refused(
    files: tuple[Path, Path], capsys: Any, names: list[str], part: str
) -> None:
    labels, image = files
    assert _run("measure", labels, "--image", image, "--names", *names) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_targets_of_one_name_are_all_counted_and_a_shortened_report_is_told(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boltzformer_monai.findings import structured_report

    image, _ = make_phantom("abdomen", seed=1, size=(36, 32, 5))
    folder = write_phantom_dicom(image, tmp_path / "scan", seed=1)
    scan = read_volume(folder)
    labels = np.zeros(scan.shape, np.uint8)
    labels[2:4, 2:4, 2], labels[10:12, 10:12, 2], labels[20, 20, 2] = 1, 2, 2
    nib.save(nib.Nifti1Image(labels, scan.affine), tmp_path / "labels.nii.gz")
    call = ["measure", tmp_path / "labels.nii.gz", "--image", folder, "--names", "1=lesion", "2=lesion"]
    call += ["--json", tmp_path / "a.json", "--report", tmp_path / "a.sr.dcm"]
    assert _run(*call) == 0
    assert json.loads(capsys.readouterr().out) == {
        "output": str(tmp_path / "a.json"), "lesions": {"lesion": 3}, "in_doubt": False,
    }  # fmt: skip
    monkeypatch.setattr(structured_report, "MOST", 2)
    assert _run(*call) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["report_note"] == "the DICOM SR lists the 2 largest of 3 lesions"


@pytest.mark.parametrize("prompts", [None, "abc", [{"prompt": "a"}], [{"prompt": "a", "label": "b"}]])
def test_a_damaged_result_beside_a_label_map_names_nothing(
    files: tuple[Path, Path], capsys: Any, prompts: object
) -> None:
    labels, image = files
    manifest = {
        "format": "boltzformer-segmentation", "version": 1,
        "files": [{"name": ".nii.gz", "bytes": labels.stat().st_size}], "prompts": prompts,
    }  # fmt: skip
    (labels.parent / "labels.json").write_text(json.dumps(manifest))
    assert _run("measure", labels, "--image", image, "--modality", "CT") == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["targets"]] == ["1", "3"]


def test_names_beside_are_taken_from_an_unchanged_result_only(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text('{"other": 1}')
    assert label_names(tmp_path / "out.nii.gz", []) == {}
    assert label_names(tmp_path / "out.nii.gz", ["2= a=b "]) == {"2": "a=b"}
    with pytest.raises(ConfigError):
        label_names(tmp_path / "out.nii.gz", ["=a"])
