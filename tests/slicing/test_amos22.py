from __future__ import annotations

import json
from pathlib import Path

import pytest

from boltzformer_monai.data.prompts import normalise_target
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.slicing.recipes import load_recipe
from tests.slicing.scan_files import write_image, write_label

amos22 = load_recipe("amos22")

LABELS = {"0": "background", "1": "spleen", "2": "right kidney", "8": "arota", "9": "postcava", "15": "prostate/uterus"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three training scans (one MR), a validation scan of each kind, a test scan without label."""
    folder = tmp_path / "amos22"
    lists: dict[str, list] = {"training": [], "validation": [], "test": [{"image": "./imagesTs/amos_0002.nii.gz"}]}
    for key, part, number in (
        ("training", "Tr", 1), ("training", "Tr", 500), ("training", "Tr", 507), ("validation", "Va", 8),
        ("validation", "Va", 541),
    ):  # fmt: skip
        name = f"amos_{number:04d}.nii.gz"
        write_image(folder / f"images{part}" / name)
        write_label(folder / f"labels{part}" / name, 1, 2)
        lists[key].append({"image": f"./images{part}/{name}", "label": f"./labels{part}/{name}"})
    description = {"name": "AMOS", "modality": {"0": "CT"}, "labels": LABELS, **lists}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def edit(archive: Path, **changes: object) -> Path:
    path = archive / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return archive


def test_both_modalities_by_number(archive: Path):
    cases = amos22(archive)
    assert {case.volume_id: (case.modality, case.split) for case in cases} == {
        "amos_0001": ("CT", None),
        "amos_0500": ("CT", None),
        "amos_0507": ("MR", None),
        "amos_0008": ("CT", "test"),
        "amos_0541": ("MR", "test"),
    }
    assert {case.site for case in cases} == {"abdomen"}
    assert [case.volume_id for case in amos22(archive, modality="MR")] == ["amos_0507", "amos_0541"]
    assert [case.volume_id for case in amos22(archive, modality="ct", site="belly")] == [
        "amos_0001", "amos_0500", "amos_0008",
    ]  # fmt: skip


def test_names_are_those_of_the_file_spelled_right(archive: Path):
    names = amos22(archive)[0].annotation.names
    assert names["8"] == "aorta"
    assert "0" not in names
    assert [normalise_target(name) for name in names.values()] == [
        "spleen", "right kidney", "aorta", "inferior vena cava", "prostate or uterus",
    ]  # fmt: skip


@pytest.mark.parametrize(("option", "split"), [("val", "val"), ("draw", None)])
def test_the_published_validation_scans_may_become_something_else(archive: Path, option: str, split: str | None):
    assert amos22(archive, validation=option)[-1].split == split
    with pytest.raises(ConfigError, match="validation 'train' is none of test, val, draw"):
        amos22(archive, validation="train")


def test_entries_without_a_label_path_find_it(archive: Path):
    edit(archive, validation=["./imagesVa/amos_0008.nii.gz", {"image": "./imagesVa/amos_0541.nii.gz"}])
    assert [case.annotation.path.name for case in amos22(archive)[3:]] == ["amos_0008.nii.gz", "amos_0541.nii.gz"]


def test_a_part_that_was_not_unpacked_is_left_out_with_a_word(archive: Path, caplog: pytest.LogCaptureFixture):
    (archive / "imagesVa").rename(archive / "elsewhere")
    assert len(amos22(archive)) == 3
    assert "has no imagesVa, so its 2 validation scans are left out" in caplog.text
    (archive / "imagesTr").rename(archive / "elsewhere2")
    with pytest.raises(DatasetError, match="no labelled CT or MR scans"):
        amos22(archive)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"validation": 3}, "entry of validation"),
        ({"training": [{"label": "x"}]}, "entry of training"),
        ({"training": [{"image": "./imagesTr/amos_0003.nii.gz"}]}, "amos_0003.nii.gz, which does not exist"),
        ({"training": None}, "is not the dataset.json of AMOS22"),
    ],
)
def test_mistakes_are_one_line(archive: Path, change: dict, match: str):
    with pytest.raises(DatasetError, match=match):
        amos22(edit(archive, **change))


def test_scans_of_other_names_and_channels_are_refused(archive: Path):
    (archive / "imagesTr" / "amos_0001.nii.gz").rename(archive / "imagesTr" / "liver.nii.gz")
    entry = {"image": "./imagesTr/liver.nii.gz", "label": "./labelsTr/amos_0001.nii.gz"}
    with pytest.raises(DatasetError, match="names a scan 'liver'"):
        amos22(edit(archive, training=[entry]))
    with pytest.raises(ConfigError, match="no channels"):
        amos22(archive, channel=1)
