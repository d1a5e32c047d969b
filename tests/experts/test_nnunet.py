"""A slice dataset in nnU-Net's raw layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.volume import Volume
from tests.experts.cases import SCANS

NAMES = [f"hippocampus_{number:03d}" for number in range(1, SCANS + 1)]


def test_original_scans_with_the_same_split(task: Path, slices: Path, tmp_path: Path) -> None:
    command = ["export-dataset", "--to", "nnunet", "--input", str(slices), "--output", str(tmp_path), "--number", "4"]
    assert main([*command, "--recipe", "msd", "--scans", str(task)]) == 0
    (folder,) = tmp_path.iterdir()
    assert folder.name == "Dataset004_Slices"
    content = json.loads((folder / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "MRI"}
    assert content["labels"] == {"background": 0, "anterior hippocampus": 1, "posterior hippocampus": 2}
    assert (content["numTraining"], content["file_ending"]) == (SCANS, ".nii.gz")
    splits = {row.volume: row.split for row in SliceReader(slices).rows}
    folds = json.loads((folder / "splits_final.json").read_text())
    assert folds == [{part: [name for name in NAMES if splits[name] == part] for part in ("train", "val")}]
    for name in NAMES:
        image, scan = (
            read_volume(path, modality="MR")
            for path in (folder / "imagesTr" / f"{name}_0000.nii.gz", task / "imagesTr" / f"{name}.nii.gz")
        )
        np.testing.assert_array_equal(image.array, scan.array)
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-6)
        label, truth = (read_label_map(place / "labelsTr" / f"{name}.nii.gz").array for place in (folder, task))
        np.testing.assert_array_equal(label, truth)


def test_slices_as_volumes_per_target_and_folds(slices: Path, task: Path, tmp_path: Path) -> None:
    command = ["export-dataset", "--to", "nnunet", "--input", str(slices), "--output", str(tmp_path)]
    assert main([*command, "--per-target", "--folds", "2"]) == 0
    folders = sorted(tmp_path.iterdir())
    assert [folder.name for folder in folders] == ["Dataset001_AnteriorHippocampus", "Dataset002_PosteriorHippocampus"]
    for value, folder in enumerate(folders, start=1):
        content = json.loads((folder / "dataset.json").read_text())
        assert list(content["labels"].values()) == [0, 1]
        assert content["channel_names"] == {"0": "8-bit MRI"}
        folds = json.loads((folder / "splits_final.json").read_text())
        assert len(folds) == 2
        assert sorted(folds[0]["val"] + folds[1]["val"]) == NAMES
        assert sorted(folds[0]["train"]) == sorted(folds[1]["val"])
        truth = read_label_map(task / "labelsTr" / f"{NAMES[0]}.nii.gz").array
        found = read_label_map(folder / "labelsTr" / f"{NAMES[0]}.nii.gz").array
        np.testing.assert_array_equal(found, truth == value)
    assert main([*command, "--per-target"]) == 0  # replaces its own


@pytest.fixture
def overlapping(tmp_path: Path) -> Path:
    """Two kidneys and both as one; the second scan is for testing and lacks one of them."""
    root = tmp_path / "slices"
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    values = np.zeros((12, 12, 3), np.uint8)
    values[2:5, 2:5], values[7:9, 7:9] = 1, 2
    with SliceWriter(root, name="kidneys") as writer:
        for name, split, labels in (
            ("a", "train", {1: "left kidney", 2: "right kidney", "1+2": "kidney"}),
            ("b", "test", {1: "left kidney", 2: "right kidney"}),
        ):
            writer.add_volume(
                Volume(np.zeros(values.shape, np.float32), affine, "CT"), Volume(values, affine), labels,
                volume_id=name, patient=name, site="abdomen", split=split,
            )  # fmt: skip
    return root


def test_what_one_label_map_cannot_hold_is_refused(
    overlapping: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export-dataset", "--to", "nnunet", "--input", str(overlapping), "--output", str(tmp_path / "raw")]
    assert main(command) == 2
    assert (
        "overlap in a, and a label map has one value per voxel; export one dataset per target"
        in capsys.readouterr().err
    )
    both = ["--target", "left kidney", "--target", "kidney"]
    assert main([*command, *both]) == 2
    assert main([*command, "--target", "kidney"]) == 2
    assert "b does not annotate kidney, and nnU-Net would take it for absent" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()
    assert main([*command, *["--target", "left kidney"] * 2, "--target", "right kidney"]) == 0
    folder = tmp_path / "raw" / "Dataset001_Kidneys"
    assert [path.name for path in (folder / "imagesTs").iterdir()] == ["b_0000.nii.gz"]
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "left kidney": 1, "right kidney": 2}
    assert json.loads((folder / "splits_final.json").read_text()) == [{"train": ["a"], "val": []}]
    (folder / "dataset.json").write_text("{}")
    assert main([*command, "--target", "left kidney", "--target", "right kidney"]) == 2
    assert "exists and is no export of this command" in capsys.readouterr().err
    assert main([*command, "--per-target", "--number", "998"]) == 2
    assert main([*command, "--split-as", "val=test"]) == 2
