from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom, write_phantom_nifti
from boltzformer_monai.io.read import read_label_map


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    image, label = make_phantom("abdomen", seed=1, size=(48, 48, 5))
    write_phantom_nifti(image, label, folder, "scan")
    write_phantom_dicom(image, folder / "series", seed=1)
    return folder


def _run(*arguments: object) -> int:
    return main(["segment", *map(str, arguments)])


@pytest.mark.parametrize(("name", "output"), [("scan.nii.gz", "out.nii.gz"), ("series", "new/out.nii.gz")])
def test_a_scan_becomes_a_label_map_on_its_grid(
    scans: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, output: str
) -> None:
    out = tmp_path / output
    code = _run(scans / name, "--prompts", "left kidney", "lung nodule", "--checkpoint", checkpoint, "--output", out)
    assert code == 0
    labels, image = nibabel.load(out), nibabel.load(scans / "scan.nii.gz")
    np.testing.assert_allclose(np.abs(labels.affine), np.abs(image.affine), atol=1e-3)
    if name == "scan.nii.gz":
        assert labels.shape == image.shape
        np.testing.assert_allclose(labels.affine, image.affine, atol=1e-5)
    found = json.loads(capsys.readouterr().out)
    values = np.asarray(labels.dataobj)
    counts = {"left kidney": int((values == 1).sum()), "lung nodule": int((values == 2).sum())}
    assert found["voxels"] == counts
    assert sum(counts.values()) > 0


def test_dicom_and_nifti_give_the_same_mask(scans: Path, checkpoint: Path, tmp_path: Path) -> None:
    maps = []
    for name in ("scan.nii.gz", "series"):
        out = tmp_path / f"{name}.nii.gz"
        assert _run(scans / name, "--prompts", "left kidney", "--checkpoint", checkpoint, "--output", out) == 0
        canonical = nibabel.as_closest_canonical(nibabel.load(out))
        maps.append(np.asarray(canonical.dataobj))
    np.testing.assert_array_equal(maps[0], maps[1])


@pytest.mark.parametrize("ending", [".dcm", ".nii.gz"])
def test_report_of_a_series(scans: Path, checkpoint: Path, tmp_path: Path, ending: str) -> None:
    import pydicom
    from highdicom.sr import srread

    out, prompts = tmp_path / f"out{ending}", ("left kidney", "lung nodule")
    call = [scans / "series", "--prompts", *prompts, "--checkpoint", checkpoint, "--output", out, "--presence", "off"]
    assert _run(*call, "--report", tmp_path / "a.sr.dcm") == 0
    lesions = [
        (f"{each['prompt']} {lesion['number']}", lesion["volume_ml"], lesion["confidence"])
        for each in json.loads((tmp_path / "out.json").read_text())["prompts"]
        for lesion in each["lesions"]
    ]
    content = srread(tmp_path / "a.sr.dcm").content
    groups = [*content.get_volumetric_roi_measurement_groups(), *content.get_image_measurement_groups()]
    read = [
        (group.tracking_identifier, group.get_measurements()[0].value, group.get_measurements()[-1].value)
        for group in groups
    ]
    assert read
    assert read == [(name, ml, pytest.approx(100 * confidence, rel=1e-5)) for name, ml, confidence in lesions]
    if ending == ".dcm":
        uid = pydicom.dcmread(out, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
        assert {group.referenced_segment.referenced_sop_instance_uid for group in groups} == {uid}
    assert _run(*call, "--report", tmp_path / "a.html") == 0
    page = (tmp_path / "a.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert page.count("<tr><td data-name") == len(lesions)


def test_a_report_is_of_one_scan(
    scans: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes((scans / "scan.nii.gz").read_bytes())
    call = ["--prompts", "liver", "--checkpoint", checkpoint, "--output", tmp_path / "out"]
    assert _run(tmp_path / "in", *call, "--report", tmp_path / "a.html") == 2
    assert "--report is of one scan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [(), ("--modality", "CT")])
def test_a_pet_is_no_ct_whatever_the_option(
    scans: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    import pydicom

    for path in (scans / "series").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.Modality = "PT"
        (tmp_path / "pet").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "pet" / path.name)
    out = tmp_path / "out.nii.gz"
    arguments = (tmp_path / "pet", "--prompts", "liver", "--checkpoint", checkpoint, "--output", out, *options)
    assert _run(*arguments) == 2
    assert "say PT, which is neither CT nor MR" in capsys.readouterr().err
    assert not out.exists()
    assert _run(*arguments[:7], "--modality", "PET") == 2
    assert "modality 'PET' is another than CT and MR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": "nothing.nii.gz"}, "nothing.nii.gz"),
        ({"checkpoint": "nothing.pt"}, "nothing.pt"),
        ({"output": "mask.png"}, ".nii.gz"),
        ({"prompts": " "}, "prompt"),
        ({"prompts": "kidney " * 2000}, "longer than"),
        ({"window": "lunge"}, "lung"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    scans: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    said: str,
) -> None:
    given = {
        "prompts": "left kidney",
        "checkpoint": checkpoint,
        "output": tmp_path / "out.nii.gz",
        **{key: value for key, value in change.items() if key != "image"},
    }
    flags = [part for key, value in given.items() for part in (f"--{key}", value)]
    assert _run(scans / change.get("image", "scan.nii.gz"), *flags) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert said in stderr
    assert not (tmp_path / "out.nii.gz").exists()


def test_the_scan_is_never_overwritten(
    scans: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes((scans / "scan.nii.gz").read_bytes())
    link = tmp_path / "link.nii.gz"
    link.symlink_to(scan)
    for output in (scan, link):
        assert _run(scan, "--prompts", "liver", "--checkpoint", checkpoint, "--output", output) == 2
        assert "it is an input" in capsys.readouterr().err
    assert scan.read_bytes() == (scans / "scan.nii.gz").read_bytes()


def test_a_prompt_that_nobody_trained_is_answered_with_a_caveat_and_an_exit_code(
    scans: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.nii.gz"
    given = ["--checkpoint", checkpoint, "--output", out]
    assert _run(scans / "scan.nii.gz", "--prompts", "left kidney in CT", "flux capacitor", *given) == 4
    assert ["flux capacitor" in message for message in caplog.messages if "names no target" in message] == [True]
    caveats = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["caveats"]
    assert [each["prompt"] for each in caveats if each["in_doubt"]] == ["flux capacitor"]
    assert json.loads(capsys.readouterr().out)["in_doubt"] is True
    assert _run(scans / "scan.nii.gz", "--prompts", "left kidney in CT", *given) == 0
    caveats = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["caveats"]
    assert [each["kind"] for each in caveats] == ["no thresholds", "assumed modality"]


def test_a_negation_is_refused_before_a_scan_is_read(
    scans: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--prompts", "no left kidney", "--checkpoint", checkpoint, "--output", tmp_path / "out.nii.gz"]
    with monkeypatch.context() as patch:
        patch.setattr("boltzformer_monai.cli.segment_jobs.read_volume", lambda *_, **__: pytest.fail("too late"))
        assert _run(scans / "scan.nii.gz", *given) == 2
    stderr = capsys.readouterr().err
    assert "'no' is not understood" in stderr
    assert stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert _run(scans / "scan.nii.gz", *given, "--literal") == 4
    (prompt,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["prompts"]
    assert prompt["shown"] == "no left kidney"
    assert "not understood" in prompt["caveats"][0]


def test_a_spelling_gives_the_mask_of_the_name(scans: Path, checkpoint: Path, tmp_path: Path) -> None:
    maps = []
    for name in ("left kidney", "Kidney, left", "linke Niere", "please segment the left kindey"):
        out = tmp_path / f"{len(maps)}.nii.gz"
        assert _run(scans / "scan.nii.gz", "--prompts", name, "--checkpoint", checkpoint, "--output", out) == 0
        maps.append(read_label_map(out).array)
        (prompt,) = json.loads(out.with_name(f"{len(maps) - 1}.json").read_text(encoding="utf-8"))["prompts"]
        assert (prompt["prompt"], prompt["shown"]) == (name, "left kidney")
        assert [f"{name!r} understood as 'left kidney'" in text for text in prompt["caveats"]] == [True] * (
            len(maps) > 1
        )
    assert maps[0].any()
    assert all((maps[0] == each).all() for each in maps[1:])


@pytest.mark.parametrize("arguments", [["--precision", "foo"], ["--prompts"], ["--colour", "red"]])
def test_wrong_arguments_are_one_line_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = ["scan.nii.gz", "--prompts", "liver", "--checkpoint", "m.pt", "--output", "o.nii.gz", *arguments]
    assert _run(*given) == 2
    stderr = capsys.readouterr().err
    assert (stderr.count("\n"), stderr.startswith("error: ")) == (1, True)


def test_a_truncated_checkpoint_and_a_truncated_scan(
    scans: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = tmp_path / "model.pt"
    torn.write_bytes(checkpoint.read_bytes()[:5000])
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes((scans / "scan.nii.gz").read_bytes()[:5000])
    for image, weights in ((scans / "scan.nii.gz", torn), (scan, checkpoint)):
        code = _run(image, "--prompts", "liver", "--checkpoint", weights, "--output", tmp_path / "out.nii.gz")
        stderr = capsys.readouterr().err
        assert (code, stderr.count("\n")) == (2, 1)
        assert str(tmp_path) in stderr
