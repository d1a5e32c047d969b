"""``boltzformer segment`` with a model of BiomedParse v2's form: its own decoder kind and protocol, all made small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_nifti
from tests.models.small_biomedparse import LICENCE, write_small_biomedparse

ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "postcava",
    "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_biomedparse(tmp_path_factory.mktemp("models") / "small_v2")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    write_phantom_nifti(*make_phantom("abdomen", seed=1, size=(48, 40, 5)), folder, "scan")
    return folder / "scan.nii.gz"


def segment(image: Path, model: Path, output: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and the manifest or an empty one."""
    code = main(["segment", str(image), "--checkpoint", str(model), "--output", str(output), *more])
    manifest = output.with_name(output.name.removesuffix(".nii.gz") + ".json")
    return code, json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}


def kinds(manifest: dict[str, Any]) -> set[str]:
    return {each["kind"] for each in manifest["caveats"]}


@pytest.mark.slow
def test_fifteen_prompts_on_a_whole_real_scan(shared_data: Path, model: Path, tmp_path: Path) -> None:
    image, out = shared_data / "amos_0018" / "image.nii.gz", tmp_path / "out.nii.gz"
    more = ("--prompts", *ORGANS, "--modality", "CT", "--preview", str(tmp_path / "out.png"))
    code, manifest = segment(image, model, out, *more)
    assert code == 4  # sides, and prompts that gave way to others
    labels = nibabel.load(out)
    assert labels.shape == (512, 512, 63)
    np.testing.assert_allclose(labels.affine, nibabel.load(image).affine, atol=1e-4)
    values, counts = np.unique(np.asarray(labels.dataobj), return_counts=True)
    assert values[0] == 0
    assert len(values) > 1
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert {each["label"]: each["label_voxels"] for each in manifest["prompts"] if each["label_voxels"]} == {
        value: count for value, count in found.items() if value
    }
    assert (manifest["protocol"], manifest["licence"]) == ("biomedparse", LICENCE.as_dict())
    assert manifest["window"] is None
    assert kinds(manifest) >= {"laterality", "no vocabulary"}
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_a_prompt_that_gave_way_is_told(scan: Path, model: Path, tmp_path: Path) -> None:
    more = ("--prompts", "liver", "spleen", "aorta", "--modality", "CT")
    code, manifest = segment(scan, model, tmp_path / "out.nii.gz", *more)
    lost = [each for each in manifest["caveats"] if each["kind"] == "suppressed"]
    assert lost
    assert code == 4
    for each in lost:
        assert f"{each['prompt']!r} was left out in" in each["text"]
    absent = {each["prompt"] for each in manifest["prompts"] if not each["found"]}
    assert absent <= {each["prompt"] for each in lost}
    settings = ("--protocol-settings", "suppress=false")
    code, manifest = segment(scan, model, tmp_path / "all.nii.gz", *more, *settings)
    assert code == 0
    assert all(each["found"] for each in manifest["prompts"])
    assert "suppressed" not in kinds(manifest)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--modality", "CT"], "no prompt given"),
        (["--prompts", "liver", "--modality", "PET"], "modality 'PET' is another than CT and MR"),
        (["--prompts", "liver", "--modality", "US"], "modality 'US' is another than CT and MR"),
        (["--prompts", "liver"], "does not say whether it is CT or MR; give --modality"),
        (["--prompts", "no liver", "--modality", "CT"], "'no' is not understood"),
        (["--prompts", "liver", "--modality", "CT", "--protocol", "biomed"], "did you mean 'biomedparse'"),
    ],
)
def test_a_mistake_is_one_line(
    scan: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    code, manifest = segment(scan, model, tmp_path / "out.nii.gz", *more)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: the weights of ")]
    assert code == 2
    assert len(lines) == 1
    assert words in lines[0]
    assert not manifest


@pytest.mark.parametrize(
    ("more", "doubtful", "kind"),
    [
        (["--prompts", "livre", "--modality", "CT"], False, "no vocabulary"),  # nobody knows its words
        (["--prompts", "left kidney", "--modality", "CT"], True, "laterality"),
        (["--prompts", "liver", "--modality", "MR"], False, "no vocabulary"),
        (["--prompts", "liver", "--modality", "CT", "--protocol", "boltzformer"], False, "another protocol"),
    ],
)
def test_what_is_done_all_the_same_is_told(
    scan: Path, model: Path, tmp_path: Path, more: list[str], doubtful: bool, kind: str
) -> None:
    code, manifest = segment(scan, model, tmp_path / "out.nii.gz", *more)
    assert code == (4 if doubtful else 0)
    assert kind in kinds(manifest)
    assert ("another protocol" in kinds(manifest)) == ("--protocol" in more)
