"""``segment`` on one scan: what is written, and what is said of wrong arguments before anything heavy is imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.cli.segment_arguments import prompts_in
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom, write_phantom_nifti
from boltzformer_monai.errors import PromptError
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.segmentation import read_segmentation
from boltzformer_monai.precision import resolve_precision
from tests.needs import need_module


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    image, label = make_phantom("abdomen", seed=1, size=(40, 40, 4))
    write_phantom_nifti(image, label, folder, "scan")
    write_phantom_dicom(image, folder / "series", seed=1)
    return folder


def _run(*arguments: object) -> int:
    return main(["segment", *map(str, arguments)])


@pytest.mark.slow
def test_everything_at_once(scans: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_module("highdicom")
    (tmp_path / "prompts.txt").write_text("\ufeff# organs\n\nlung nodule\n", encoding="utf-8")
    code = _run(
        scans / "series", "--prompts", "left kidney", "--prompts-file", tmp_path / "prompts.txt", "--checkpoint",
        checkpoint, "--output", tmp_path / "new" / "out.dcm", "--uncertainty", 2, "--preview", tmp_path / "p" / "s.png",
        "--planes", "axial", "coronal", "--seed", 5, "--presence", "off", "--arbitration", "first",
    )  # fmt: skip
    assert code == 0
    summary = json.loads((tmp_path / "new" / "out.json").read_text(encoding="utf-8"))
    assert [each["prompt"] for each in summary["prompts"]] == ["left kidney", "lung nodule"]
    assert (summary["planes"], summary["seed"], summary["repeats"]) == (["axial", "coronal"], 5, 2)
    assert (summary["precision"], summary["device"]) == (resolve_precision("auto", "cpu"), "cpu")
    volume = read_volume(scans / "series")
    assert read_label_map(tmp_path / "new" / "out-uncertainty.nii.gz").array.shape == volume.shape
    assert (tmp_path / "p" / "s.png").read_bytes()[1:4] == b"PNG"
    found = [each["prompt"] for each in summary["prompts"] if each["found"]]
    assert found
    titles = read_segmentation(tmp_path / "new" / "out.dcm", volume).titles
    assert list(titles.values()) == found
    assert json.loads(capsys.readouterr().out)["found"] == found


def test_seg_rtstruct_and_label_map_agree(scans: Path, checkpoint: Path, tmp_path: Path) -> None:
    need_module("highdicom")
    for name in ("a.dcm", "a.rtstruct.dcm", "a.nii.gz"):
        given = ("--prompts", "left kidney", "--checkpoint", checkpoint, "--output", tmp_path / name)
        assert _run(scans / "series", *given) == 0
    labels = read_label_map(tmp_path / "a.nii.gz").array
    assert labels.any()
    for name in ("a.dcm", "a.rtstruct.dcm"):
        drawn = read_segmentation(tmp_path / name, read_volume(scans / "series")).volume.array
        np.testing.assert_array_equal(drawn, labels)


@pytest.mark.parametrize("image", ["scan.nii.gz", "series"])
def test_a_mask_for_each_prompt(scans: Path, checkpoint: Path, tmp_path: Path, image: str) -> None:
    out = tmp_path / "masks"
    given = ("--checkpoint", checkpoint, "--output", out, "--masks", "--format", "nrrd")
    assert _run(scans / image, "--prompts", "left kidney", "lung nodule", *given) == 0
    assert sorted(path.name for path in out.iterdir()) == ["01_left_kidney.nrrd", "02_lung_nodule.nrrd"]
    assert (tmp_path / "masks.json").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], "no prompt given"),
        (["--prompts", "liver", " Liver "], "given twice"),
        (["--prompts-file", "nothing.txt"], "nothing.txt"),
        (["--prompts", "liver", "--threshold", "1"], "threshold must be between 0 and 1"),
        (["--prompts", "liver", "--batch-size", "0"], "--batch-size: must be at least 1, not 0"),
        (["--prompts", "liver", "--uncertainty", "1"], "--uncertainty"),
        (["--prompts", "liver", "--planes", "axial", "axial"], "planes must be different"),
        (["--prompts", "liver", "--preview", "p.jpg"], ".png"),
        (["--prompts", "liver", "--masks"], "--masks"),
        (["--prompts", "liver", "--format", "nrrd"], "--format"),
        (["--prompts", "liver", "--series", "1.2.3"], "--series"),
        (["--prompts", "liver", "--output", "out.dcm"], "DICOM"),
        (["--prompts", "liver", "--output", "out"], "--masks"),
        (["--prompts", "liver", "--output", "model.pt"], "input"),
        (["--prompts", "liver", "--window", "lunge"], "lung"),
    ],
)
def test_a_wrong_argument_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("scan.nii.gz", "model.pt"):
        (tmp_path / name).touch()
    assert _run("scan.nii.gz", "--checkpoint", "model.pt", "--output", "out.nii.gz", *changes) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert said in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "scan.nii.gz"]


def test_arguments_are_checked_before_torch_is_imported(tmp_path: Path) -> None:
    for name in ("scan.nii.gz", "model.pt"):
        (tmp_path / name).touch()
    script = (
        "import sys; from boltzformer_monai.cli import main\n"
        "given = ['scan.nii.gz', '--prompts', 'liver', '--checkpoint', 'model.pt', '--output', 'o.png']\n"
        "code = main(['segment', *given])\n"
        "assert code == 2 and not {'torch', 'pydicom', 'matplotlib', 'SimpleITK', 'highdicom'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr


@pytest.mark.parametrize("content", [b"", b"# only\n\n", b"\xff\xfel"])
def test_a_file_without_prompts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(PromptError, match="p.txt"):
        prompts_in(tmp_path / "p.txt")


@pytest.mark.slow
def test_a_real_dicom_series_becomes_a_seg(shared_data: Path, checkpoint: Path, tmp_path: Path) -> None:
    highdicom = need_module("highdicom")
    series = shared_data / "ts_ct_dicom" / "dicom"
    for name in ("a.dcm", "b.nii.gz"):
        given = ("--prompts", "left kidney", "--checkpoint", checkpoint, "--output", tmp_path / name)
        assert _run(series, *given) == 0
    labels = read_label_map(tmp_path / "b.nii.gz").array
    assert labels.any()
    drawn = read_segmentation(tmp_path / "a.dcm", read_volume(series)).volume.array
    np.testing.assert_array_equal(drawn, labels)
    assert highdicom.seg.segread(tmp_path / "a.dcm").get_segment_description(1).segment_label == "left kidney"


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["segment", "--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "volumes.md").read_text(encoding="utf-8")
    assert len(options) > 15
    assert {option for option in options if f"`{option}`" not in page} == set()
