"""A patient's name in file names, folders and headers must not get into the slice data set, whatever the recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boltzformer_monai.cli.slice import main
from tests.io.conftest import SeriesWriter
from tests.slicing.scan_files import make_task, write_image, write_label

NAME = "SMITH_JOHN_19500101"
Make = Callable[[Path, SeriesWriter], Path]


def task_of(folder: Path, task: str, labels: tuple[str, ...]) -> Path:
    make_task(folder, task=task, labels=labels)
    described = json.loads((folder / "dataset.json").read_text())
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "liver_001.nii.gz").rename(folder / part / f"{NAME}.nii.gz")
    text = json.dumps(described).replace("liver_001", NAME)
    (folder / "dataset.json").write_text(text)
    return folder


def own_task(folder: Path, _: SeriesWriter) -> Path:
    return task_of(folder, "our liver data", ("liver", "cancer", "spleen"))


def known_task(folder: Path, _: SeriesWriter) -> Path:
    return task_of(folder / "Task03_Liver", "LITS", ("liver", "cancer"))


def lidc(folder: Path, write_series: SeriesWriter) -> Path:
    place = folder / f"study {NAME}"
    stack = np.random.default_rng(0).integers(0, 2000, (3, 6, 8))
    write_series(stack, folder=place, change=lambda dataset, index: setattr(dataset, "PatientID", NAME))
    session = "<readingSession></readingSession>"
    header = "<ResponseHeader><SeriesInstanceUid>1.2.3.4.1</SeriesInstanceUid></ResponseHeader>"
    text = f'<LidcReadMessage xmlns="http://www.nih.gov">{header}{session * 4}</LidcReadMessage>'
    (place / f"{NAME}.xml").write_text(text)
    return folder


def plain_folder(folder: Path, write_series: SeriesWriter) -> Path:
    write_image(folder / "images" / f"{NAME}.nii.gz")
    write_label(folder / "labels" / f"{NAME}.nii.gz", 1)
    write_image(folder / NAME / "image.nii.gz", seed=1)
    (folder / "labels.json").write_text('{"modality": "CT", "site": "abdomen", "labels": {"1": "liver"}}')
    stack = np.random.default_rng(0).integers(0, 2000, (3, 6, 8))
    write_series(stack, folder=folder / f"{NAME} CT", change=lambda dataset, index: setattr(dataset, "PatientID", NAME))
    return folder


def pictures(folder: Path, _: SeriesWriter) -> Path:
    for part, tail in (("train", ""), ("train_mask", "_liver")):
        (folder / part).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 7, np.uint8)).save(folder / part / f"{NAME}_12_CT_abdomen{tail}.png")
    return folder


def marked_pictures(folder: Path, write_series: SeriesWriter) -> Path:
    """Someone put a picture of his own to those of our export."""
    marker = {"format": "boltzformer-biomedparse", "version": 1, "name": "x", "patients": {"scan-1_axial": "abc"}}
    pictures(folder, write_series)
    (folder / "boltzformer-export.json").write_text(json.dumps(marker))
    return folder


@pytest.mark.parametrize(
    ("recipe", "make", "volumes"),
    [
        ("msd", own_task, 2),
        ("msd", known_task, 2),
        ("lidc", lidc, 1),
        ("folder", plain_folder, 3),
        ("biomedparse", pictures, 1),
        ("biomedparse", marked_pictures, 1),
    ],
)
@pytest.mark.parametrize("spoilt", [False, True])
def test_no_name_gets_into_the_data_set(
    tmp_path: Path, write_series: SeriesWriter, recipe: str, make: Make, volumes: int, *, spoilt: bool
):
    folder = make(tmp_path / NAME, write_series)
    if spoilt:  # what is said about refused scans names nobody either
        for path in sorted(folder.rglob(f"*{NAME}*")):
            if path.name.endswith((".nii.gz", ".png")) and path.parent.name in ("imagesTr", "images", "train"):
                path.write_bytes(path.read_bytes()[:40])
    output = tmp_path / "out"
    options = ["--recipe", recipe, "--input", str(folder), "--output", str(output), "--site", "abdomen"]
    code = main([*options, "--key", "secret"])
    assert code == (3 if spoilt and recipe != "lidc" else 0)
    report = json.loads((output / "report.json").read_text())
    assert report["done"] + report["refused"] == volumes
    assert_nobody_is_named(output)


def assert_nobody_is_named(output: Path) -> None:
    for path in output.rglob("*"):
        texts = [str(path.relative_to(output)), path.read_bytes().decode("latin-1") if path.is_file() else ""]
        for word in ("smith", "john", "19500101"):
            assert not any(word in text.lower() for text in texts), (path, word)


def test_amos_takes_no_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for stem in (NAME, "amos_19500101"):
        folder = tmp_path / stem
        write_image(folder / "imagesTr" / f"{stem}.nii.gz")
        write_label(folder / "labelsTr" / f"{stem}.nii.gz", 1)
        entry = {"image": f"./imagesTr/{stem}.nii.gz", "label": f"./labelsTr/{stem}.nii.gz"}
        content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}, "training": [entry]}
        (folder / "dataset.json").write_text(json.dumps(content))
        assert main(["--recipe", "amos22", "--input", str(folder), "--output", str(tmp_path / "out")]) == 2
        assert "those of AMOS22 are called amos_0001" in capsys.readouterr().err
        assert_nobody_is_named(tmp_path / "out")


@pytest.mark.parametrize(
    ("stem", "public"),
    [("liver_12", True), ("LIVER_001", True), ("liver_19500101", False), ("liver_1b", False), ("xliver_1", False),
     ("colon_001", False), ("liver", False)],
)  # fmt: skip
def test_names_of_the_decathlon(tmp_path: Path, stem: str, public: bool):  # noqa: FBT001
    from boltzformer_monai.slicing.recipes import load_recipe

    folder = make_task(tmp_path / "Task03_Liver", cases=1)
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "liver_000.nii.gz").rename(folder / part / f"{stem}.nii.gz")
    text = (folder / "dataset.json").read_text().replace("liver_000", stem)
    (folder / "dataset.json").write_text(text)
    (case,) = [case for case in load_recipe("msd")(folder) if not case.image.name.startswith("._")]
    assert case.public is public
