"""Nothing under the input is lost without a word: sliced, refused with its reason, or counted as left out."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.cli.slice import main
from boltzformer_monai.errors import BoltzFormerError, DatasetError, VolumeError
from boltzformer_monai.io.read import write_label_map
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.slicing.cases import LabelFile, used_files
from boltzformer_monai.slicing.recipes import load_recipe
from boltzformer_monai.slicing.slice_report import take_account
from tests.io.conftest import SeriesWriter
from tests.io.dicom_objects import write_rtstruct
from tests.slicing.folder_cases import STACK, listed, write_names
from tests.slicing.scan_files import AFFINE, make_task, write_image, write_label

folder_recipe = load_recipe("folder")


def close(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Make folders as unreadable as they are to other users than root."""
    real, shut = os.scandir, set(map(str, folders))

    def scandir(path: Any = ".") -> Any:
        if str(path) in shut:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def slicer_segmentation(path: Path) -> Path:
    """Write a label map as 3D Slicer saves a segmentation, with one segment called spleen."""
    import SimpleITK

    array = np.zeros((10, 8, 4), np.uint8)
    array[2:5, 1:3, 1:3] = 1
    plain = write_label_map(array, Volume(array, AFFINE), path.with_name("plain.nrrd"))
    del plain
    image = SimpleITK.ReadImage(str(path.with_name("plain.nrrd")))
    for key, value in {"Name": "spleen", "LabelValue": "1", "Layer": "0", "ID": "S1", "Extent": "0 9 0 7 0 3"}.items():
        image.SetMetaData(f"Segment0_{key}", value)
    SimpleITK.WriteImage(image, str(path))
    path.with_name("plain.nrrd").unlink()
    return path


def nrrd_image(path: Path) -> Path:
    array = np.random.default_rng(1).integers(0, 400, (10, 8, 4)).astype(np.uint16)
    write_label_map(array, Volume(array, AFFINE), path)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two layouts side by side, and what else lies in an archive."""
    top = tmp_path / "archive"
    for name in ("anna", "bert"):
        write_image(top / "images" / f"{name}.nii.gz")
        write_label(top / "labels" / f"{name}.nii.gz", 1)
    write_label(top / "labels" / "carla.nii.gz", 1)
    write_names(top, {"modality": "CT", "site": "abdomen", "labels": {"1": "liver"}})
    nrrd_image(top / "CTChest4.nrrd")
    slicer_segmentation(top / "Segmentation.seg.nrrd")
    (top / "notes.txt").write_text("x")
    (top / ".DS_Store").write_text("x")
    return top


def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "report.json").read_text())  # type: ignore[no-any-return]


def test_a_scan_and_its_segmentation_beside_other_layouts_are_sliced(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cases = listed(mixed)
    assert set(cases) == {"anna", "bert", "CTChest4"}
    assert cases["CTChest4"].annotation == LabelFile(mixed / "Segmentation.seg.nrrd")
    assert cases["anna"].annotation == LabelFile(mixed / "labels" / "anna.nii.gz", {"1": "liver"})
    drawn = cases["CTChest4"].annotation.draw_on(cases["CTChest4"].read_image())
    assert dict(drawn.names or {}) == {"1": "spleen"}
    assert int((drawn.volume.array == 1).sum()) == 3 * 2 * 2
    out = tmp_path / "out"
    assert main(["--recipe", "folder", "--input", str(mixed), "--output", str(out)]) == 0
    said = capsys.readouterr()
    assert "3 volumes" in said.out
    assert "3 files left out (annotations: 1, hidden files: 1, other files: 1)" in said.out
    assert f"{mixed}: left out, annotations: labels/carla.nii.gz" in said.err
    content = report(out)
    assert (content["done"], content["refused"]) == (3, 0)
    assert content["left_out"] == {"annotations": 1, "hidden files": 1, "other files": 1}
    assert "carla" not in json.dumps(content)


def test_annotations_named_after_their_scans(tmp_path: Path):
    for name in ("p1_ct", "p2_ct"):
        nrrd_image(tmp_path / f"{name}.nrrd")
    write_label(tmp_path / "p1_ct-label.nrrd", 1)
    write_label(tmp_path / "p2_ct_seg.nii.gz", 1)
    write_label(tmp_path / "p1_ct-uncertainty.nii.gz", 1)
    write_names(tmp_path)
    cases = listed(tmp_path)
    assert {name: [path.name for path in case.annotation.files()] for name, case in cases.items()} == {
        "p1_ct": ["p1_ct-label.nrrd"],
        "p2_ct": ["p2_ct_seg.nii.gz"],
    }
    assert [case.patient for case in cases.values()] == ["p1_ct", "p2_ct"]


@pytest.mark.parametrize(
    ("drawn", "pairs"),
    [
        ("BraTS_002_seg.nii.gz", False),
        ("other-label.nrrd", False),
        ("Segmentation_BraTS_002.seg.nrrd", False),
        ("mask_of_002_mask.nii", False),
        ("BraTS_001_seg.nii.gz", True),
        ("BraTS_001-label.seg.nrrd", True),
        ("Segmentation.seg.nrrd", True),
        ("labels.nii", True),
    ],
)
def test_a_single_annotation_is_not_taken_for_another_scan(tmp_path: Path, drawn: str, pairs: bool):
    write_image(tmp_path / "BraTS_001.nii.gz")
    (tmp_path / drawn).touch()
    write_names(tmp_path)
    case = listed(tmp_path)["BraTS_001" if pairs else "BraTS_001.nii.gz"]
    if pairs:
        assert case.annotation.files() == (tmp_path / drawn,)
    else:
        assert case.annotation is None
        with pytest.raises(VolumeError, match=r"BraTS_001\.nii\.gz: is an image file .* BraTS_001_label\.\*"):
            case.read_image()


def test_a_scan_whose_name_ends_like_an_annotation_keeps_its_own(tmp_path: Path):
    for name in ("CT", "CTseg"):
        write_image(tmp_path / f"{name}.nii.gz")
        write_label(tmp_path / f"{name}_label.nii.gz", 1)
    write_names(tmp_path)
    found = {name: case.annotation.files()[0].name for name, case in listed(tmp_path).items()}
    assert found == {"CT": "CT_label.nii.gz", "CTseg": "CTseg_label.nii.gz"}


def test_a_scan_in_no_layout_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    top, out, private = tmp_path / "in", tmp_path / "out", tmp_path / "private.csv"
    write_image(top / "p1" / "image.nii.gz")
    write_image(top / "p1" / "computed.nii.gz")  # beside a scan it may be anything
    write_image(top / "p2" / "t1.nii.gz")
    write_image(top / "p2" / "t2.nii.gz")
    write_image(top / "images" / "p3" / "a.nii.gz")
    write_image(top / "p4" / "image.nii.gz")
    write_image(top / "p4" / "scan.nii.gz")
    arguments = ["--recipe", "folder", "--input", str(top), "--output", str(out), "--modality", "CT"]
    assert main([*arguments, "--mapping", str(private)]) == 3
    said = capsys.readouterr()
    for name in ("p2/t1.nii.gz", "p2/t2.nii.gz", "images/p3/a.nii.gz"):
        assert f"refused: {top / name}: is an image file in no known layout" in said.err
    assert f"refused: {top}/p4/scan.nii.gz: image.nii.gz is taken for the scan of this folder" in said.err
    assert report(out)["why"] == {"layout": 4}
    assert report(out)["left_out"] == {"image files": 1}
    with private.open(newline="") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert (rows["t1.nii.gz"]["status"], rows["computed.nii.gz"]["status"]) == ("refused", "left out")
    assert rows["computed.nii.gz"]["message"] == "image files"
    (top / "p1" / "computed.nii.gz").unlink()
    assert main([*arguments, "--mapping", str(private)]) == 3
    assert "computed" not in private.read_text()


def test_two_annotations_of_one_scan_are_not_chosen_from(tmp_path: Path):
    write_image(tmp_path / "p1" / "image.nii.gz")
    write_label(tmp_path / "p1" / "label.nii.gz", 1)
    write_label(tmp_path / "p1" / "mask.nii.gz", 2)
    write_image(tmp_path / "images" / "a.nii.gz")
    write_label(tmp_path / "labels" / "a.nii.gz", 1)
    write_label(tmp_path / "labels" / "a.nrrd", 2)
    write_names(tmp_path)
    cases = listed(tmp_path)
    for name, said in (("p1", "label.nii.gz, mask.nii.gz"), ("a", "a.nii.gz, a.nrrd")):
        with pytest.raises(DatasetError, match=rf"holds 2 annotations of one scan \({said}\); keep the one meant"):
            cases[name].annotation.draw_on(cases[name].read_image())


def test_a_folder_that_may_not_be_opened_is_a_refused_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    top, out = tmp_path / "in", tmp_path / "out"
    write_image(top / "p1" / "image.nii.gz")
    write_image(top / "p2" / "image.nii.gz")
    close(monkeypatch, top / "p2")
    arguments = ["--recipe", "folder", "--input", str(top), "--output", str(out), "--modality", "CT"]
    assert main(arguments) == 3
    said = capsys.readouterr()
    assert f"refused: {top / 'p2'}: cannot be opened (Permission denied)" in said.err
    assert "1 volume, " in said.out
    assert "1 scan refused" in said.out
    assert report(out)["why"] == {"missing": 1}
    close(monkeypatch, top / "p1", top / "p2")
    assert main(arguments) == 2
    assert f"{top / 'p1'} cannot be opened (Permission denied)" in capsys.readouterr().err
    close(monkeypatch, top)
    assert main(arguments) == 2
    assert f"error: {top}: cannot be opened (Permission denied)" in capsys.readouterr().err


def test_a_published_data_set_with_a_closed_folder_and_strays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    top = make_task(tmp_path / "Task03_Liver", labels=("liver", "cancer"))
    write_image(top / "imagesTr" / "liver_777.nii.gz")  # dataset.json does not list it
    write_image(top / "imagesTs" / "liver_900.nii.gz")
    (top / "more").mkdir()
    close(monkeypatch, top / "more")
    assert main(["--recipe", "msd", "--input", str(top), "--output", str(tmp_path / "out")]) == 3
    said = capsys.readouterr()
    assert "2 volumes" in said.out
    assert "4 files left out (hidden files: 2, image files: 2)" in said.out
    assert "left out, image files: imagesTr/liver_777.nii.gz, imagesTs/liver_900.nii.gz" in said.err
    assert report(tmp_path / "out")["left_out"] == {"hidden files": 2, "image files": 2}


def test_a_single_series_tells_what_else_lies_in_its_folder(
    tmp_path: Path, write_series: SeriesWriter, capsys: pytest.CaptureFixture[str]
):
    write_series(STACK, folder=tmp_path / "scan", uid="1.2.3.4.1")
    write_image(tmp_path / "scan" / "other.nii.gz")
    assert main(["--image", str(tmp_path / "scan"), "--output", str(tmp_path / "out")]) == 0
    assert "1 file left out (image files: 1)" in capsys.readouterr().out


class _Grower:
    """Grows a random archive, and knows every file of it."""

    def __init__(self, top: Path, seed: int, write_series: SeriesWriter) -> None:
        self.top, self.random, self.write_series, self.number = top, random.Random(seed), write_series, 0
        self.closed: list[Path] = []
        top.mkdir()

    def grow(self) -> None:
        kinds = (
            self.pairs, self.folder, self.slicer, self.series, self.stray, self.hidden, self.link, self.empty,
            self.shut, self.special, self.annotation, self.images_in_folders,
        )  # fmt: skip
        for kind in self.random.choices(kinds, k=self.random.randint(2, 7)):
            kind(self.place())

    def place(self) -> Path:
        folders = [Path(directory) for directory, *_ in os.walk(self.top) if "/.git" not in directory]
        open_ones = [path for path in folders if not {path, *path.parents} & set(self.closed)]
        chosen = self.random.choice(open_ones)
        if self.random.random() < 0.6:
            self.number += 1
            chosen = chosen / f"p{self.number}"
            chosen.mkdir()
        return chosen

    def touch(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def ending(self) -> str:
        return self.random.choice((".nii.gz", ".nii", ".nrrd", ".mha", ".NRRD", ".hdr"))

    def pairs(self, place: Path) -> None:
        tail = self.random.choice(("", "Tr"))
        for name in "abc"[: self.random.randint(1, 3)]:
            self.touch(place / f"images{tail}" / f"{name}{self.random.choice(('', '_0000'))}{self.ending()}")
            if self.random.random() < 0.8:
                self.touch(place / f"labels{tail}" / f"{name}{self.ending()}")

    def images_in_folders(self, place: Path) -> None:
        self.touch(place / "images" / self.random.choice("xyz") / f"ct{self.ending()}")

    def folder(self, place: Path) -> None:
        self.touch(place / f"{self.random.choice(('image', 'scan', 'IMG'))}{self.ending()}")
        if self.random.random() < 0.7:
            self.touch(place / f"{self.random.choice(('label', 'seg', 'mask'))}{self.ending()}")

    def slicer(self, place: Path) -> None:
        self.touch(place / "CTChest4.nrrd")
        self.touch(place / self.random.choice(("Segmentation.seg.nrrd", "CTChest4-label.nrrd", "x_mask.nii.gz")))

    def series(self, place: Path) -> None:
        self.number += 1
        uid, folder = f"1.2.3.4.{self.number}", place / f"s{self.number}"
        files = self.write_series(STACK[:2], folder=folder, uid=uid)
        if self.random.random() < 0.3:
            files[0].write_bytes(files[0].read_bytes()[128 + 4 :])  # no preamble
        if self.random.random() < 0.3:
            write_rtstruct(folder / "rt.dcm", {})

    def stray(self, place: Path) -> None:
        self.touch(place / self.random.choice(("notes.txt", "t1.nii.gz", "README", "x.img", "v.raw", "table.csv")))

    def annotation(self, place: Path) -> None:
        self.touch(place / self.random.choice(("only_mask.nii.gz", "masks/m.nrrd", "labelsTs/a.nii.gz")))

    def hidden(self, place: Path) -> None:
        self.touch(place / self.random.choice((".DS_Store", "._a.nii.gz", ".git/config")))

    def link(self, place: Path) -> None:
        self.number += 1
        goal = self.random.choice((self.top, place, *sorted(self.top.iterdir()), self.top / "gone", self.top / "g.nii"))
        name = f"l{self.number}{''.join(goal.suffixes) if not goal.is_dir() else ''}"
        (place / name).symlink_to(goal)

    def empty(self, place: Path) -> None:
        (place / f"e{self.random.randint(0, 9)}").mkdir(exist_ok=True)

    def shut(self, place: Path) -> None:
        self.number += 1
        folder = place / f"closed{self.number}"
        self.touch(folder / "image.nii.gz")
        self.closed.append(folder)

    def special(self, place: Path) -> None:
        self.number += 1
        os.mkfifo(place / f"pipe{self.number}.txt")

    def all_files(self) -> set[str]:
        """Every file once by its real folder, with links to folders and hidden and closed folders as single things."""
        found = set()
        for directory, folders, files in os.walk(self.top):
            place = Path(directory)
            single = [name for name in folders if name.startswith(".") or (place / name).is_symlink()]
            single += [name for name in folders if place / name in self.closed]
            folders[:] = [name for name in folders if name not in single]
            found |= {os.path.join(os.path.realpath(place), name) for name in (*files, *single)}
        return found


@pytest.mark.parametrize("part", range(4))
def test_every_file_of_random_archives_is_accounted_for(
    tmp_path: Path, write_series: SeriesWriter, monkeypatch: pytest.MonkeyPatch, part: int
):
    closed_ones = refused = sliced = 0
    for seed in range(part * 100, part * 100 + 100):
        archive = _Grower(tmp_path / f"archive{seed}", seed, write_series)
        archive.grow()
        with monkeypatch.context() as patch:
            close(patch, *archive.closed)
            try:
                cases = folder_recipe(archive.top)
            except BoltzFormerError as error:
                assert "holds no scans" in str(error) or "no scan can be seen" in str(error), seed  # noqa: PT017
                continue
            account = take_account(archive.top, cases)
        used = [path for case in account.cases for path in used_files(case)]
        left = [path for paths in account.left_out.values() for path in paths]
        closed = [case.image for case in account.cases if case.reason == "missing" and case.problem]
        seen = {os.path.join(os.path.realpath(path.parent), path.name) for path in (*used, *left, *closed)}
        lost = archive.all_files() - seen
        # A link that is followed is accounted for by what lies behind it.
        lost = {path for path in lost if not (os.path.islink(path) and os.path.isdir(path))}
        assert lost == set(), (seed, lost)
        assert not {os.path.realpath(path) for path in used if not path.is_symlink()} & {
            os.path.realpath(path) for path in left if not path.is_symlink()
        }, seed
        assert set(closed) == set(archive.closed), seed
        assert account.counts() == {kind: len(paths) for kind, paths in account.left_out.items()}
        closed_ones += len(closed)
        refused += sum(bool(case.problem) for case in account.cases)
        sliced += sum(not case.problem for case in account.cases)
    assert closed_ones > 10
    assert refused > 20
    assert sliced > 100


def test_a_closed_folder_is_seen_by_the_reader_of_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_image(tmp_path / "p1" / "image.nii.gz")
    (tmp_path / "p2").mkdir()
    close(monkeypatch, tmp_path / "p2")
    account = take_account(tmp_path, folder_recipe(tmp_path))
    (case,) = [case for case in account.cases if case.problem]
    with pytest.raises(VolumeError, match=r"p2: cannot be opened \(Permission denied\); allow it") as caught:
        case.read_image()
    assert caught.value.reason == "missing"
