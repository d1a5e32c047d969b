from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boltzformer_monai.data.planes import extract_slices, slices_to_volume
from boltzformer_monai.data.slices.reader import SliceReader, read_mask, read_png
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.data.windows import MRPercentiles, Window
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.io.volume import Volume
from tests.data.slice_cases import AFFINE, add, make_volume, one_volume


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return one_volume(tmp_path / "set")


def test_what_is_written_is_read_back(root: Path):
    reader = SliceReader(root)
    assert reader.name == "unit"
    assert reader.targets == ["liver", "right kidney", "spleen", "viscera"]
    assert len(reader.rows) == 6 * 4
    row = reader.rows[3 * 4 + 2]
    assert (row.target, row.label_values, row.slice_index, row.volume) == ("viscera", (1, 2), 3, "case1")
    assert (row.modality, row.site, row.plane, row.split) == ("CT", "abdomen", "axial", "train")
    assert row.spacing == pytest.approx((0.9, 0.8, 5.0))
    assert row.window == Window(40, 400)
    assert row.prompts[0] == "viscera in abdominal CT"
    assert row.area_fraction == pytest.approx((9 + 4) / 120)
    assert row.present


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_pictures_and_masks_are_the_volume(tmp_path: Path, plane: str):
    image, label = make_volume()
    add(SliceWriter(tmp_path), plane=plane, window=Window(0, 900))
    reader = SliceReader(tmp_path)
    rows = reader.select(targets=["liver"])
    grey = np.stack([read_png(row.image) for row in rows])
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(slices_to_volume(grey, image, plane), Window(0, 900).apply(image.array))
    masks = np.stack([read_mask(row) for row in rows])
    np.testing.assert_array_equal(slices_to_volume(masks, image, plane), label.array == 1)
    assert [row.area_fraction for row in rows] == pytest.approx(list(masks.mean(axis=(1, 2))), rel=1e-6)


def test_a_composite_masks_all_its_values(root: Path):
    row = SliceReader(root).select(targets=["viscera"])[3]
    np.testing.assert_array_equal(read_mask(row), np.isin(read_png(row.label), [1, 2]))
    assert read_mask(row).sum() == 13


def test_the_description_rebuilds_the_grid(root: Path):
    image, _ = make_volume()
    entry = SliceReader(root).volumes["case1"]
    assert tuple(entry["shape"]) == image.shape
    np.testing.assert_array_equal(entry["affine"], image.affine)
    assert entry["targets"] == {"liver": "1", "right kidney": "2", "viscera": "1+2", "spleen": "9"}
    assert (entry["slices"], entry["complete"], entry["plane"]) == (6, True, "axial")


def test_a_label_in_another_axis_order_is_brought_to_the_image(tmp_path: Path):
    _, label = make_volume()
    add(SliceWriter(tmp_path / "a"))
    add(SliceWriter(tmp_path / "b"), label=label.reoriented("SPR"))
    for mine, other in zip(SliceReader(tmp_path / "a").rows, SliceReader(tmp_path / "b").rows, strict=True):
        np.testing.assert_array_equal(read_mask(mine), read_mask(other))


def test_without_a_label_there_is_a_row_per_slice(tmp_path: Path):
    add(SliceWriter(tmp_path), label=None, labels=None)
    rows = SliceReader(tmp_path).rows
    assert [row.slice_index for row in rows] == list(range(6))
    assert {(row.target, row.label, row.label_values, row.prompts, row.present) for row in rows} == {
        ("", None, (), (), False)
    }
    with pytest.raises(DatasetError, match="no label"):
        read_mask(rows[0])


def test_large_label_values_and_mr(tmp_path: Path):
    image, label = make_volume("MR")
    big = Volume(label.array.astype(np.uint16) * 700, AFFINE)
    add(SliceWriter(tmp_path), image=image, label=big, labels={700: "liver", 1400: "spleen"}, site="abdomen")
    row = SliceReader(tmp_path).select(targets=["spleen"], present=True)[0]
    assert row.window == MRPercentiles()
    assert read_png(row.label).dtype == np.uint16
    assert read_mask(row).sum() == 4
    np.testing.assert_array_equal(
        read_png(row.image), extract_slices(Volume(MRPercentiles().apply(image.array), AFFINE), "axial")[3]
    )


def test_select(root: Path):
    reader = SliceReader(root)
    assert {row.target for row in reader.select(targets=["liver", "spleen"])} == {"liver", "spleen"}
    assert [row.slice_index for row in reader.select(targets=["liver"], present=True)] == [1, 2, 3]
    assert len(reader.select(split="train")) == 24
    assert reader.select(split="val") == []
    for wrong in ({"split": "validation"}, {"targets": ["lung"]}, {"volume": "nobody"}):
        with pytest.raises(DatasetError):
            reader.select(**wrong)


def _edit_manifest(root: Path, column: str, value: str | None) -> None:
    path = root / "manifest.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if value is None:
            del row[column]
        else:
            row[column] = value
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("prompts", None, "lacks the column prompts"),
        ("image", "images/gone.png", "images/gone.png is missing"),
        ("image", "../../etc/passwd", "does not lie in"),
        ("image", "/etc/passwd", "does not lie in"),
        ("label", "labels/gone.png", "labels/gone.png is missing"),
        ("value", "zero", "label value"),
        ("value", "", "needs a label, a value and prompts"),
        ("prompts", "liver", "slice volume 'case1' again"),
        ("prompts", "[]", "needs a label, a value and prompts"),
        ("window", "[1]", "not a JSON object"),
        ("window", '{"kind":"hu","level":1,"width":0}', "a window"),
        ("spacing", "1x1", "slice volume"),
        ("spacing", "1x0x1", "not positive"),
        ("area_fraction", "1.5", "not between 0 and 1"),
        ("slice_index", "a", "slice volume"),
        ("split", "holdout", "split 'holdout'"),
        ("volume", "other", "not in dataset.json"),
    ],
)
def test_a_damaged_manifest_is_one_clear_line(root: Path, column: str, value: str | None, match: str):
    _edit_manifest(root, column, value)
    with pytest.raises(DatasetError, match=match) as error:
        SliceReader(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "cannot be read"),
        ("[]", "not the description"),
        ('{"format": "other"}', "not the description"),
        ('{"format": "boltzformer-slices", "version": 1}', "into a new folder"),
        ('{"format": "boltzformer-slices", "version": 99}', "version 99.*update this package"),
        ('{"format": "boltzformer-slices", "version": 2, "name": "x", "volumes": []}', "damaged"),
        ('{"format": "boltzformer-slices", "version": 2, "name": "x", "volumes": {"a": {}}}', "lacks patient"),
    ],
)
def test_a_damaged_description_is_one_clear_line(root: Path, content: str, match: str):
    (root / "dataset.json").write_text(content)
    for open_it in (SliceReader, SliceWriter):
        with pytest.raises(DatasetError, match=match):
            open_it(root)


def test_missing_parts_are_named(root: Path, tmp_path: Path):
    with pytest.raises(DatasetError, match="no such folder"):
        SliceReader(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"has no dataset\.json"):
        SliceReader(tmp_path / "empty")
    (root / "manifest.csv").unlink()
    with pytest.raises(DatasetError, match=r"manifest\.csv: cannot be read"):
        SliceReader(root)


def test_a_damaged_picture_is_named(root: Path):
    row = SliceReader(root).rows[0]
    row.image.write_bytes(row.image.read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"case1_axial_0000\.png: cannot be read"):
        read_png(row.image)
    Image.new("RGB", (4, 4)).save(row.image)
    with pytest.raises(DatasetError, match="grey"):
        read_png(row.image)
