"""A labels.json over an annotation that carries names of its own: nothing is renamed or missing without a word."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from boltzformer_monai.cli.slice import main
from boltzformer_monai.data.slices.reader import SliceReader
from tests.io.test_segmentation import segment, write_nrrd
from tests.slicing.scan_files import write_image

FIELDS = segment(0, "Liver", 1) | segment(1, "Segment_2", 2) | segment(2, "left kidney", 3) | segment(3, "aorta", 4)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    image = write_image(tmp_path / "scan.nii.gz")
    array = np.zeros((10, 8, 4), np.uint8)
    array[1, 1:3], array[3, 1:3], array[5, 1:3] = 1, 2, 3  # 4 is listed, and not drawn
    label = write_nrrd(tmp_path / "drawn.seg.nrrd", array, nibabel.load(image).affine, FIELDS)
    return ["--image", str(image), "--label", str(label), "--output", str(tmp_path / "out"), "--modality", "CT"]


def named(folder: Path, **labels: str) -> list[str]:
    path = folder / "labels.json"
    path.write_text(json.dumps({"labels": {number.lstrip("s"): name for number, name in labels.items()}}))
    return ["--labels-json", str(path)]


def test_other_names_are_told(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*command, *named(tmp_path, s1="spleen", s2="heart", s3="Kidney, left", s4="aorta")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "in the file" in line]
    assert len(lines) == 1
    assert 'drawn.seg.nrrd: segment 1 is "liver" in the file, named "spleen" here' in lines[0]
    assert SliceReader(tmp_path / "out").targets == ["aorta", "heart", "left kidney", "spleen"]


def test_a_segment_that_the_file_lacks(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = named(tmp_path, s1="liver", s9="spleen")
    assert main([*command, *names]) == 2
    assert 'has no segment 9 ("spleen"; segments there: 1, 2, 3, 4)' in capsys.readouterr().err
    assert main([*command, *names, "--allow-missing"]) == 0
    assert "spleen" in SliceReader(tmp_path / "out").targets


def test_a_segmentation_is_no_scan(command: list[str], capsys: pytest.CaptureFixture[str]):
    command[1] = command.pop(3)
    command.pop(2)
    assert main(command) == 2
    assert "is a segmentation, not a scan" in capsys.readouterr().err
