"""The command line, called in process; one test starts it as users do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.cli.slice import main
from boltzformer_monai.data.slices.reader import SliceReader, read_mask
from boltzformer_monai.data.windows import NAMED_WINDOWS, Window
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom
from boltzformer_monai.io.read import write_label_map
from boltzformer_monai.io.volume import Volume
from tests.data.slice_cases import contents
from tests.slicing.scan_files import AFFINE, write_image, write_label

SCRIPT = Path(__file__).resolve().parents[2] / "preprocessing" / "slice_volumes.py"


@pytest.fixture
def scan(tmp_path: Path) -> dict[str, Path]:
    names = {"modality": "CT", "site": "abdomen", "labels": {"1": "liver", "2": "kidney right"}}
    (tmp_path / "labels.json").write_text(json.dumps(names))
    return {
        "image": write_image(tmp_path / "case7.nii.gz"),
        "label": write_label(tmp_path / "case7_label.nii.gz", 1, 2),
        "labels_json": tmp_path / "labels.json",
        "output": tmp_path / "out",
    }


def arguments(scan: dict[str, Path], *more: object) -> list[str]:
    return [
        *(part for key, path in scan.items() for part in (f"--{key.replace('_', '-')}", str(path))),
        *map(str, more),
    ]


def error_of(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(argv) == 2
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("given", [(), ("--modality", "CT")])
def test_a_pet_is_not_sliced(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...]):
    import pydicom

    image, _ = make_phantom("abdomen", seed=1, size=(32, 32, 4))
    write_phantom_dicom(image, tmp_path / "pet", seed=1)
    for path in (tmp_path / "pet").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.Modality = "PT"
        dataset.save_as(path)
    argv = ["--image", str(tmp_path / "pet"), "--output", str(tmp_path / "out"), *given]
    assert "say PT, which is neither CT nor MR" in error_of(capsys, argv)
    assert "modality 'ultrasound' is another" in error_of(capsys, [*argv[:4], "--modality", "ultrasound"])


def test_a_labels_json_is_not_overruled(scan: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    said = error_of(capsys, arguments(scan, "--modality", "MR"))
    assert said == f"error: {scan['labels_json']}: it says CT, but MR was asked for; leave the modality out"
    assert not scan["output"].exists()


def test_one_volume(scan: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    assert main(arguments(scan)) == 0
    streams = capsys.readouterr()
    assert streams.out == f"1 volume, 4 slices, 2 targets, 8 rows -> {scan['output']}\n"
    assert "1/1" in streams.err
    reader = SliceReader(scan["output"])
    (volume,) = reader.volumes
    assert re.fullmatch(r"scan-[0-9a-f]{12}", volume)
    assert reader.targets == ["liver", "right kidney"]
    assert sum(read_mask(row).sum() for row in reader.select(targets=["liver"])) == 4


def test_as_users_start_it_from_another_folder(scan: dict[str, Path], tmp_path: Path):
    command = [sys.executable, str(SCRIPT), *arguments(scan)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 volume, 4 slices" in done.stdout
    scan["image"].unlink()
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr


def test_options_reach_the_data_set(scan: dict[str, Path]):
    options = [
        "--modality", "CT", "--site", "thorax", "--plane", "coronal", "--window", "-600", "1500", "--patient", "P",
        "--volume-id", "v", "--split", "train", "--negatives", "0", "--name", "mine", "--every", "2", "--min-area", "1",
    ]  # fmt: skip
    assert main(arguments(scan, *options)) == 0
    reader = SliceReader(scan["output"])
    assert reader.name == "mine"
    row = reader.rows[0]
    assert (row.volume, row.site, row.plane, row.split, row.window) == (
        "v", "chest", "coronal", "train", Window(-600, 1500),
    )  # fmt: skip
    assert all(row.present for row in reader.rows)


def test_volumes_add_up_and_what_has_not_changed_is_left_alone(
    scan: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    assert main(arguments(scan, "--keep-names")) == 0
    other = {**scan, "image": write_image(scan["image"].with_name("case8.nii.gz"), seed=8)}
    assert main(arguments(other, "--keep-names")) == 0
    reader = SliceReader(scan["output"])
    assert sorted(name.split("-")[-2] for name in reader.volumes) == ["case7", "case8"]
    picture = reader.rows[0].image
    made = picture.stat().st_mtime_ns
    capsys.readouterr()
    assert main(arguments(scan, "--keep-names")) == 0
    assert "replaced" not in capsys.readouterr().err
    assert picture.stat().st_mtime_ns == made
    write_image(scan["image"], seed=5)  # another scan under the old name
    assert main(arguments(scan, "--keep-names")) == 0
    assert "was in the data set already, of other files or settings, and replaced" in capsys.readouterr().err
    assert picture.stat().st_mtime_ns != made
    made = picture.stat().st_mtime_ns
    assert main(arguments(scan, "--keep-names", "--redo")) == 0
    assert picture.stat().st_mtime_ns != made
    assert len(SliceReader(scan["output"]).rows) == 16


def test_files_of_one_name_in_many_folders_are_told_apart_by_the_folder(scan: dict[str, Path], tmp_path: Path):
    for patient in ("anna 1", "bert"):
        image = write_image(tmp_path / patient / "image.nii.gz")
        assert main(arguments({**scan, "image": image}, "--keep-names")) == 0
    reader = SliceReader(scan["output"])
    assert sorted(name[:-7] for name in reader.volumes) == ["anna-1-image", "bert-image"]
    assert len({entry["patient"] for entry in reader.volumes.values()}) == 2


def test_no_name_and_no_path_is_stored_but_the_private_table_leads_back(scan: dict[str, Path], tmp_path: Path):
    image = write_image(tmp_path / "DOE_JANE" / "19700101_DOE.nii.gz")
    private = tmp_path / "private.csv"
    assert main(arguments({**scan, "image": image}, "--mapping", private, "--key", "k")) == 0
    for name, content in contents(scan["output"]).items():
        assert b"DOE" not in content, name
        assert b"1970" not in content, name
        assert "DOE" not in name
    assert "19700101_DOE" in private.read_text()
    assert next(iter(SliceReader(scan["output"]).volumes)) in private.read_text()


def test_names_in_other_alphabets_stay_apart(scan: dict[str, Path], tmp_path: Path):
    for name in ("Müller", "Möller", "Миллер", "Меллер"):
        image = write_image(tmp_path / "p" / f"{name}.nii.gz", seed=len(name))
        assert main(arguments({**scan, "image": image}, "--keep-names")) == 0
    names = sorted(name[:-7] for name in SliceReader(scan["output"]).volumes)
    assert names == ["p", "p", "p-Moller", "p-Muller"]


def test_the_private_table_grows_and_replaces_nothing_else(
    scan: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    private = tmp_path / "private.csv"
    assert main(arguments(scan, "--mapping", private)) == 0
    other = {**scan, "image": write_image(tmp_path / "more" / "scan.nii.gz", seed=3)}
    assert main(arguments(other, "--mapping", private)) == 0
    assert len(private.read_text().splitlines()) == 3
    assert private.stat().st_mode & 0o077 == 0
    for precious in (scan["image"], scan["labels_json"]):
        before = precious.read_bytes()
        assert "name" in error_of(capsys, arguments(scan, "--mapping", precious))
        assert precious.read_bytes() == before


def test_a_data_set_has_one_key(scan: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(arguments(scan, "--key", "a")) == 0
    other = {**scan, "image": write_image(tmp_path / "more" / "scan.nii.gz", seed=3)}
    for key in ([], ["--key", "b"]):
        assert "another --key" in error_of(capsys, arguments(other, *key))
    assert main(arguments(other, "--key", "a")) == 0


def test_a_patient_held_out_once_stays_held_out(scan: dict[str, Path]):
    assert main(arguments(scan, "--split", "test")) == 0
    assert main(arguments(scan, "--redo")) == 0
    assert {row.split for row in SliceReader(scan["output"]).rows} == {"test"}
    assert main(arguments(scan, "--split", "train")) == 0
    assert {row.split for row in SliceReader(scan["output"]).rows} == {"train"}


def test_volumes_and_patients_can_be_removed(scan: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(arguments(scan, "--volume-id", "one", "--patient", "p")) == 0
    other = {**scan, "image": write_image(tmp_path / "more" / "scan.nii.gz", seed=3)}
    assert main(arguments(other, "--volume-id", "two", "--patient", "q")) == 0
    remove = ["--output", str(scan["output"]), "--remove"]
    assert "has no volume or patient three" in error_of(capsys, [*remove, "one", "three"])
    assert main([*remove, "one"]) == 0
    reader = SliceReader(scan["output"])
    assert set(reader.volumes) == {"two"}
    assert not [name for name in contents(scan["output"]) if "one" in name]
    assert main([*remove, reader.volumes["two"]["patient"]]) == 0
    assert not SliceReader(scan["output"]).rows


def test_pictures_that_were_lost_are_made_again_by_the_same_command(
    scan: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    assert main(arguments(scan)) == 0
    before = contents(scan["output"])
    next((scan["output"] / "images").iterdir()).unlink()
    capsys.readouterr()
    assert main(arguments(scan)) == 0
    assert "lacks pictures" in capsys.readouterr().err
    assert contents(scan["output"]) == before


def test_the_private_table_may_not_lie_in_the_data_set(scan: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    assert "must not lie in the data set" in error_of(capsys, arguments(scan, "--mapping", scan["output"] / "m.csv"))


def test_without_a_label(scan: dict[str, Path]):
    assert main(["--image", str(scan["image"]), "--output", str(scan["output"]), "--modality", "CT"]) == 0
    rows = SliceReader(scan["output"]).rows
    assert [(row.target, row.label) for row in rows] == [("", None)] * 4
    assert rows[0].window == NAMED_WINDOWS["abdomen"]


def test_a_named_value_that_does_not_occur(scan: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    scan["labels_json"].write_text('{"modality": "CT", "site": "abdomen", "labels": {"1": "liver", "9": "spleen"}}')
    line = error_of(capsys, arguments(scan))
    for part in ('9 ("spleen")', "values there: 1, 2", "--allow-missing", "labels.json"):
        assert part in line
    assert not scan["output"].exists()
    assert main(arguments(scan, "--allow-missing")) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert any('9 ("spleen")' in line for line in warnings)
    assert any("no name for label value 2" in line for line in warnings)
    absent = SliceReader(scan["output"]).select(targets=["spleen"])
    assert len(absent) == 4
    assert not any(row.present for row in absent)


def test_how_far_a_label_may_lie_from_its_scan(scan: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    import nibabel

    label = nibabel.load(scan["label"])
    voxels, affine = np.asarray(label.dataobj), label.affine
    for share, options, code in (
        (0.005, [], 0),
        (0.2, [], 2),
        (0.2, ["--grid-tolerance", 0.25], 0),
        (0.2, ["--grid-tolerance", 0.6], 2),
    ):
        moved = affine.copy()
        moved[:3, 3] += share * affine[:3, 0]
        nibabel.save(nibabel.Nifti1Image(voxels, moved), scan["label"])
        assert main(arguments(scan, *options)) == code
        said = capsys.readouterr().err
        if code:
            assert ("--grid-tolerance: must be from 0 to 0.5, not 0.6" if options else "of a voxel) apart") in said
        else:
            assert f"({100 * share:.2g} % of a voxel) off the scan's" in (scan["output"] / "report.json").read_text()


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--output", "o"], "give --image"),
        (["--image", "i"], "--output"),
        (["--image", "nowhere.nii.gz", "--output", "o"], "nowhere.nii.gz"),
        (["--image", "i", "--output", "o", "--workers", "0"], "--workers"),
        (["--image", "i", "--output", "o", "--negatives", "-1"], "negatives"),
        (["--image", "i", "--output", "o", "--every", "0"], "every"),
        (["--image", "i", "--output", "o", "--volume-id", "../x"], "volume id"),
        (["--image", "i", "--output", "o", "--key", "k" * 65], "key"),
        (["--recipe", "msd", "--input", "x", "--output", "o", "--option", "agreement"], "NAME=VALUE"),
        (["--image", "i", "--output", "o", "--window", "abdomn"], "did you mean 'abdomen'"),
        (["--image", "i", "--output", "o", "--window", "1", "2", "3"], "unknown window"),
        (["--image", "i", "--output", "o", "--plane", "oblique"], "planes must be different ones of axial"),
        (["--image", "i", "--output", "o", "--channel", "1"], "--channel goes only with --recipe"),
        (["--image", "i", "--output", "o", "--val-fraction", "7"], "fraction"),
        (["--recipe", "msd", "--output", "o"], "--recipe needs --input"),
        (["--recipe", "msd", "--input", "x", "--image", "i", "--output", "o"], "--image describes one volume"),
        (["--recipe", "msd", "--input", "x", "--output", "o"], "dataset.json: no such file"),
        (["--recipe", "kits", "--input", "x", "--output", "o"], "msd"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], match: str
):
    monkeypatch.chdir(tmp_path)
    assert match in error_of(capsys, argv)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_files_are_one_line(scan: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "add --modality" in error_of(capsys, ["--image", str(scan["image"]), "--output", str(scan["output"])])
    unnamed = {name: path for name, path in scan.items() if name != "labels_json"}
    assert "--labels-json" in error_of(capsys, arguments(unnamed, "--modality", "CT"))
    small = tmp_path / "small.nii.gz"
    write_label_map(np.ones((4, 4, 4), np.uint8), Volume(np.ones((4, 4, 4)), AFFINE), small)
    line = error_of(capsys, arguments({**scan, "label": small}))
    assert "10x8x4" in line
    assert "4x4x4" in line
    scan["labels_json"].write_text("{")
    assert "JSON" in error_of(capsys, arguments(scan))
    scan["output"].mkdir()
    (scan["output"] / "thesis.txt").write_text("x")
    assert "not a slice data set" in error_of(capsys, arguments(scan))


def test_a_real_scan_shows_the_liver_at_the_left(shared_data: Path, tmp_path: Path):
    case = shared_data / "amos_0018"
    argv = ["--image", case / "image.nii.gz", "--label", case / "label.nii.gz", "--labels-json", case / "labels.json"]
    assert main([*map(str, argv), "--output", str(tmp_path / "out")]) == 0
    reader = SliceReader(tmp_path / "out")
    assert len(reader.targets) == 15

    def centre(target: str) -> np.ndarray:
        largest = max(reader.select(targets=[target]), key=lambda row: row.area_fraction)
        return np.argwhere(read_mask(largest)).mean(axis=0)

    assert centre("liver")[1] < 256 < centre("spleen")[1]
    assert centre("right kidney")[1] < centre("left kidney")[1]
    assert centre("stomach")[0] < centre("left kidney")[0]  # anterior is up


def test_a_real_dicom_folder_leaves_no_identity(shared_data: Path, tmp_path: Path):
    case = shared_data / "ts_ct_dicom"
    argv = ["--image", case / "dicom", "--label", case / "label.nii.gz", "--labels-json", case / "labels.json"]
    assert main([*map(str, argv), "--output", str(tmp_path / "out"), "--key", "k"]) == 0
    reader = SliceReader(tmp_path / "out")
    (volume_id,) = reader.volumes
    assert volume_id.startswith("scan-")
    assert not [name for name, content in contents(tmp_path / "out").items() if b"1.3.12.2" in content]
    liver = max(reader.select(targets=["liver"]), key=lambda row: row.area_fraction)
    assert np.argwhere(read_mask(liver)).mean(axis=0)[1] < 256
