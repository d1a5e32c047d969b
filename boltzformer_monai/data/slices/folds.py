"""Folds of a slice dataset: another division of its training and validation patients, for cross-validation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.tables import read_description
from boltzformer_monai.data.split import check_folds, folds_by_patient
from boltzformer_monai.errors import CheckpointError, ConfigError, DatasetError, why
from boltzformer_monai.field_types import check_value

__all__ = ["Fold", "choose_fold", "fold_of_model"]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Which patients of a dataset validate a training; all others but the test patients train.

    Attributes:
        fold: number from 0.
        folds: how many there are.
        seed: of the dataset's split, which divides the patients.
        validation_sha256: of the validation patients' pseudonyms; tells whether a dataset has the same fold.
    """

    fold: int
    folds: int
    seed: int
    validation_sha256: str

    def __str__(self) -> str:
        return f"fold {self.fold} of {self.folds}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a model's description."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Fold | None:
        """The fold in the data of a model's description; None for a training without folds.

        Raises:
            CheckpointError: the description is damaged.
        """
        known = data.get("training_data")
        content = known.get("fold") if isinstance(known, Mapping) else None
        if content is None:
            return None
        try:
            for field in fields(cls):
                check_value(field.name, content[field.name], int if field.name != "validation_sha256" else str)
            check_folds(content["folds"], content["fold"])
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"the model's description of its fold cannot be used ({why(error)})") from None


def choose_fold(reader: SliceReader, *, folds: int, fold: int) -> SliceReader:
    """The dataset with the split of a fold: its patients validate, those of the other folds train, test stays.

    The labelled patients of train and val are divided by the seed of the dataset's split, so every training on it has
    the same folds, whatever its own seed.

    Args:
        reader: of the dataset, with its own split.
        folds: how many.
        fold: the one that validates, from 0.

    Raises:
        ConfigError: a number is out of range.
        DatasetError: there are fewer patients than folds.
    """
    check_folds(folds, fold)
    seed = int(read_description(reader.root).get("split", {}).get("seed", 0))
    patients = {row.patient for row in reader.rows if row.label is not None and row.split != "test"}
    if len(patients) < folds:
        msg = f"{reader.root} has {len(patients)} labelled patients in train and val, too few for {folds} folds"
        raise DatasetError(f"{msg}; choose fewer --folds")
    numbers = folds_by_patient(patients, folds=folds, seed=seed)
    validation = {name for name, number in numbers.items() if number == fold}
    digest = hashlib.sha256("\n".join(sorted(validation)).encode()).hexdigest()
    found = Fold(fold=fold, folds=folds, seed=seed, validation_sha256=digest)
    return reader.resplit(
        dict.fromkeys(patients - validation, "train") | dict.fromkeys(validation, "val"), found.as_dict()
    )


def fold_of_model(reader: SliceReader, data: Mapping[str, Any]) -> SliceReader | None:
    """The dataset with the fold that a model was trained on.

    Args:
        reader: of the dataset, with its own split.
        data: of the model's description, with a fold.

    Returns:
        None where this dataset has not the same fold: it is another one, or was changed since.
    """
    fold = Fold.of(data)
    try:
        chosen = None if fold is None else choose_fold(reader, folds=fold.folds, fold=fold.fold)
    except DatasetError:
        return None
    return chosen if chosen is not None and fold is not None and chosen.fold == fold.as_dict() else None
