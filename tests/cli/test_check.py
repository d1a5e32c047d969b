"""The command line, called in process; one test starts it as users do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from boltzformer_monai.cli import check as check_dataset
from boltzformer_monai.cli.check import main
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.slicing.dataset_page import TABLE9_HEADINGS
from tests.data.slice_cases import add, make_volume
from tests.io.test_pictures import write_png_bomb

SCRIPT = Path(__file__).resolve().parents[2] / "preprocessing" / "check_dataset.py"
NAMES = {1: "liver", 2: "kidney right"}


def make(root: Path, *splits: str, seed: int = 0) -> Path:
    for number, split in enumerate(splits):
        image, _ = make_volume(seed=seed + number)
        add(SliceWriter(root, name=root.name), f"case{number}", image=image, labels=NAMES, split=split)
    return root


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    return make(tmp_path / "slices", "train", "val", "test")


def error_of(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(argv) == 2
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_sound(slices: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--input", str(slices), "--strict"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "0 errors, 0 warnings, 0 notes"
    assert re.split(r"  +", lines[0].strip()) == list(TABLE9_HEADINGS)
    assert lines[1].split() == ["slices", "CT", "liver", "7.500", "7.500", "7.500", "7.500", "9", "3", "3"]


def test_warnings_fail_when_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = make(tmp_path / "slices", "train")
    assert main(["--input", str(root)]) == 0
    assert main(["--input", str(root), "--strict"]) == 1
    assert "warning [empty-split] slices: " in capsys.readouterr().out


def test_errors_fail_and_are_written(slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (slices / "labels" / "case1_axial_0002.png").unlink()
    target, page = tmp_path / "fingerprint.json", tmp_path / "page.html"
    assert main(["--input", str(slices), "--json", str(target), "--page", str(page)]) == 1
    assert "error [missing-picture] slices: " in capsys.readouterr().out
    content = json.loads(target.read_text(encoding="utf-8"))
    assert (content["format"], content["version"]) == ("boltzformer-fingerprint", 1)
    assert [finding["code"] for finding in content["findings"]] == ["unreadable", "missing-picture"]
    text = page.read_text(encoding="utf-8")
    assert "labels/case1_axial_0002.png" in text
    assert "<h1>Slice data set slices</h1>" in text


def test_json_and_page_are_the_same_every_time_and_name_no_path(slices: Path, tmp_path: Path):
    files = []
    for run in ("a", "b"):
        made = [tmp_path / f"{run}.json", tmp_path / f"{run}.html"]
        assert main(["--input", str(slices), "--json", str(made[0]), "--page", str(made[1])]) == 0
        files.append([path.read_bytes() for path in made])
    assert files[0] == files[1]
    assert not any(str(tmp_path).encode() in content for content in files[0])


def test_the_page_stands_alone(tmp_path: Path):
    roots = [make(tmp_path / "CT<1>", "train", "val"), make(tmp_path / "two", "train", seed=5)]
    page = tmp_path / "page.html"
    assert main(["--input", *map(str, roots), "--page", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:image/png)', text)
    assert "http" not in text.replace("http-equiv", "")
    assert "CT&lt;1&gt;" in text
    assert "CT<1>" not in text
    assert text.count("<svg") == 1 + 2 * 2
    assert text.count("data:image/png;base64,") == 2
    assert text.count('<li class="warning">') == 1  # two has no validation
    for heading in TABLE9_HEADINGS:
        assert f">{heading}</th>" in text


def test_a_page_without_targets(tmp_path: Path):
    add(SliceWriter(tmp_path / "bare"), label=None, labels=None)
    page = tmp_path / "page.html"
    assert main(["--input", str(tmp_path / "bare"), "--page", str(page)]) == 0
    assert "Object sizes" not in page.read_text(encoding="utf-8")


def test_leakage_between_two_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    roots = [make(tmp_path / name, *splits) for name, splits in (("one", ("train", "val")), ("two", ("val", "train")))]
    assert main(["--input", *map(str, roots)]) == 1
    assert "one: case0 (train) = two: case0 (val)" in capsys.readouterr().out


def test_mistakes_are_one_line(slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "--input" in error_of(capsys, [])
    assert "--bogus" in error_of(capsys, ["--input", str(slices), "--bogus"])
    assert "no such folder" in error_of(capsys, ["--input", str(tmp_path / "nowhere")])
    assert "not a slice data set" in error_of(capsys, ["--input", str(tmp_path)])
    assert "is a folder" in error_of(capsys, ["--input", str(slices), "--json", str(tmp_path)])
    assert "same file" in error_of(capsys, ["--input", str(slices), "--json", "x", "--page", "./x"])
    missing = error_of(capsys, ["--input", str(slices), "--page", str(tmp_path / "new" / "page.html")])
    assert f"{tmp_path / 'new'}: no such folder for --page" in missing


@pytest.mark.parametrize("option", ["--json", "--page"])
def test_no_other_file_is_replaced(
    slices: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "target"
    for content in (b"", b"\xff\x00 a scan", b'{"labels": {}}', b"<!DOCTYPE html>"):
        target.write_bytes(content)
        assert "was not made by" in error_of(capsys, ["--input", str(slices), option, str(target)])
        assert target.read_bytes() == content
    target.unlink()
    assert main(["--input", str(slices), option, str(target)]) == 0
    assert main(["--input", str(slices), option, str(target)]) == 0  # its own earlier output
    for inside in (slices / "new", slices / "images" / "case0_axial_0000.png", slices / "dataset.json"):
        assert "lies in a checked dataset" in error_of(capsys, ["--input", str(slices), option, str(inside)])
    target.unlink()
    target.symlink_to(tmp_path / "elsewhere")
    assert "was not made by" in error_of(capsys, ["--input", str(slices), option, str(target)])
    target.unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(target.with_name(".hidden")))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert f"{target}: cannot be written (No space" in error_of(capsys, ["--input", str(slices), option, str(target)])


def test_ctrl_c_is_one_line(slices: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check_dataset, "check_data_sets", interrupted)
    assert main(["--input", str(slices)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: nothing is written"


def test_as_users_start_it_from_another_folder(slices: Path, tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "--input", "slices", "--json", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 errors, 0 warnings, 0 notes")
    assert (tmp_path / "out.json").is_file()


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_a_picture_that_claims_too_many_pixels_is_a_finding(
    slices: Path, capsys: pytest.CaptureFixture[str], folder: str
):
    write_png_bomb(slices / folder / "case1_axial_0002.png", 60000, 60000)
    assert main(["--input", str(slices)]) == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.out.splitlines() if line.startswith("error [")]
    assert f"{folder}/case1_axial_0002.png" in line
    assert "Traceback" not in said.err


@pytest.mark.parametrize("file", ["dataset.json", "volumes/case1.json", "manifest.csv", "fingerprint.json"])
@pytest.mark.parametrize("content", ["[" * 200_000 + "]" * 200_000, '{"a":' * 100_000, "\0" * 1000, "\xff"])
def test_damaged_texts_are_one_line(
    slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str
):
    target = tmp_path / file if file == "fingerprint.json" else slices / file
    target.write_bytes(content.encode("latin-1"))
    code = main(["--input", str(slices), "--json", str(tmp_path / "fingerprint.json")])
    said = capsys.readouterr()
    lines = [line for line in f"{said.out}\n{said.err}".splitlines() if line.startswith("error")]
    assert "Traceback" not in said.err
    assert (code, len(lines)) in {(2, 1), (1, 1)} if file != "volumes/case1.json" else code in {0, 1, 2}
