"""Pictures in BiomedParse's layout as cases; the way back is in test_export_biomedparse."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from boltzformer_monai.data.planes import extract_slices
from boltzformer_monai.data.slices.reader import SliceReader, read_mask, read_png
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.data.windows import StoredGrey
from boltzformer_monai.errors import ConfigError, DatasetError, VolumeError
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.slicing.biomedparse_names import (
    MARKER_FILE,
    PictureName,
    mask_name,
    parse_picture_name,
    parse_words,
)
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.recipes import load_recipe

biomedparse = load_recipe("biomedparse")

SIZE = (12, 16)  # rows, columns: not square, so that an exchange is seen
PIXELS = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + height, left : left + width] = 255
    return mask


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two patients for training, one for testing, in both orders of the name, and pictures that are not for us."""
    folder = tmp_path / "amos22"
    save(folder / "train" / "amos_0018_63_CT_abdomen.png", PIXELS)
    save(folder / "train" / "amos_0018_64_CT_abdomen.png", PIXELS[::-1], "L")
    save(folder / "train" / "case_7_3_brain_MRI-FLAIR.png", PIXELS)
    save(folder / "test" / "amos_0541_9_MRI_abdomen.png", PIXELS)
    save(folder / "test" / "covid_1585_X-Ray_chest.png", PIXELS)
    masks = folder / "train_mask"
    save(masks / "amos_0018_63_CT_abdomen_right+kidney.png", box(2, 3, 4, 2))
    save(masks / "amos_0018_63_CT_abdomen_kidney.png", box(2, 3, 4, 9), "L")
    save(masks / "amos_0018_63_CT_abdomen_liver.png", box(5, 4, 3, 1) // 255)
    save(masks / "case_7_3_brain_MRI-FLAIR_glioma.png", box(0, 0, 1, 1), "1")
    save(folder / "test_mask" / "amos_0541_9_MRI_abdomen_liver.png", box(0, 0, 2, 2))
    return folder


def listed(folder: Path, **options: object) -> dict[str, Case]:
    return {case.volume_id: case for case in pickle.loads(pickle.dumps(biomedparse(folder, **options)))}


def test_what_is_listed(pictures: Path, caplog: pytest.LogCaptureFixture):
    cases = listed(pictures)
    facts = {name: (case.patient, case.modality, case.site, case.split) for name, case in cases.items()}
    assert facts == {
        "amos_0018_63_CT_abdomen": ("amos_0018", "CT", "abdomen", None),
        "amos_0018_64_CT_abdomen": ("amos_0018", "CT", "abdomen", None),
        "case_7_3_brain_MRI-FLAIR": ("case_7", "MR", "brain", None),
        "amos_0541_9_MRI_abdomen": ("amos_0541", "MR", "abdomen", "test"),
    }
    assert {case.window for case in cases.values()} == {StoredGrey()}
    assert "1 images are left out: their names state neither CT nor MR" in caplog.text
    assert set(listed(pictures, modality="MR", site="head")) == {"case_7_3_brain_MRI-FLAIR", "amos_0541_9_MRI_abdomen"}


@pytest.mark.parametrize("name", ["amos_0018_63_CT_abdomen", "amos_0018_64_CT_abdomen"])
def test_the_axial_slice_is_the_picture(pictures: Path, name: str):
    case = listed(pictures)[name]
    image = case.read_image()
    assert (image.shape, image.spacing, image.modality) == ((16, 12, 1), (1, 1, 1), "CT")
    shown = case.window.apply(extract_slices(image, "axial"))
    np.testing.assert_array_equal(shown[0], np.array(Image.open(case.image).convert("L")))


def test_overlapping_masks(pictures: Path):
    case = listed(pictures)["amos_0018_63_CT_abdomen"]
    image = case.read_image()
    drawn = case.annotation.draw_on(image)
    slices = extract_slices(reorient_label(drawn.volume, image), "axial")[0]
    wanted = {"right kidney": box(2, 3, 4, 2), "kidney": box(2, 3, 4, 9), "liver": box(5, 4, 3, 1)}
    assert set(drawn.names.values()) == set(wanted)
    for value, name in drawn.names.items():
        np.testing.assert_array_equal(np.isin(slices, [int(part) for part in value.split("+")]), wanted[name] > 0)
    assert len(case.annotation.files()) == 3
    assert listed(pictures)["amos_0018_64_CT_abdomen"].annotation is None


def test_pictures_become_slices_of_the_same_pixels(pictures: Path, tmp_path: Path):
    reader = sliced(pictures, tmp_path / "out")
    (row,) = reader.select(targets=["kidney"])
    np.testing.assert_array_equal(read_png(row.image), PIXELS)
    np.testing.assert_array_equal(read_mask(row), box(2, 3, 4, 9) > 0)
    assert row.prompts[0] == "kidney in abdominal CT"


def sliced(folder: Path, output: Path) -> SliceReader:
    with SliceWriter(output) as writer:
        for case in listed(folder).values():
            image = case.read_image()
            drawn = case.annotation.draw_on(image) if case.annotation else None
            writer.add_volume(
                image,
                drawn.volume if drawn else None,
                drawn.names if drawn else None,
                volume_id=case.volume_id,
                patient=case.patient,
                site=case.site,
                split=case.split,
                window=case.window,
            )
    return SliceReader(output)


def test_patients_by_a_pattern_or_all_one(pictures: Path, caplog: pytest.LogCaptureFixture):
    patients = {case.patient for case in listed(pictures, patient_pattern=r"_(\d+)_\d+$").values()}
    assert patients == {"0018", "7", "0541"}
    for pattern, match in ((r"(", "no regular expression|not a regular"), (r"\d", "no group"), ("x(y)", "no patient")):
        with pytest.raises(ConfigError, match=match):
            listed(pictures, patient_pattern=pattern)
    listed(pictures, patient_pattern="(.)")
    assert "2 patients occur in train and in test" not in caplog.text
    assert "1 patients occur in train and in test" in caplog.text
    for path in (pictures / "train").glob("case*"):
        path.unlink()
    listed(pictures)
    assert "all training images count as one patient" in caplog.text


def test_ids_are_safe_short_and_unlike(tmp_path: Path):
    for part, stem in (("train", "a_1"), ("test", "a_1"), ("train", "ä b.c_1"), ("train", "x" * 150 + "_1")):
        save(tmp_path / part / f"{stem}_CT_abdomen.png", PIXELS)
    cases = biomedparse(tmp_path)
    ids = [case.volume_id for case in cases]
    assert len(set(ids)) == 4
    assert all(len(name) <= 100 and name.isascii() and " " not in name for name in ids)
    assert {case.volume_id for case in biomedparse(tmp_path)} == set(ids)


def test_pictures_that_cannot_be_used_fail_one_by_one(pictures: Path, caplog: pytest.LogCaptureFixture):
    colour = np.zeros((*SIZE, 3), np.uint8)
    colour[..., 0] = 200
    Image.fromarray(colour).save(pictures / "train" / "amos_0018_64_CT_abdomen.png")
    Image.fromarray(PIXELS.astype(np.uint16)).save(pictures / "train" / "case_7_3_brain_MRI-FLAIR.png")
    broken = pictures / "test" / "amos_0541_9_MRI_abdomen.png"
    broken.write_bytes(broken.read_bytes()[:100])
    save(pictures / "train_mask" / "amos_0018_63_CT_abdomen_spleen.png", np.zeros((5, 5), np.uint8))
    save(pictures / "train_mask" / "nobody_1_CT_abdomen_spleen.png", box(0, 0, 1, 1))
    cases = listed(pictures)
    assert "1 images are missing that have masks (nobody_1_CT_abdomen" in caplog.text
    for name, match in (
        ("amos_0018_64_CT_abdomen", "colour image"),
        ("case_7_3_brain_MRI-FLAIR", "not 8-bit grey"),
        ("amos_0541_9_MRI_abdomen", "cannot be read as a PNG image"),
    ):
        with pytest.raises(VolumeError, match=match):
            cases[name].read_image()
    case = cases["amos_0018_63_CT_abdomen"]
    with pytest.raises(VolumeError, match=r"spleen\.png: has 5x5 pixels, its image 16x12"):
        case.annotation.draw_on(case.read_image())


def test_nothing_found_is_one_line(tmp_path: Path, pictures: Path):
    with pytest.raises(DatasetError, match="looked for train/ and test/NAME_MODALITY_SITE.png"):
        biomedparse(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no channels"):
        biomedparse(pictures, channel=1)
    (pictures / MARKER_FILE).write_text("{}")
    with pytest.raises(DatasetError, match=MARKER_FILE):
        biomedparse(pictures)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("amos_0018_63_CT_abdomen", ("amos_0018_63", "CT", "abdomen")),
        ("x_abdomen_CT", ("x", "CT", "abdomen")),
        ("TCGA_8_MRI-FLAIR_brain", ("TCGA_8", "MR", "brain")),
        ("p_T1_brain", ("p", "MR", "brain")),
        ("p_MRI-T1-Gd_brain", ("p", "MR", "brain")),
        ("p_CT_chest+and+abdomen", ("p", "CT", "chest and abdomen")),
        ("p_CT_unknown", ("p", "CT", "")),
        ("28DME_OCT_retinal", None),
        ("covid_1585_X-Ray_chest", None),
        ("CT_abdomen", None),
        ("_CT_abdomen", None),
    ],
)
def test_names(stem: str, expected: tuple[str, str, str] | None):
    found = parse_picture_name(stem)
    assert (found and (found.name, found.modality, found.site)) == expected


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).map(lambda text: " ".join(text.split())),
    st.sampled_from(["CT", "MR"]),
    st.sampled_from(["", "abdomen", "chest and abdomen"]),
)
def test_any_target_survives_its_file_name(target: str, modality: str, site: str):
    name = PictureName("a_0001", modality, site)
    file = mask_name(name.stem, target)
    assert not set('/\\\0:*?"<>|\n ') & set(file)
    stem, _, words = file.removesuffix(".png").rpartition("_")
    assert parse_words(words) == target.strip()
    assert parse_picture_name(stem) == name
