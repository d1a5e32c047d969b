"""``boltzformer segment case.npz``: prompts from the file, labels by its keys; and protocols from the command line."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from boltzformer_monai.cli import main
from boltzformer_monai.data.windows import NAMED_WINDOWS
from boltzformer_monai.io.read import read_volume
from tests.io.test_challenge_npz import Malicious, case, write

PROMPTS = {"7": "left kidney in abdominal CT", "3": "the largest lung nodule in CT", "instance_label": 0}


def run(*arguments: object) -> int:
    return main(["segment", *map(str, arguments)])


def brain(path: Path, **arrays: Any) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 50), np.uint8)
    return write(path, **{"imgs": noise, "text_prompts": np.array(PROMPTS, object), **arrays})


def reference(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


@pytest.fixture(scope="module")
def biomedparse(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, which names the protocol itself."""
    content = torch.load(checkpoint, weights_only=True)
    content["description"]["data"] |= {"protocol": "biomedparse", "targets": []}
    content["model"]["decoder.presence.layers.2.bias"] += 1.0  # in every slice
    path = tmp_path_factory.mktemp("biomedparse") / "model.pt"
    torch.save(content, path)
    return path


def test_a_case_becomes_its_segmentation(biomedparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = brain(tmp_path / "case.npz")
    assert run(image, "--checkpoint", biomedparse, "--output", tmp_path / "segs.npz") == 4  # a side is doubtful
    found = reference(tmp_path / "segs.npz")
    assert sorted(found) == ["segs", "spacing"]
    assert (found["segs"].shape, found["segs"].dtype) == ((4, 40, 50), np.uint8)
    assert found["spacing"].tolist() == [0.7, 0.8, 2.5]
    assert set(np.unique(found["segs"])) <= {0, 3, 7}
    assert len(np.unique(found["segs"])) > 1
    manifest = json.loads((tmp_path / "segs.json").read_text())
    assert [(each["prompt"], each["label"]) for each in manifest["prompts"]] == [
        (PROMPTS["3"], 3), (PROMPTS["7"], 7),
    ]  # fmt: skip
    for each in manifest["prompts"]:
        assert each["label_voxels"] == int((found["segs"] == each["label"]).sum())
    assert manifest["protocol"] == "biomedparse"
    assert manifest["protocol_settings"] == {"suppress": True, "orientation": "stored"}
    assert manifest["window"] == {"kind": "stored"}
    assert {each["kind"] for each in manifest["caveats"]} >= {"laterality", "words not understood"}
    said = json.loads(capsys.readouterr().out)
    assert said["voxels"] == {each["prompt"]: each["label_voxels"] for each in manifest["prompts"]}


def test_prompts_of_the_command_count_instead(biomedparse: Path, tmp_path: Path) -> None:
    image = brain(tmp_path / "case.npz")
    out = tmp_path / "segs.npz"
    assert run(image, "--prompts", "liver", "spleen", "--checkpoint", biomedparse, "--output", out) == 4  # one gave way
    assert set(np.unique(reference(out)["segs"])) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("prompt", "more"),
    [
        ("Tumor in breast ultrasound", ()),
        ("Lesion in whole-body PET", ()),
        ("lesion", ("--modality", "PET")),
        ("lesion", ("--modality", "other")),
    ],
)
def test_pet_and_ultrasound_are_segmented_like_ct(
    biomedparse: Path, tmp_path: Path, prompt: str, more: tuple[str, ...]
) -> None:
    """Grey values are the file's own, so that the modality changes no number."""
    image = brain(tmp_path / "case.npz", text_prompts=np.array({"5": prompt}, object))
    assert run(image, *more, "--checkpoint", biomedparse, "--output", tmp_path / "segs.npz") == 0
    like_ct = ("--prompts", prompt, "--modality", "CT")
    as_ct = brain(tmp_path / "ct.npz", text_prompts=np.array({"5": "lesion"}, object))
    assert run(as_ct, *like_ct, "--checkpoint", biomedparse, "--output", tmp_path / "as_ct.npz") == 0
    found, expected = (reference(tmp_path / name)["segs"] for name in ("segs.npz", "as_ct.npz"))
    assert 0 < (found == 5).sum() < found.size
    np.testing.assert_array_equal(found == 5, expected == 1)
    manifest = json.loads((tmp_path / "segs.json").read_text())
    assert "another modality" not in {each["kind"] for each in manifest["caveats"]}


def test_a_model_that_was_trained_on_ct_alone_warns(checkpoint: Path, tmp_path: Path) -> None:
    image = brain(tmp_path / "case.npz", text_prompts=np.array({"1": "lesion in PET"}, object))
    more = ("--checkpoint", checkpoint, "--protocol", "biomedparse", "--output", tmp_path / "segs.npz")
    assert run(image, *more) == 4
    texts = {each["kind"]: each["text"] for each in json.loads((tmp_path / "segs.json").read_text())["caveats"]}
    assert "on another modality its masks mean little" in texts["another modality"]


def test_the_orientation_is_a_setting(biomedparse: Path, tmp_path: Path) -> None:
    image = brain(tmp_path / "case.npz")
    flipped = brain(tmp_path / "flipped.npz", imgs=np.load(image)["imgs"][:, ::-1])
    more = ("--prompts", "liver", "--checkpoint", biomedparse)
    maps = {}
    for name, place, settings in (("a", image, ["orientation=flipped", "suppress=False"]), ("b", flipped, [])):
        chosen = ("--protocol-settings", *settings) if settings else ()
        assert run(place, *more, *chosen, "--output", tmp_path / f"{name}.npz") == 0
        maps[name] = reference(tmp_path / f"{name}.npz")["segs"]
    np.testing.assert_array_equal(maps["a"], maps["b"][:, ::-1])
    assert json.loads((tmp_path / "a.json").read_text())["protocol_settings"]["suppress"] is False


def test_a_scan_with_an_affine_takes_the_protocol_too(checkpoint: Path, tmp_path: Path) -> None:
    """The same voxels in NIfTI, and its labels as .npz: in the order of the file, on the scan's grid as NIfTI."""
    grey = np.random.default_rng(0).integers(0, 256, (50, 40, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(grey, np.diag([0.7, 0.8, 2.5, 1.0])), tmp_path / "scan.nii.gz")
    more = ("--prompts", "spleen", "--modality", "CT", "--window", "127.5", "255", "--checkpoint", checkpoint,
            "--protocol", "biomedparse")  # fmt: skip
    for name in ("a.nii.gz", "b.npz"):
        assert run(tmp_path / "scan.nii.gz", *more, "--output", tmp_path / name) in (0, 4)
    written = nibabel.load(tmp_path / "a.nii.gz")
    found = reference(tmp_path / "b.npz")
    np.testing.assert_array_equal(np.asarray(written.dataobj).transpose(2, 1, 0), found["segs"])
    np.testing.assert_allclose(written.affine, np.diag([0.7, 0.8, 2.5, 1.0]), atol=1e-6)
    np.testing.assert_allclose(found["spacing"], [0.7, 0.8, 2.5], atol=1e-6)
    as_case = brain(tmp_path / "case.npz", imgs=grey.astype(np.uint8).transpose(2, 1, 0))
    same = ("--prompts", "spleen", "--checkpoint", checkpoint, "--protocol", "biomedparse")
    assert run(as_case, *same, "--output", tmp_path / "c.npz") in (0, 4)
    np.testing.assert_array_equal(reference(tmp_path / "c.npz")["segs"], found["segs"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--output": "segs.nii.gz"}, "does not say where the patient's left is"),
        ({"--output": "segs.dcm"}, "does not say where the patient's left is"),
        ({"--output": "segs", "--masks": None}, "does not say where the patient's left is"),
        ({"--uncertainty": "3"}, "holds a label map alone"),
        ({"--window": "lung"}, "windowed already"),
        ({"--protocol": "boltzformer"}, "does not say where the patient's left is"),
        ({"--protocol-settings": "orientation=display"}, "does not say where the patient's left is"),
        ({"--protocol-settings": "orientation=dispaly"}, "did you mean 'display'"),
        ({"--protocol-settings": "display"}, "takes NAME=VALUE"),
        ({"--protocol": "biomed"}, "did you mean 'biomedparse'"),
        ({"--planes": ["axial", "coronal"]}, "along one axis"),
        ({"--in-plane": "tiles"}, "whole slices"),
        ({"--modality": "MR"}, "but MR was asked for"),
        ({"--series": "1.2.3"}, "--series chooses in a DICOM folder"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(
    biomedparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    image = brain(tmp_path / "case.npz")
    options = {"--checkpoint": biomedparse, "--output": "segs.npz", **change}
    options["--output"] = tmp_path / str(options["--output"])
    flat = [part for name, value in options.items() for part in ([name, *_values(value)])]
    assert run(image, *flat) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("segs*"))


def test_a_case_that_is_not_there_is_named(
    biomedparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "case.npz", "--checkpoint", biomedparse, "--output", tmp_path / "segs.npz") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'case.npz'}: no such file or folder; ")


def _values(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def test_a_hostile_case_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, model = tmp_path / "made", tmp_path / "model.pt"
    model.write_bytes(b"never opened")
    hostile = case(tmp_path / "case.npz", pickle.dumps(np.array({"1": Malicious(made)}, object)))
    for more in ((), ("--prompts", "liver")):
        assert run(hostile, *more, "--checkpoint", model, "--output", tmp_path / "segs.npz") == 2
        error = capsys.readouterr().err
        assert "no dict of texts" in error
        assert error.count("\n") == 1
    assert not made.exists()
    assert not (tmp_path / "segs.npz").exists()
    silent = brain(tmp_path / "silent.npz", text_prompts=None)
    assert run(silent, "--checkpoint", model, "--output", tmp_path / "segs.npz") == 2
    assert "no prompt given" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["case.npz", "model.pt", "silent.npz"]


ORGANS = (
    "spleen", "kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "inferior vena cava", "pancreas",
    "adrenal gland", "duodenum", "bladder", "prostate", "heart", "lung",
)  # fmt: skip


@pytest.mark.slow
def test_fifteen_prompts_on_a_real_scan_as_nifti_and_as_case(
    shared_data: Path, biomedparse: Path, tmp_path: Path
) -> None:
    """The whole scan in its window by the command, and windowed by hand as a case: the same labels."""
    image = shared_data / "ts_ct_3mm" / "image.nii.gz"
    scan = nibabel.load(image)
    volume = read_volume(image, modality="CT")
    prompts = {str(2 * number): f"{organ} in abdominal CT" for number, organ in enumerate(ORGANS, 1)}
    more = ("--checkpoint", biomedparse, "--protocol-settings", "suppress=false")
    out = tmp_path / "out.nii.gz"
    window = ("--modality", "CT", "--window", "abdomen")
    assert run(image, "--prompts", *prompts.values(), *more, *window, "--output", out) == 0
    labels = nibabel.load(out)
    np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-4)
    found = np.asarray(labels.dataobj)
    assert found.shape == scan.shape
    assert len(np.unique(found)) > 2
    grey = NAMED_WINDOWS["abdomen"].apply(volume.array).transpose(2, 1, 0)
    spacing = np.array(volume.spacing)
    write(tmp_path / "case.npz", imgs=grey, spacing=spacing, text_prompts=np.array(prompts, object))
    assert run(tmp_path / "case.npz", *more, "--output", tmp_path / "segs.npz") == 0
    segs = reference(tmp_path / "segs.npz")
    np.testing.assert_array_equal(segs["segs"], 2 * found.transpose(2, 1, 0))
    np.testing.assert_allclose(segs["spacing"], spacing, rtol=1e-12)
