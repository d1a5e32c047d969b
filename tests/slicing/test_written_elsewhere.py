"""Files as other programs write them: nnU-Net's description, Windows' paths and byte order marks, bare DICOM."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.cli.segment_arguments import prompts_in
from boltzformer_monai.cli.slice import main
from boltzformer_monai.data.label_names import read_label_names
from boltzformer_monai.errors import ConfigError, DatasetError, VolumeError
from boltzformer_monai.io.dicom.files import is_dicom_file
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.slicing.recipes import load_recipe
from tests.io.conftest import SeriesWriter
from tests.slicing.folder_cases import CT_NAMES, STACK, listed
from tests.slicing.scan_files import make_task, write_image, write_label

ENCODINGS = {"utf-8-sig": "utf-8-sig", "utf-16": "utf-16", "big": "utf-16-be"}


def marked(text: str, encoding: str) -> bytes:
    return (codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b"") + text.encode(encoding)


def nnunet(top: Path, *, channels: dict[str, str], labels: dict[str, Any]) -> Path:
    """A data set as nnU-Net wants it, with two cases."""
    for case in ("case_001", "case_002"):
        for number in channels:
            write_image(top / "imagesTr" / f"{case}_{int(number):04d}.nii.gz", seed=int(number))
        write_label(top / "labelsTr" / f"{case}.nii.gz", 1, 2, 3)
    content = {"channel_names": channels, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (top / "dataset.json").write_text(json.dumps(content))
    return top


def test_names_and_modality_of_nnunet(tmp_path: Path):
    top = nnunet(
        tmp_path / "Dataset007_Liver",
        channels={"0": "CT"},
        labels={"background": 0, "liver": 1, "whole kidney": [2, 3], "left kidney": 3},
    )
    cases = listed(top)
    assert {case.modality for case in cases.values()} == {"CT"}
    names = {"1": "liver", "2+3": "whole kidney", "3": "left kidney"}
    assert {tuple(case.annotation.names.items()) for case in cases.values()} == {tuple(names.items())}
    out = tmp_path / "out"
    assert main(["--recipe", "folder", "--input", str(top), "--output", str(out), "--site", "abdomen"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["left_out"] == {}
    assert {target for volume in report["volumes"].values() for target in volume["targets"]} == {
        "liver", "whole kidney", "left kidney",
    }  # fmt: skip


def test_a_channel_of_nnunet_says_the_modality(tmp_path: Path):
    channels = {"0": "CT", "1": "T2", "2": "zscore", "3": "PET"}
    top = nnunet(tmp_path / "a", channels=channels, labels={"background": 0, "liver": 1})
    with pytest.raises(ConfigError, match="one of 4 channels of a scan; choose one with --channel"):
        listed(top)
    assert {case.modality for case in listed(top, channel=0).values()} == {"CT"}
    cases = listed(top, channel=1)
    assert {case.modality for case in cases.values()} == {"MR"}
    assert {case.image.name for case in cases.values()} == {"case_001_0001.nii.gz", "case_002_0001.nii.gz"}
    assert {case.modality for case in listed(top, channel=2).values()} == {None}  # nothing is guessed
    assert {case.modality for case in listed(top, channel=2, modality="mri").values()} == {"MR"}
    for given in (None, "CT", "MR"):
        with pytest.raises(DatasetError, match=r"dataset\.json: modality 'PET' is another than CT and MR"):
            listed(top, channel=3, modality=given)


@pytest.mark.parametrize("name", ["MRI", "T2"])
def test_nnunets_file_is_not_overruled(tmp_path: Path, name: str):
    top = nnunet(tmp_path / "a", channels={"0": name}, labels={"liver": 1})
    with pytest.raises(VolumeError, match=r"dataset\.json: it says MR, but CT was asked for; leave the modality out"):
        listed(top, modality="CT")
    assert {case.modality for case in listed(top, modality="MRI").values()} == {"MR"}


def test_a_labels_json_counts_more_than_nnunets_file(tmp_path: Path):
    top = nnunet(tmp_path / "a", channels={"0": "CT"}, labels={"background": 0, "liver": 1})
    (top / "labels.json").write_text(json.dumps(CT_NAMES))
    assert listed(top)["case_001"].annotation.names == CT_NAMES["labels"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"background": 0, "liver": 1, "ignore": 2}, '"ignore"'),
        ({"liver": "1"}, "whole numbers"),
        ({"liver": -1}, "whole numbers"),
        ({"liver": []}, "whole numbers"),
        ({"liver": 1, "spleen": 1}, "same values"),
        ({"lesion": [1, 2], "tumor": [2, 1]}, "same values"),
        ({"liver": 1, "Liver": 2}, "both named"),
        ([], "must be objects"),
    ],
)
def test_labels_of_nnunet_that_cannot_be_used(tmp_path: Path, labels: Any, said: str):
    top = nnunet(tmp_path / "a", channels={"0": "CT"}, labels=labels)
    with pytest.raises(DatasetError, match=said):
        listed(top)


def test_the_msd_recipe_sends_nnunets_file_to_the_folder_recipe(tmp_path: Path):
    top = nnunet(tmp_path / "a", channels={"0": "CT"}, labels={"background": 0, "liver": 1})
    with pytest.raises(DatasetError, match="--recipe folder"):
        load_recipe("msd")(top)


@pytest.mark.parametrize("encoding", ENCODINGS.values())
def test_byte_order_marks(tmp_path: Path, encoding: str):
    names = tmp_path / "labels.json"
    names.write_bytes(marked(json.dumps({"labels": {"1": "Äther"}}, ensure_ascii=False), encoding))
    assert dict(read_label_names(names).labels) == {"1": "Äther"}
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(marked("liver\r\nleft kidney\r\n", encoding))
    assert prompts_in(prompts) == ["liver", "left kidney"]
    top = make_task(tmp_path / "Task03_Liver")
    content = (top / "dataset.json").read_text()
    (top / "dataset.json").write_bytes(marked(content, encoding))
    assert len(load_recipe("msd")(top)) == 2


def test_a_table_that_a_spreadsheet_saved_again(tmp_path: Path):
    write_image(tmp_path / "in" / "p1" / "image.nii.gz")
    private = tmp_path / "private.csv"
    given = ["--recipe", "folder", "--input", str(tmp_path / "in"), "--modality", "CT", "--mapping", str(private)]
    assert main([*given, "--output", str(tmp_path / "out")]) == 0
    private.write_bytes(codecs.BOM_UTF8 + private.read_bytes())
    manifest = tmp_path / "out" / "manifest.csv"
    manifest.write_bytes(codecs.BOM_UTF8 + manifest.read_bytes().replace(b"\n", b"\r\n"))
    assert main([*given, "--output", str(tmp_path / "out")]) == 0


def test_paths_with_backslashes(tmp_path: Path):
    top = make_task(tmp_path / "Task03_Liver")
    path = top / "dataset.json"
    content = json.loads(path.read_text())
    for entry in content["training"]:
        entry.update({part: entry[part].replace("/", "\\") for part in ("image", "label")})
    path.write_text(json.dumps(content))
    cases = load_recipe("msd")(top)
    assert [(case.image.name, case.annotation.path.parent.name) for case in cases] == [
        ("liver_000.nii.gz", "labelsTr"), ("liver_001.nii.gz", "labelsTr"),
    ]  # fmt: skip


@pytest.mark.parametrize("first", ["SpecificCharacterSet", "ImageType", "InstanceCreationDate", "SOPClassUID"])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_dicom_without_preamble_and_suffix_is_a_scan(
    tmp_path: Path, write_series: SeriesWriter, first: str, syntax: str
):
    import pydicom

    expected = read_volume(write_series(STACK, folder=tmp_path / "whole")[0].parent).array
    bare = tmp_path / "in" / "series"
    bare.mkdir(parents=True)
    order = ["SpecificCharacterSet", "ImageType", "InstanceCreationDate", "SOPClassUID"]
    for number, path in enumerate(sorted((tmp_path / "whole").iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.SpecificCharacterSet, dataset.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.InstanceCreationDate = "20200101"
        for name in order[: order.index(first)]:
            delattr(dataset, name)
        with (bare / f"slice{number}").open("wb") as file:
            target = pydicom.filebase.DicomFileLike(file)
            target.is_little_endian, target.is_implicit_VR = True, syntax == "1.2.840.10008.1.2"
            pydicom.filewriter.write_dataset(target, dataset)
    assert all(is_dicom_file(path) for path in bare.iterdir())
    (case,) = listed(tmp_path / "in").values()
    assert len(case.files) == len(STACK)
    np.testing.assert_array_equal(case.read_image().array, expected)


def test_other_files_are_not_taken_for_bare_dicom(tmp_path: Path):
    draw = np.random.default_rng(0)
    taken = 0
    for number in range(500):
        content = draw.integers(0, 256, 200, dtype=np.uint8).tobytes()
        start = (b"\x08\0", b"\x02\0", b"", b"II*\0", b"%PDF", b"\x89PNG")[number % 6]
        path = tmp_path / "x"
        path.write_bytes(start + content)
        taken += is_dicom_file(path)
    assert taken == 0
