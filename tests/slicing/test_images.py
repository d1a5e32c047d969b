"""Folders of images with masks: natural images, and exported slices without a header."""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boltzformer_monai.cli import main
from boltzformer_monai.data.planes import extract_slices
from boltzformer_monai.data.slices.reader import SliceReader, read_mask, read_png
from boltzformer_monai.data.windows import StoredGrey
from boltzformer_monai.errors import BoltzFormerError, VolumeError
from boltzformer_monai.evaluation.detection import read_objects_csv
from boltzformer_monai.io.read import read_label_map
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.recipes import load_recipe
from boltzformer_monai.studies.scores import rows_of_evaluation

images = load_recipe("images")
RNG = np.random.default_rng(0)


def grey(height: int = 37, width: int = 51) -> np.ndarray:
    return RNG.integers(0, 200, (height, width)).astype(np.uint8)


def square(shape: tuple[int, ...], top: int, left: int, edge: int = 3, value: int = 255) -> np.ndarray:
    mask = np.zeros(shape[:2], np.uint8)
    mask[top : top + edge, left : left + edge] = value
    return mask


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, quality=95)
    return path


def add(folder: Path, name: str, pixels: np.ndarray, mask: np.ndarray | None, ending: str = ".png") -> None:
    save(folder / "images" / f"{name}{ending}", pixels)
    if mask is not None:
        save(folder / "masks" / f"{name}{ending}", mask)


def listed(folder: Path, **options: object) -> dict[str, Case]:
    return {case.volume_id: case for case in pickle.loads(pickle.dumps(images(folder, **options)))}


def drawn(case: Case) -> dict[str, np.ndarray]:
    image = case.read_image()
    assert case.annotation is not None
    found = case.annotation.draw_on(image)
    label = extract_slices(found.volume, "axial")[0]
    return {name: np.isin(label, [int(part) for part in value.split("+")]) for value, name in found.names.items()}


def test_images_and_masks_of_one_target(tmp_path: Path) -> None:
    pixels = grey()
    add(tmp_path, "105006", pixels, square(pixels.shape, 4, 30))
    add(tmp_path, "105_b", pixels[::-1], square(pixels.shape, 0, 0, edge=0))
    cases = listed(tmp_path, target="Small_Target", patient_pattern=r"^(\d{3})")
    facts = {name: (each.patient, each.modality, each.site, each.split) for name, each in cases.items()}
    assert facts == {"105006": ("105", "other", "", None), "105_b": ("105", "other", "", None)}
    case = cases["105006"]
    image = case.read_image()
    assert (image.shape, image.modality, image.in_mm, case.window) == ((51, 37, 1), "other", False, StoredGrey())
    np.testing.assert_array_equal(extract_slices(image, "axial")[0], pixels)
    np.testing.assert_array_equal(drawn(case)["small target"], square(pixels.shape, 4, 30) > 0)
    assert not drawn(cases["105_b"])["small target"].any()


def test_every_image_is_a_patient_without_a_pattern_and_the_pattern_is_found_anywhere(tmp_path: Path) -> None:
    for name in ("10026_60", "flipped_10026_60", "mirrored_10043_1"):
        add(tmp_path, name, grey(), grey())
    assert [case.patient for case in images(tmp_path, target="x")] == [
        "10026_60",
        "flipped_10026_60",
        "mirrored_10043_1",
    ]
    patients = [case.patient for case in images(tmp_path, target="x", patient_pattern=r"(\d+)_")]
    assert patients == ["10026", "10026", "10043"]


def test_masks_in_jpeg_files_are_cut_at_the_threshold_of_their_largest_colour(tmp_path: Path) -> None:
    mask = np.zeros((40, 48, 3), np.uint8)
    mask[10:20, 8:24] = (0, 250, 0)
    add(tmp_path, "a", grey(40, 48), mask, ending=".jpg")
    (case,) = images(tmp_path, target="lesion")
    found = drawn(case)["lesion"]
    np.testing.assert_array_equal(found, mask[:, :, 1] > 0)
    noisy = np.array(Image.open(tmp_path / "masks" / "a.jpg"))
    assert (noisy.max(axis=2) > 0).sum() > found.sum(), "the file's noise lies around the object"


def test_masks_of_0_and_1_are_refused_and_read_with_another_threshold(tmp_path: Path) -> None:
    pixels = grey()
    add(tmp_path, "a", pixels, square(pixels.shape, 1, 1, value=1))
    (case,) = images(tmp_path, target="lesion")
    with pytest.raises(VolumeError, match="no value of this mask is above the threshold 127, the largest is 1"):
        drawn(case)
    (case,) = images(tmp_path, target="lesion", threshold="0")
    assert drawn(case)["lesion"].sum() == 9


def test_folders_of_masks_name_targets_that_may_overlap(tmp_path: Path) -> None:
    pixels = grey()
    add(tmp_path, "a", pixels, None)
    wanted = {"big ship": square(pixels.shape, 2, 2, 8), "small ship": square(pixels.shape, 6, 6, 8)}
    for name, mask in wanted.items():
        save(tmp_path / "masks" / name.replace(" ", "_") / "a.png", mask)
    (case,) = images(tmp_path)
    found = drawn(case)
    assert set(found) == set(wanted)
    for name, mask in wanted.items():
        np.testing.assert_array_equal(found[name], mask > 0)


def test_folders_of_splits_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "val", "test"):
        add(tmp_path / split, "1_1", grey(), grey())
    cases = images(tmp_path, target="x")
    assert [(case.volume_id, case.split) for case in cases] == [
        ("train/1_1", "train"),
        ("val/1_1", "val"),
        ("test/1_1", "test"),
    ]
    assert len({case.patient for case in cases}) == 3
    assert not caplog.records
    images(tmp_path, target="x", patient_pattern=r"(\d)_")
    assert "1 patients occur in several splits; all their images are in the one furthest from training" in caplog.text
    for path in (tmp_path / "val").rglob("*.png"):
        path.unlink()
    (tmp_path / "val" / "images").rmdir()
    assert [case.split for case in images(tmp_path, target="x")] == [None, "test"]


def test_what_belongs_to_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path, "a", grey(), grey())
    save(tmp_path / "images" / "b.png", grey())
    save(tmp_path / "masks" / "c.png", grey())
    with caplog.at_level(logging.WARNING):
        cases = listed(tmp_path, target="x")
    assert cases["b"].annotation is None
    assert "1 masks are of no image (c, …)" in caplog.text
    assert "1 of 2 images have no mask; their slices have no targets" in caplog.text


def test_colours_are_luminance_but_not_in_ct(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    add(tmp_path, "a", colours, square(colours.shape, 2, 2))
    (case,) = images(tmp_path, target="x", modality="infrared")
    np.testing.assert_array_equal(
        extract_slices(case.read_image(), "axial")[0], np.array(Image.fromarray(colours).convert("L"))
    )
    (case,) = images(tmp_path, target="x", modality="CT")
    with pytest.raises(VolumeError, match="is a colour image"):
        case.read_image()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ((), {"target": "x"}, "needs images/, or images/ in train/, val/ and test/"),
        (("images/a.png", "train/images/a.png"), {"target": "x"}, "it has both, and it is unclear which counts"),
        (("images/a.txt",), {"target": "x"}, "holds no PNG or JPEG images in images/"),
        (("images/a.png", "masks/a.png"), {}, "nothing says what these masks show; add --option target=NAME"),
        (("images/a.png", "masks/a.png", "masks/ship/a.png"), {}, "holds masks and folders of masks"),
        (("images/a.png", "masks/ship/a.png"), {"target": "x"}, "its folders name the targets"),
        (("images/a.png", "images/a.jpg"), {"target": "x"}, "have one name; rename one, and its mask"),
        (("images/a.png", "masks/a_ship/a.png", "masks/a ship/a.png"), {}, "are masks of one image and target"),
        (("images/a.png",), {"target": "x", "threshold": "255"}, "threshold must be a whole number from 0 to 254"),
        (("images/a.png",), {"target": "x", "patient_pattern": "a"}, "has no group"),
        (("images/a.png",), {"target": "x", "channel": 1}, "leave --channel out"),
    ],
)
def test_layouts_and_options_that_cannot_be_used(
    tmp_path: Path, names: tuple[str, ...], options: dict[str, object], message: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BoltzFormerError) as error:
        images(tmp_path, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_shared_small_objects_are_listed(shared_data: Path) -> None:
    """Infrared targets in folders of splits, and slices of CT and MR whose names hold the patient."""
    folder = shared_data / "small"
    sirst = images(folder / "sirst", target="small target")
    assert Counter(case.split for case in sirst) == {"train": 256, "val": 85}
    for name, pattern, count, patients in (
        ("kidney_tumor", r"(\d+)_", 60, 33),
        ("hepatic_vessel", r"(\d+)_", 20, 7),
        ("ms_lesion_flair", r"^(\d{3})", 28, 20),
    ):
        cases = images(folder / name, target="x", modality="CT", patient_pattern=pattern)
        assert (len(cases), len({case.patient for case in cases})) == (count, patients)
        found = drawn(cases[0])["x"]
        assert 0 < found.mean() < 0.1


def test_from_images_to_a_segmented_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slices, check, training, evaluation and segmentation of images smaller than the network, of odd sizes."""
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        for number in range(count):
            pixels = grey(31 + 4 * number, 45)
            pixels[5:9, 20:24] = 255
            add(tmp_path / "in" / split, f"{number}", pixels, square(pixels.shape, 5, 20, 4))
    save(tmp_path / "in" / "test" / "masks" / "1.png", np.zeros((35, 45), np.uint8))
    slices, run = tmp_path / "slices", tmp_path / "run"
    recipe = ["--recipe", "images", "--input", str(tmp_path / "in"), "--option", "target=small ship"]
    assert main(["slice", *recipe, "--output", str(slices)]) == 0
    reader = SliceReader(slices)
    assert {row.modality for row in reader.rows} == {"other"}
    assert not any(row.in_mm for row in reader.rows)
    row = next(row for row in reader.select(split="train") if row.present)
    assert row.prompts == ("small ship",)
    assert read_mask(row).sum() == 16
    assert (read_png(row.image)[5:9, 20:24] == 255).all()
    assert main(["check", "--input", str(slices)]) == 0

    small = "{'dim': 16, 'heads': 2, 'hidden': 24, 'queries': 3, 'layers': 3, 'text_width': 16, 'text_layers': 1}"
    train = ["train", "--data", str(slices), "--output", str(run), "--preset", "tiny", "--device", "cpu"]
    sets = ["image_size=64", "batch_size=2", f"network_overrides={small}"]
    assert main([*train, "--epochs", "1", *(part for each in sets for part in ("--set", each))]) == 0
    evaluate = ["evaluate", "--data", str(slices), "--checkpoint", str(run / "model.pt"), "--device", "cpu"]
    assert main([*evaluate, "--output", str(tmp_path / "eval")]) == 0
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["slices"]["by_target"]["small ship"]["present"] == 1
    assert [name for name in metrics["slices"]["strata"] if name.endswith("_mm")] == []
    assert {each.diameter_mm for each in read_objects_csv(tmp_path / "eval" / "objects.csv")} == {None}
    scores = rows_of_evaluation(tmp_path / "eval" / "scores.csv", reader, arm="a", seed=0, fold=None, data="ships")
    assert {each.diameter_mm for each in scores} == {None}
    image, found = tmp_path / "in" / "test" / "images" / "0.png", tmp_path / "found.nii.gz"
    capsys.readouterr()
    segment = ["segment", str(image), "--prompts", "small ship", "--checkpoint", str(run / "model.pt")]
    assert main([*segment, "--output", str(found), "--device", "cpu", "--threshold", "0.05"]) == 0
    assert read_label_map(found).array.shape == (45, 31, 1)
