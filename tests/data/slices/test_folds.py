"""The split of a fold: by patient, over train and val, and what a model says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.data.slices.folds import Fold, choose_fold, fold_of_model
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.summary import training_data
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.errors import CheckpointError, ConfigError, DatasetError
from boltzformer_monai.io.volume import Volume


def write(root: Path, patients: int, *, test: int = 1, unlabelled: int = 1, seed: int = 0) -> Path:
    """Two volumes a patient; the first patients are pinned to test, the last have no label."""
    writer = SliceWriter(root, name="folds", seed=seed)
    for number in range(patients):
        for scan in range(2):
            values = np.zeros((8, 8, 2), np.uint8)
            values[2:4, 2:4] = 1
            labelled = number < patients - unlabelled
            writer.add_volume(
                Volume(values.astype(np.float32), np.eye(4), modality="CT", source="scan"),
                Volume(values, np.eye(4), source="label") if labelled else None,
                {1: "liver"} if labelled else {},
                volume_id=f"case{number}_{scan}",
                patient=f"patient{number}",
                site="abdomen",
                split="test" if number < test else "val" if number == test else None,
            )
    return root


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("slices"), 9)


def patients(reader: SliceReader, split: str) -> set[str]:
    return {row.patient for row in reader.select(split=split) if row.label is not None}


def test_every_patient_validates_once_and_test_stays(slices: Path) -> None:
    own = SliceReader(slices)
    everybody = patients(own, "train") | patients(own, "val")
    seen: list[str] = []
    for fold in range(3):
        reader = choose_fold(own, folds=3, fold=fold)
        validation = patients(reader, "val")
        assert patients(reader, "train") == everybody - validation
        assert patients(reader, "test") == patients(own, "test")
        assert [row.image for row in reader.rows] == [row.image for row in own.rows]
        seen += sorted(validation)
    assert sorted(seen) == sorted(everybody)
    assert len(everybody) == 7
    assert own.fold is None
    assert patients(own, "val") == patients(SliceReader(slices), "val")


def test_the_folds_are_of_the_dataset_and_its_seed(slices: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again", 9)
    other = write(tmp_path / "other", 9, seed=1)
    first, same, different = (
        [patients(choose_fold(SliceReader(root), folds=3, fold=fold), "val") for fold in range(3)]
        for root in (slices, again, other)
    )
    assert first == same
    assert first != different


def test_a_model_finds_its_fold_again_in_its_dataset_only(slices: Path, tmp_path: Path) -> None:
    reader = choose_fold(SliceReader(slices), folds=3, fold=1)
    data = {"training_data": training_data(reader)}
    assert data["training_data"]["splits"]["val"]["patients"] == len(patients(reader, "val"))
    fold = Fold.of(data)
    assert fold is not None
    assert (fold.fold, fold.folds, str(fold)) == (1, 3, "fold 1 of 3")
    assert not any(name in str(data["training_data"]) for name in patients(reader, "val"))
    found = fold_of_model(SliceReader(slices), data)
    assert found is not None
    assert patients(found, "val") == patients(reader, "val")
    for root in (write(tmp_path / "grown", 12), write(tmp_path / "tiny", 3)):
        assert fold_of_model(SliceReader(root), data) is None
    assert Fold.of({"training_data": training_data(SliceReader(slices))}) is None
    assert Fold.of({}) is None


@pytest.mark.parametrize(
    "fold",
    [
        3,
        {},
        {"fold": 0, "folds": 3, "seed": 0},
        {"fold": 3, "folds": 3, "seed": 0, "validation_sha256": ""},
        {"fold": "0", "folds": 3, "seed": 0, "validation_sha256": ""},
    ],
)
def test_a_damaged_description_is_refused(fold: Any) -> None:
    with pytest.raises(CheckpointError, match="the model's description of its fold cannot be used"):
        Fold.of({"training_data": {"fold": fold}})


def test_too_many_folds(slices: Path) -> None:
    with pytest.raises(DatasetError, match="has 7 labelled patients .* too few for 8 folds; choose fewer --folds"):
        choose_fold(SliceReader(slices), folds=8, fold=0)
    with pytest.raises(ConfigError, match="--fold must be from 0 to 2"):
        choose_fold(SliceReader(slices), folds=3, fold=3)
