"""Hard phantoms: small objects in one slice each, told by density relative to the phase and by where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from boltzformer_monai.cli import main
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.demo.hard_phantoms import HARD_LABELS, HARD_OBJECTS, ensure_hard_dataset, make_hard_phantom
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.io.volume import Volume

SITES = tuple(HARD_LABELS)
SIZE = (192, 192, 4)
DIM, BRIGHT = (4, 6, 11), (5, 7, 12)
AORTA = 3


@pytest.fixture(scope="module")
def patients() -> dict[str, list[tuple[Volume, Volume]]]:
    return {site: [make_hard_phantom(site, seed=seed, size=SIZE) for seed in range(5)] for site in SITES}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hard") / "slices"
    return ensure_hard_dataset(folder, train=8, val=2, test=2, slices=3, edge=192, seed=3)


def small_values(site: str) -> list[int]:
    return [value for value, name in HARD_LABELS[site].items() if name in HARD_OBJECTS]


@pytest.mark.parametrize("site", SITES)
def test_a_seed_is_a_patient(site: str) -> None:
    (image, label), (same, its_label), (other, _) = (
        make_hard_phantom(site, seed=seed, size=(96, 96, 2)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(image.array, same.array)
    np.testing.assert_array_equal(label.array, its_label.array)
    assert (image.array != other.array).mean() > 0.5
    assert (image.axis_codes, image.modality, image.array.dtype) == (("L", "P", "S"), "CT", np.float32)


@pytest.mark.parametrize("site", SITES)
def test_objects_have_2_to_12_pixels_and_touch_no_other(
    site: str, patients: dict[str, list[tuple[Volume, Volume]]]
) -> None:
    diameters = []
    for _, label in patients[site]:
        assert set(np.unique(label.array)) <= {0, *HARD_LABELS[site]}
        small = np.isin(label.array, small_values(site))
        for k in range(SIZE[2]):
            parts, count = ndimage.label(small[:, :, k], structure=np.ones((3, 3)))
            for number in range(1, count + 1):
                part = parts == number
                assert len(np.unique(label.array[:, :, k][part])) == 1, "two objects touch"
                assert part.sum() >= 2
                diameters.append(2 * np.sqrt(part.sum() / np.pi))
    assert len(diameters) > 25
    assert max(diameters) < 14  # 12 pixels, stretched by the patient's deformation
    assert np.mean(np.array(diameters) < 6) > 0.4


def test_two_names_share_a_look_and_density_counts_by_the_phase(
    patients: dict[str, list[tuple[Volume, Volume]]],
) -> None:
    dims, brights = [], []
    for site in SITES:
        for image, label in patients[site]:
            inner = ndimage.binary_erosion(label.array == AORTA, np.ones((3, 3, 1)))
            aorta = float(np.median(image.array[inner]))
            for value in small_values(site):
                core = ndimage.binary_erosion(label.array == value, np.ones((3, 3, 1)))
                if core.sum() < 12 or value not in (*DIM, *BRIGHT):
                    continue
                density = float(np.median(image.array[core]))
                share = (density - 50) / (aorta - 50)
                assert (share > 0.8) == (value in BRIGHT), (site, value, density, aorta)
                (brights if value in BRIGHT else dims).append(density)
    assert max(dims) > min(brights), "no density in HU parts them over all patients"


def test_a_quarter_of_the_prompts_is_absent(slices: Path) -> None:
    rows = SliceReader(slices).rows
    small = [row for row in rows if row.target in HARD_OBJECTS]
    assert 0.15 <= np.mean([not row.present for row in rows]) <= 0.3  # 0.24 of 40 patients
    assert 0.3 <= np.mean([not row.present for row in small]) <= 0.6
    assert {row.target for row in rows if row.site == "chest"} == set(HARD_LABELS["chest"].values())
    assert max(row.area_fraction for row in small) < 0.01


def test_the_splits_are_of_patients_and_pinned(slices: Path) -> None:
    reader = SliceReader(slices)
    counts = {split: len({row.patient for row in reader.select(split=split)}) for split in ("train", "val", "test")}
    assert counts == {"train": 8, "val": 2, "test": 2}
    assert {row.site for row in reader.select(split="test")} == {"abdomen", "chest"}
    assert len({row.prompts[0] for row in reader.rows}) == len({(row.target, row.site) for row in reader.rows})


def test_a_dataset_is_made_once_and_never_mixed(slices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in slices.rglob("*")}
    same = ["--train", "8", "--val", "2", "--test", "2", "--slices", "3", "--edge", "192", "--seed", "3"]
    assert main(["phantoms", "--output", str(slices), *same]) == 0
    assert capsys.readouterr().out == f"{slices}\n"
    assert {path: path.stat().st_mtime_ns for path in slices.rglob("*")} == before
    with pytest.raises(DatasetError, match="holds demo data of other settings"):
        ensure_hard_dataset(slices, seed=4)


def test_settings_out_of_range_are_refused_before_the_work(tmp_path: Path) -> None:
    for settings, message in (
        ({"train": 0}, "hard phantoms need 1 patient or more for training"),
        ({"val": -1}, "hard phantoms need 1 patient or more for training"),
        ({"slices": 0}, "hard phantoms need 1 slice or more"),
        ({"edge": 64}, "an edge of 96 pixels or more"),
        ({"seed": -1}, "a seed of 0 or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            ensure_hard_dataset(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="unknown site 'head' of a hard phantom; choose one of abdomen, chest"):
        make_hard_phantom("head", seed=0)
