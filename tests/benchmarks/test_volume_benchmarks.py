"""The benchmarks of volumes on the smallest networks and scans: they run, and their figures mean what they say."""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import presence, uncertainty, volume
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.io.read import write_label_map
from boltzformer_monai.networks import create_boltzformer, network_config
from boltzformer_monai.networks.weights import Description

SIZE = (48, 48, 4)


def _segmenter(**data: object) -> VolumeSegmenter:
    torch.manual_seed(0)
    config = network_config("tiny", image_size=64, mask_bias=0.0)
    network = create_boltzformer(config).eval()
    return VolumeSegmenter(network, Description(config, {"plane": "axial", "targets": [], **data}))


def test_ours_against_the_usual_way(tmp_path: Path) -> None:
    image, _ = make_phantom("abdomen", seed=0, size=SIZE)
    path = tmp_path / "scan.nii.gz"
    nib.Nifti1Image(image.array, image.affine).to_filename(path)
    arguments = argparse.Namespace(image=path, preset="tiny", size=64, slices=2, rounds=1, threads=1, rss=3)
    rows = {row["name"]: row["value"] for row in volume.times(arguments)}
    usual = rows["seconds_per_slice_and_prompt_usual"] * len(volume.ORGANS)
    assert rows["prompts15_vs_usual"] == pytest.approx(usual / rows["seconds_per_slice_ours"])
    assert volume.segment_once(arguments) > 50  # MiB of a process with torch in it
    assert len(set(volume.prompts(60))) == 60


def test_every_prompt_of_a_phantom_is_a_case() -> None:
    small = _segmenter(presence=PresenceRule(high=0.9999, low=0.9999).as_dict())
    phantom, sizes = presence.make_phantom, []

    def little(kind, *, seed, lesion):
        sizes.append(lesion)
        return phantom(kind, seed=seed, size=SIZE, lesion=lesion)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presence, "make_phantom", little)
        cases = presence.cases_of(small, "abdomen", "abdominal", 1)
    assert sizes == [False]
    assert {case.target for case in cases if not case.on.present} >= {"heart", "lung nodule", "liver lesion"}
    assert not any(case.on.predicted for case in cases)  # no head is that certain


def test_a_summary_counts_absent_and_present_cases_apart() -> None:
    empty, box = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    box[:2] = True

    def case(target: str, truth: np.ndarray, on: np.ndarray, off: np.ndarray) -> presence.Case:
        measured = [presence.Measured.of(mask, truth, (10.0, 10.0, 10.0)) for mask in (on, off)]
        return presence.Case("abdomen", target, *measured)

    cases = [
        case("liver lesion", empty, empty, box),
        case("heart", empty, box, box),
        case("liver", box, box, box),
        case("spleen", box, empty, box),
    ]
    rows = {row["name"]: row["value"] for row in presence.summarise(cases)}
    assert (rows["absent_lesions_cases"], rows["absent_other_anatomy_cases"]) == (1, 1)
    assert (rows["not_found_absent_head_on"], rows["not_found_absent_head_off"]) == (0.5, 0)
    assert rows["not_found_absent_lesions_head_on"] == 1
    assert rows["false_positive_ml_head_off"] == pytest.approx(64.0)
    assert rows["false_positive_volume_falls"] == pytest.approx(2.0)
    assert rows["sensitivity_cases_head_on"] == 0.5
    assert rows["loss_sensitivity_cases"] == 0.5
    assert rows["loss_right_voxels"] == 0.5


def test_uncertainty_is_ranked_against_the_error(tmp_path: Path) -> None:
    image, label = make_phantom("abdomen", seed=0, size=SIZE)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    nib.Nifti1Image(image.array, image.affine).to_filename(tmp_path / "imagesTr" / "one.nii.gz")
    write_label_map(label.array, label, tmp_path / "labelsTr" / "one.nii.gz")

    class Reader:
        rows = [
            argparse.Namespace(
                scan="one", modality="CT", target=name, prompts=(f"{name} in CT",), label_values=(value,)
            )
            for name, value in (("liver", 1), ("stomach", 77))
        ]

    cases = uncertainty.cases_of(_segmenter(), Reader(), tmp_path, "one", 2)
    assert [case.target for case in cases] == ["liver"]  # what is absent has no error to rank
    assert -1 <= cases[0].spearman <= 1
    assert 0 <= cases[0].dice < 1
    assert 0 <= cases[0].confidence <= 1
