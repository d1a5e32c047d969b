from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import BoltzFormerError, ConfigError, DatasetError, VolumeError
from boltzformer_monai.slicing.cases import Case, LabelFile
from tests.slicing.folder_cases import CT_NAMES, listed, write_names
from tests.slicing.scan_files import write_image, write_label


def test_images_and_labels_of_equal_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_image(tmp_path / "images" / "anna.nii.gz")
    write_image(tmp_path / "images" / "bert.nii")
    (tmp_path / "images" / "._anna.nii.gz").write_bytes(b"macOS")
    (tmp_path / "images" / "notes.txt").write_text("x")
    write_label(tmp_path / "labels" / "anna.nrrd", 1, 2)
    write_label(tmp_path / "labels" / "carla.nii.gz", 1)
    write_names(tmp_path)
    cases = listed(tmp_path)
    assert set(cases) == {"anna", "bert"}
    assert cases["anna"].annotation == LabelFile(tmp_path / "labels" / "anna.nrrd", CT_NAMES["labels"])
    assert cases["bert"].annotation is None
    assert {(case.modality, case.site) for case in cases.values()} == {("CT", "abdomen")}
    drawn = cases["anna"].annotation.draw_on(cases["anna"].read_image())
    assert np.unique(drawn.volume.array).tolist() == [0, 1, 2]
    assert "1 labels have no image (carla" in caplog.text


def test_a_site_counts_more_than_the_file_a_modality_does_not(tmp_path: Path):
    write_image(tmp_path / "images" / "a.nii.gz")
    write_names(tmp_path)
    case = listed(tmp_path, modality="CTA", site="leg")["a"]
    assert (case.modality, case.site) == ("CT", "leg")
    with pytest.raises(VolumeError, match=r"labels\.json: it says CT, but MR was asked for; leave the modality out"):
        listed(tmp_path, modality="MR")
    write_names(tmp_path, {"labels": CT_NAMES["labels"]})
    assert listed(tmp_path, modality="MR")["a"].modality == "MR"


def test_a_labels_json_of_another_modality_than_asked_for_harms_only_its_scan(tmp_path: Path):
    for patient, spoken in (("anna", "CT"), ("bert", "MR"), ("carla", "")):
        write_image(tmp_path / patient / "image.nii.gz")
        write_label(tmp_path / patient / "label.nii.gz", 1, 2)
        write_names(tmp_path / patient, {**CT_NAMES, "modality": spoken})
    cases = listed(tmp_path, modality="CT")
    assert [cases[name].modality for name in ("anna", "carla")] == ["CT", "CT"]
    with pytest.raises(DatasetError, match=r"bert/labels\.json: it says MR, but CT was asked for"):
        cases["bert"].annotation.draw_on(cases["anna"].read_image())


def test_the_manner_of_nnu_net(tmp_path: Path):
    for name in ("liver_001_0000", "liver_002_0000"):
        write_image(tmp_path / "imagesTr" / f"{name}.nii.gz")
    write_label(tmp_path / "labelsTr" / "liver_001.nii.gz", 1)
    write_image(tmp_path / "imagesTs" / "liver_0009.nii.gz")  # a number of a patient, not of a channel
    cases = listed(tmp_path)
    assert set(cases) == {"liver_001", "liver_002", "liver_0009"}
    assert cases["liver_001"].annotation.path.name == "liver_001.nii.gz"
    assert cases["liver_001"].image.name == "liver_001_0000.nii.gz"
    assert cases["liver_001"].channel is None


def test_channels_in_files_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for number in range(2):
        write_image(tmp_path / "imagesTr" / f"p_{number:04d}.nii.gz", seed=number)
    write_image(tmp_path / "imagesTr" / "q_0000.nii.gz")
    write_label(tmp_path / "labelsTr" / "p.nii.gz", 1)
    with pytest.raises(ConfigError, match="one of 2 channels of a scan; choose one with --channel"):
        listed(tmp_path)
    cases = listed(tmp_path, channel=1)
    assert "q: has no channel 1, only 0" in caplog.text
    assert cases["p"].image.name == "p_0001.nii.gz"
    with pytest.raises(VolumeError, match=r"q_0001\.nii\.gz"):
        cases["q"].read_image()


def test_a_channel_of_four_dimensional_files(tmp_path: Path):
    import nibabel as nib

    path = write_image(tmp_path / "images" / "a.nii.gz", channels=3)
    image = listed(tmp_path, channel=2, modality="MR")["a"].read_image()
    np.testing.assert_array_equal(image.array, np.asarray(nib.load(path).dataobj)[..., 2])
    assert image.modality == "MR"
    with pytest.raises(VolumeError, match="has no channel 7, only 0 to 2"):
        listed(tmp_path, channel=7, modality="MR")["a"].read_image()


@pytest.mark.parametrize("channel", [None, 1])
def test_a_tilted_scan_is_treated_as_chosen_whatever_the_channel(tmp_path: Path, channel: int | None):
    import nibabel as nib

    path = write_image(tmp_path / "images" / "a.nii.gz", channels=0 if channel is None else 2)
    sheared = np.diag([-0.8, -0.8, 5.0, 1.0])
    sheared[1, 2] = 1.0
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), sheared), path)
    case = listed(tmp_path, channel=channel, modality="CT")["a"]
    with pytest.raises(VolumeError, match="gantry tilt") as caught:
        case.read_image()
    assert caught.value.reason == "gantry tilt"
    kept = case.read_image(tilt="keep")
    np.testing.assert_allclose(kept.affine, sheared, atol=1e-6)
    assert [caveat.kind for caveat in kept.caveats] == ["gantry tilt"]
    assert case.read_image(tilt="resample").affine[1, 2] == pytest.approx(0)


def test_a_folder_for_each_scan_with_names_of_its_own_or_common_ones(tmp_path: Path):
    for patient in ("anna", "bert/ct1", "carla"):
        write_image(tmp_path / patient / "image.nii.gz")
    write_label(tmp_path / "anna" / "label.nii.gz", 1)
    write_label(tmp_path / "bert" / "ct1" / "Label.nrrd", 1, 2)
    write_names(tmp_path)
    write_names(tmp_path / "anna", {"modality": "MR", "site": "leg", "labels": {"1": "sarcoma"}})
    cases = listed(tmp_path)
    assert {name: (case.patient, case.modality, case.site) for name, case in cases.items()} == {
        "anna": ("anna", "MR", "leg"),
        "bert/ct1": ("bert", "CT", "abdomen"),
        "carla": ("carla", "CT", "abdomen"),
    }
    assert cases["anna"].annotation.names == {"1": "sarcoma"}
    assert cases["bert/ct1"].annotation.names == CT_NAMES["labels"]
    assert cases["carla"].annotation is None


def test_a_folder_that_is_one_scan(tmp_path: Path):
    write_image(tmp_path / "anna" / "scan.nii.gz")
    write_label(tmp_path / "anna" / "seg.nii.gz", 1)
    assert set(listed(tmp_path / "anna")) == {"anna"}


def test_one_broken_labels_json_harms_only_its_scan(tmp_path: Path):
    for patient in ("anna", "bert"):
        write_image(tmp_path / patient / "image.nii.gz")
        write_label(tmp_path / patient / "label.nii.gz", 1)
        write_names(tmp_path / patient)
    (tmp_path / "anna" / "labels.json").write_text("{")
    cases = listed(tmp_path)
    with pytest.raises(DatasetError, match=r"anna/labels\.json"):
        cases["anna"].annotation.draw_on(cases["anna"].read_image())
    assert cases["bert"].annotation.draw_on(cases["bert"].read_image()).names == CT_NAMES["labels"]
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(DatasetError, match=r"labels\.json"):
        listed(tmp_path)


def test_visits_of_one_patient_are_not_two_patients(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("P3/visit1/image.nii", "P3/visit2/image.nii", "P4/image.nii", "images/P5_a.nii"):
        write_image(tmp_path / name)
    patients = {name: case.patient for name, case in listed(tmp_path).items()}
    assert patients == {"P3/visit1": "P3", "P3/visit2": "P3", "P4": "P4", "P5_a": "P5_a"}
    warned = "4 scans are counted by file name or first folder as those of 3 patients; see --option patient_pattern="
    assert caplog.text.count(warned) == 1
    caplog.clear()
    cases = listed(tmp_path, patient_pattern=r"(P\d)")
    assert [case.patient for case in cases.values()] == ["P3", "P3", "P4", "P5"]
    assert "counted" not in caplog.text
    for pattern, match in (
        ("(", "not a regular"),
        ("P", "no group"),
        ("(P4)", r"no patient in 'P3/visit1/image\.nii'|images/P5"),
    ):
        with pytest.raises(ConfigError, match=match):
            listed(tmp_path, patient_pattern=pattern)


def test_scans_that_would_have_one_id_are_told_apart(tmp_path: Path):
    write_image(tmp_path / "x" / "images" / "a.nii.gz")
    write_image(tmp_path / "x" / "a" / "image.nii.gz")
    cases = listed(tmp_path)
    assert {name: str(case.image.relative_to(tmp_path)) for name, case in cases.items()} == {
        "x/a": "x/a/image.nii.gz",
        "x/images/a.nii.gz": "x/images/a.nii.gz",
    }


@pytest.mark.parametrize("content", [None, "readme.txt"])
def test_nothing_found_says_what_was_looked_for(tmp_path: Path, content: str | None):
    if content:
        (tmp_path / content).write_text("x")
    with pytest.raises(DatasetError, match=r"looked for images/ with labels/, folders .* and DICOM series"):
        listed(tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        listed(tmp_path / "nowhere")


def test_the_shared_scans_are_listed(shared_data: Path):
    cases = listed(shared_data)
    assert {"amos_0018", "lung1_001", "ts_mr_3mm"} <= cases.keys()
    assert (cases["ts_mr_3mm"].modality, cases["amos_0018"].site) == ("MR", "abdomen")
    small = cases["ts_ct_3mm"]
    drawn = small.annotation.draw_on(small.read_image())
    assert len(drawn.names) > 30
    series = [case for case in cases.values() if "ts_ct_dicom" in case.image.parts]
    assert len(series) == 1
    drawn = series[0].annotation.draw_on(series[0].read_image())
    assert "liver" in drawn.names.values()
    outcomes = [outcome(case) for case in cases.values() if case.series]
    assert sum(isinstance(each, tuple) for each in outcomes) >= 3
    assert not any("\n" in each for each in outcomes if isinstance(each, str))


def outcome(case: Case) -> tuple[int, ...] | str:
    try:
        return case.read_image().shape
    except BoltzFormerError as error:
        return str(error)
