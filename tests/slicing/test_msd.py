from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.prompts import find_target, prompts_for
from boltzformer_monai.errors import ConfigError, DatasetError, VolumeError
from boltzformer_monai.slicing.recipes import RECIPES, load_recipe
from tests.slicing.scan_files import make_task

msd = load_recipe("msd")


def test_every_recipe_loads_and_says_what_it_takes():
    for name in RECIPES:
        assert load_recipe(name).name == name
    with pytest.raises(ConfigError, match=r"unknown recipe 'kits'; known: amos22, "):
        load_recipe("kits")
    with pytest.raises(ConfigError, match=r"lidc has no option 'agrement'; did you mean 'agreement'"):
        load_recipe("lidc")(Path(), agrement=3)
    with pytest.raises(ConfigError, match=r"agreement '7' is none of 1, 2, 3, 4"):
        load_recipe("lidc")(Path(), agreement=7)


def test_a_decathlon_task(tmp_path: Path):
    cases = pickle.loads(pickle.dumps(msd(make_task(tmp_path / "Task03_Liver"))))
    assert [case.volume_id for case in cases] == [case.patient for case in cases] == ["liver_000", "liver_001"]
    assert {(case.modality, case.site, case.split, case.public) for case in cases} == {("CT", "liver", None, True)}
    drawn = cases[1].annotation.draw_on(cases[1].read_image())
    assert drawn.names == {"1": "liver", "2": "liver tumor"}
    assert np.unique(drawn.volume.array).tolist() == [0, 1, 2]
    assert cases[1].annotation.files() == (tmp_path / "Task03_Liver" / "labelsTr" / "liver_001.nii.gz",)


@pytest.mark.parametrize(
    ("task", "labels", "prompts"),
    [
        ("Task06_Lung", ("cancer",), ["lung tumor in chest CT"]),
        ("Task07_Pancreas", ("pancreas", "cancer"), ["pancreas in abdominal CT", "pancreas tumor in abdominal CT"]),
        (
            "Task08_HepaticVessel", ("Vessel", "Tumour"),
            ["hepatic vessel in abdominal CT", "liver tumor in abdominal CT"],
        ),
        ("Task10_Colon", ("colon cancer primaries",), ["colon tumor in abdominal CT"]),
    ],
)  # fmt: skip
def test_the_tasks_of_the_paper_name_their_targets(tmp_path: Path, task: str, labels: tuple[str, ...], prompts: list):
    (case, *_) = msd(make_task(tmp_path / task, task=task.split("_")[1], labels=labels))
    names = list(case.annotation.names.values())
    assert [prompts_for(name, site=case.site, modality=case.modality)[0] for name in names] == prompts
    assert all(find_target(name) for name in names)


def test_the_hippocampus_task_is_known_by_its_name(tmp_path: Path):
    labels = ("Anterior", "Posterior")
    case = msd(make_task(tmp_path / "x", task="Hippocampus", modality=("MRI",), labels=labels))[0]
    assert (case.modality, case.site) == ("MR", "brain")
    assert case.annotation.names == {"1": "anterior hippocampus", "2": "posterior hippocampus"}


def test_a_task_that_nobody_knows_keeps_its_names_and_needs_a_site(tmp_path: Path):
    task = make_task(tmp_path / "Task77_Toes", task="Toes", labels=("toe", "nail"))
    with pytest.raises(ConfigError, match="--site"):
        msd(task)
    case = msd(task, site="foot")[0]
    assert (case.site, case.annotation.names) == ("foot", {"1": "toe", "2": "nail"})


def test_a_task_of_several_modalities_needs_a_channel(tmp_path: Path):
    import nibabel as nib

    task = make_task(
        tmp_path / "Task05_Prostate", task="PROSTATE", modality=("T2", "ADC"), labels=("PZ", "TZ"), channels=2
    )
    with pytest.raises(ConfigError, match=r"2 channels \(0 T2, 1 ADC\); choose one with --channel"):
        msd(task)
    with pytest.raises(ConfigError, match="no channel 2"):
        msd(task, channel=2)
    case = msd(task, channel=1)[0]
    image = case.read_image()
    np.testing.assert_array_equal(image.array, np.asarray(nib.load(case.image).dataobj)[..., 1])
    np.testing.assert_allclose(image.affine, nib.load(case.image).affine)
    assert (image.modality, case.site) == ("MR", "prostate")


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *((name, "CT") for name in ("CT", "ct", "CTA", "CBCT", "CT scan")),
        *((n, "MR") for n in ("MRI", "T2", "t1gd", "ADC")),
    ],
)
def test_what_the_channel_is_called(tmp_path: Path, name: str, modality: str):
    assert msd(make_task(tmp_path / "Task03_Liver", modality=(name,)))[0].modality == modality


@pytest.mark.parametrize("name", ["PET", "US", "ultrasound", "X-ray", "PET-CT"])
def test_a_channel_that_is_neither_ct_nor_mr(tmp_path: Path, name: str):
    task = make_task(tmp_path / "Task03_Liver", modality=(name,))
    for given in (None, "CT", "MR"):
        with pytest.raises(ConfigError, match=rf"dataset\.json: modality '{name}' is another"):
            msd(task, modality=given)


@pytest.mark.parametrize(("name", "given"), [("CT", "MR"), ("CTA", "MRI"), ("MRI", "CT"), ("T2", "CT")])
def test_a_channel_of_another_modality_than_asked_for(tmp_path: Path, name: str, given: str):
    task = make_task(tmp_path / "Task03_Liver", modality=(name,))
    with pytest.raises(VolumeError, match=rf"dataset\.json: its channel '{name}' says (CT|MR), but (MR|CT) was asked"):
        msd(task, modality=given)


def test_a_channel_that_says_nothing_needs_a_modality(tmp_path: Path):
    for number, name in enumerate(("image", "")):
        task = make_task(tmp_path / str(number) / "Task03_Liver", modality=(name,))
        with pytest.raises(ConfigError, match=r"dataset\.json: .*(use CT or MR|add --modality)"):
            msd(task)
        assert msd(task, modality="MRI")[0].modality == "MR"


def test_an_unreadable_scan_fails_when_it_is_read_a_missing_file_at_once(tmp_path: Path):
    task = make_task(tmp_path / "Task03_Liver")
    broken = task / "imagesTr" / "liver_001.nii.gz"
    broken.write_bytes(broken.read_bytes()[:60])
    case = msd(task)[1]
    with pytest.raises(VolumeError, match=r"liver_001\.nii\.gz"):
        case.read_image()
    (task / "labelsTr" / "liver_001.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"labelsTr/liver_001\.nii\.gz, which does not exist"):
        msd(task)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"modality": {}, "labels": {}, "training": []}',
        '{"modality": {"0": 1}, "labels": {}, "training": []}',
        '{"modality": {"0": "CT"}, "labels": {}, "training": [1]}',
        '{"modality": {"0": "CT"}, "labels": {}, "training": [{"image": 3, "label": "x"}]}',
    ],
)
def test_a_damaged_dataset_json(tmp_path: Path, content: str):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises((DatasetError, ConfigError), match=r"dataset\.json") as caught:
        msd(tmp_path, site="abdomen")
    assert "\n" not in str(caught.value)


def test_the_real_hippocampi_are_listed(shared_data: Path):
    folder = shared_data / "msd_hippocampus"
    described = json.loads((folder / "dataset.json").read_text())
    cases = msd(folder)
    assert len(cases) == len(described["training"]) >= 195
    drawn = cases[0].annotation.draw_on(cases[0].read_image())
    assert np.unique(drawn.volume.array).tolist() == [0, 1, 2]
