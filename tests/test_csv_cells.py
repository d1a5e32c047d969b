"""Tables that people open: no cell is a formula, and what we read back is what was written."""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.cli.slice import main
from boltzformer_monai.csv_cells import from_cell, to_cell
from boltzformer_monai.data.slices.format import MANIFEST_FILE
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.evaluation.summary import SliceScore
from boltzformer_monai.evaluation.tables import read_scores_csv, write_scores_csv
from boltzformer_monai.slicing.slice_report import check_mapping
from tests.slicing.folder_cases import write_names
from tests.slicing.scan_files import write_image, write_label

EVIL = (
    "=1+1",
    '=HYPERLINK("http://x","y")',
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\n=1",
    "＝1",
    "'=1",
    "''",
)


def risky(cell: str) -> bool:
    number = re.fullmatch(r"[+-]?[\d.]+([eE][+-]?\d+)?", cell)
    return cell[:1] in tuple("=+-@\t\r\n＝＋－＠") and not number


@pytest.mark.parametrize("text", EVIL)
def test_what_could_be_a_formula_is_text(text: str) -> None:
    assert to_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1.5, 3, "-1.5", "+3", "-1e-07", ".5", "", "liver", "2+3", "images/a.png", None])
def test_numbers_and_other_texts_stay(value: object) -> None:
    assert to_cell(value) == value


def test_random_texts_come_back_and_are_no_formulas() -> None:
    draw = random.Random(0)
    for _ in range(5000):
        text = "".join(draw.choices("=+-@\t\r\n'＝＋\"1,a; ", k=draw.randint(0, 8)))
        cell = to_cell(text)
        assert isinstance(cell, str)
        assert from_cell(cell) == text
        assert not risky(cell)


def test_scores_of_evil_names(tmp_path: Path) -> None:
    scores = [
        SliceScore(f"images/{n}.png", "v", "p", text, f"{text} in CT", 0.25, 4, 3, 2) for n, text in enumerate(EVIL)
    ]
    write_scores_csv(scores, tmp_path / "scores.csv")
    assert read_scores_csv(tmp_path / "scores.csv") == scores
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert not any(risky(cell) for row in rows for cell in row)
    assert rows[1][rows[0].index("area_fraction")] == "0.25"


def test_a_data_set_and_its_private_table(tmp_path: Path) -> None:
    top, out, private = tmp_path / "in", tmp_path / "out", tmp_path / "private.csv"
    write_image(top / "=1+1" / "image.nii.gz")
    write_label(top / "=1+1" / "label.nii.gz", 1, 2)
    write_names(top, {"modality": "CT", "site": "@abdomen", "labels": {"1": "=1+1", "2": "+SUM(A1)"}})
    given = ["--recipe", "folder", "--input", str(top), "--output", str(out), "--mapping", str(private)]
    assert main(given) == 0
    for path in (out / MANIFEST_FILE, private):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert not [cell for row in rows for cell in row if risky(cell)]
    ((_, _, identity, image, status, _),) = check_mapping(private).values()
    assert (identity, image, status) == ("=1+1", str(top / "=1+1" / "image.nii.gz"), "done")
    reader = SliceReader(out)
    (volume,) = reader.volumes.values()
    assert {row.target for row in reader.rows} == set(volume["targets"])
    assert len(volume["targets"]) == 2
    before = (out / MANIFEST_FILE).read_bytes()
    assert main([*given, "--redo"]) == 0
    assert (out / MANIFEST_FILE).read_bytes() == before
    assert np.isfinite([row.area_fraction for row in reader.rows]).all()
