"""A slice data set as pictures in BiomedParse's layout, and back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boltzformer_monai.cli.export_dataset import export, main
from boltzformer_monai.data.slices.reader import SliceReader, read_mask, read_png
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.data.windows import Window
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.slicing.biomedparse_names import MARKER_FILE
from tests.slicing.test_biomedparse import sliced

ROOT = Path(__file__).resolve().parents[2]

AFFINE = np.diag([-0.8, -0.8, 5.0, 1.0])
TARGETS = {1: "liver", 2: "right kidney", "2+3": "kidney", 3: "vein/artery_1"}


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """A data set with a patient of two volumes for training, one for validation, one for testing."""
    root = tmp_path / "slices"
    draws = np.random.default_rng(1)
    with SliceWriter(root, name="mine") as writer:
        for volume, patient, split in (
            ("case.7", "a", "train"), ("case8", "a", "train"), ("b", "b", "val"), ("c", "c", "test")
        ):  # fmt: skip
            shape = (48, 48, 3) if volume != "c" else (48, 30, 3)
            label = np.zeros(shape, np.uint8)
            label[5:25, 6:20, 1:], label[30:36, 6:18, 1], label[38:44, 6:18, 1] = 1, 2, 3
            image = Volume(draws.normal(40, 60, shape).astype(np.float32), AFFINE, modality="CT")
            writer.add_volume(
                image, Volume(label, AFFINE), TARGETS, volume_id=volume, patient=patient, site="abdomen", split=split,
                window=Window(40, 400),
            )  # fmt: skip
    return root


def areas(reader: SliceReader, **factors: float) -> dict[str, list[float]]:
    """Return target → sorted area fractions, those of a volume multiplied by its factor."""
    found = defaultdict(list)
    for row in reader.rows:
        if row.present:
            found[row.target].append(row.area_fraction * factors.get(row.volume, 1))
    return {target: sorted(values) for target, values in found.items()}


def test_export_then_import_gives_the_same_targets_of_the_same_size(slices: Path, tmp_path: Path):
    written = tmp_path / "export"
    assert export(slices, written, size=96) == (8, 20)
    before, after = SliceReader(slices), sliced(written, tmp_path / "again")
    assert after.targets == before.targets == ["kidney", "liver", "right kidney", "vein/artery 1"]
    # The slices of volume c are 30x48 pixels and got black beside them.
    for target, values in areas(before, c=30 / 48).items():
        assert areas(after)[target] == pytest.approx(values, rel=0.02)
    assert {row.split for row in after.rows if row.volume.startswith("c_")} == {"test"}
    assert {row.split for row in after.rows} == {"train", "val", "test"}
    assert {row.modality for row in after.rows} == {"CT"}
    assert {row.site for row in after.rows} == {"abdomen"}
    # Three patients, as before: the two volumes of one are still together.
    assert len({row.patient for row in after.rows}) == len({row.patient for row in before.rows if row.present}) == 3


def test_what_is_written(slices: Path, tmp_path: Path):
    written = tmp_path / "export"
    export(slices, written, size=96)
    assert sorted(path.name for path in written.iterdir()) == [
        MARKER_FILE, "test", "test.json", "test_mask", "train", "train.json", "train_mask",
    ]  # fmt: skip
    name = "case%2E7_axial_0001_CT_abdomen"
    picture = Image.open(written / "train" / f"{name}.png")
    assert (picture.size, picture.mode) == ((96, 96), "RGB")
    assert sorted(path.name for path in (written / "train_mask").glob(f"{name}_*")) == [
        f"{name}_kidney.png", f"{name}_liver.png", f"{name}_right+kidney.png", f"{name}_vein%2Fartery+1.png",
    ]  # fmt: skip
    mask = np.array(Image.open(written / "train_mask" / f"{name}_liver.png"))
    assert np.unique(mask).tolist() == [0, 255]
    row = SliceReader(slices).select(volume="case.7", targets=["liver"], present=True)[0]
    np.testing.assert_array_equal(mask > 0, read_mask(row).repeat(2, axis=0).repeat(2, axis=1))
    # Slice 0 shows nothing and is left out.
    assert not list(written.glob("*/*_0000_*"))


def test_a_slice_that_is_not_square_lies_in_the_middle(slices: Path, tmp_path: Path):
    export(slices, tmp_path / "export", size=48)
    stem = "c_axial_0001_CT_abdomen"
    grey = np.array(Image.open(tmp_path / "export" / "test" / f"{stem}.png"))[..., 0]
    (row, *_) = SliceReader(slices).select(volume="c", targets=["liver"], present=True)
    np.testing.assert_array_equal(grey[9:39], read_png(row.image))
    assert not grey[:9].any()
    assert not grey[39:].any()


def test_the_tables_name_every_picture_mask_and_prompt(slices: Path, tmp_path: Path):
    export(slices, tmp_path / "export", size=48)
    for part, pictures, masks in (("train", 6, 15), ("test", 2, 5)):
        table = json.loads((tmp_path / "export" / f"{part}.json").read_text())
        assert (len(table["images"]), len(table["annotations"])) == (pictures, masks)
        files = {image["id"]: image["file_name"] for image in table["images"]}
        names = {category["id"]: category["name"] for category in table["categories"]}
        for number, annotation in enumerate(table["annotations"]):
            assert annotation["id"] == annotation["ann_id"] == number
            assert annotation["file_name"] == files[annotation["image_id"]]
            assert (tmp_path / "export" / part / annotation["file_name"]).is_file()
            assert (tmp_path / "export" / f"{part}_mask" / annotation["mask_file"]).is_file()
            texts = [sentence["raw"] for sentence in annotation["sentences"]]
            assert texts[0] == f"{names[annotation['category_id']]} in abdominal CT"
            assert annotation["split"] == part


def test_the_command(slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "deep" / "export"
    command = ["--input", str(slices), "--output", str(output), "--size", "32"]
    assert main([*command, "--split-as", "val=test", "test=none"]) == 0
    assert "6 images, 15 masks" in capsys.readouterr().out
    assert len(list((output / "test").iterdir())) == 2
    # An export of ours is replaced as a whole.
    assert main(command) == 0
    assert len(list((output / "train").iterdir())) == 6
    assert [path.name for path in output.parent.iterdir()] == ["export"]


def test_targets_that_vanish_at_this_size_are_left_out_with_a_word(
    slices: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pictures, masks = export(slices, tmp_path / "export", size=2)
    assert 0 < masks < 20
    lines = [line for line in caplog.messages if "is too small to be seen at 2 pixels" in line]
    assert lines
    assert len({line.split(" is ")[0] for line in lines}) == len(lines)  # one a target, with how often
    assert len(list((tmp_path / "export").glob("*_mask/*.png"))) == masks
    assert len(list((tmp_path / "export" / "train").iterdir())) + len(
        list((tmp_path / "export" / "test").iterdir())
    ) == pictures  # fmt: skip


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--size", "0"], "--size: must be at least 1"),
        (["--split-as", "val"], "takes pairs such as val=test"),
        (["--split-as", "val=dev"], "takes pairs"),
        (["--split-as", "train=none", "val=none", "test=none"], "nothing to export"),
        (["--what"], "--what"),
    ],
)
def test_mistakes_are_one_line(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], match: str
):
    assert main(["--input", str(slices), "--output", str(tmp_path / "export"), *more]) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "export").exists()


def test_other_peoples_folders_are_left_alone(slices: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for output in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(DatasetError, match="is not an export of this command"):
            export(slices, output)
    for output in (slices, slices / "export", slices.parent):
        with pytest.raises(DatasetError, match="lies in the slice dataset, or contains it"):
            export(slices, output)
    with pytest.raises(DatasetError, match="no such folder"):
        export(tmp_path / "nowhere", tmp_path / "export")


def test_an_export_that_fails_leaves_the_older_one(slices: Path, tmp_path: Path):
    output = tmp_path / "export"
    export(slices, output, size=32)
    before = sorted(path.name for path in output.glob("*/*"))
    row = SliceReader(slices).select(split="test", present=True)[-1]
    row.image.write_bytes(b"")
    with pytest.raises(DatasetError, match="cannot be read as PNG"):
        export(slices, output, size=16)
    assert sorted(path.name for path in output.glob("*/*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "slices"]
    # Killed between the two renames: the older export comes back.
    output.rename(tmp_path / ".export.replaced")
    with pytest.raises(DatasetError, match="cannot be read as PNG"):
        export(slices, output, size=16)
    assert sorted(path.name for path in output.glob("*/*")) == before


def test_nothing_heavy_is_imported_before_ctrl_c_is_caught():
    code = "import sys, boltzformer_monai.cli.export_dataset; print({'torch', 'numpy', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
