from __future__ import annotations

import pytest

from boltzformer_monai.data.split import check_folds, folds_by_patient, pseudonym, split_by_patient
from boltzformer_monai.errors import ConfigError

PATIENTS = [f"patient{number}" for number in range(40)]


def count(split: dict[str, str], name: str) -> int:
    return list(split.values()).count(name)


@pytest.mark.parametrize(
    ("patients", "fraction", "validation"),
    [(0, 0.2, 0), (1, 0.2, 0), (1, 0.9, 0), (2, 0.2, 1), (2, 0.9, 1), (5, 0.2, 1), (40, 0.2, 8), (40, 0.0, 0)],
)
def test_how_many_are_for_validation(patients: int, fraction: float, validation: int):
    split = split_by_patient(PATIENTS[:patients], val_fraction=fraction, seed=0)
    assert len(split) == patients
    assert count(split, "val") == validation
    assert count(split, "train") == patients - validation


def test_only_who_counts_not_the_order_or_how_often():
    split = split_by_patient(PATIENTS, val_fraction=0.2, seed=3)
    assert split_by_patient(reversed(PATIENTS * 2), val_fraction=0.2, seed=3) == split


def test_the_seed_draws_another_split():
    splits = {tuple(split_by_patient(PATIENTS, val_fraction=0.2, seed=seed).values()) for seed in range(5)}
    assert len(splits) == 5


def test_the_split_is_the_same_everywhere_and_for_ever():
    split = split_by_patient(PATIENTS[:10], val_fraction=0.2, seed=0)
    assert sorted(name for name, part in split.items() if part == "val") == ["patient0", "patient5"]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_fractions(fraction: float):
    with pytest.raises(ConfigError, match="fraction"):
        split_by_patient(PATIENTS, val_fraction=fraction, seed=0)


def test_pseudonyms_are_stable_keyed_and_do_not_show_the_identity():
    name = pseudonym("DOE^JANE", key="secret")
    assert name == pseudonym("DOE^JANE", key="secret")
    assert len(name) == 12
    assert set(name) <= set("0123456789abcdef")
    assert len({name, pseudonym("DOE^JANE"), pseudonym("DOE^JOHN", key="secret")}) == 3


def test_mistakes_in_pseudonyms():
    with pytest.raises(ConfigError, match="identity"):
        pseudonym("")
    with pytest.raises(ConfigError, match="at most 64"):
        pseudonym("x", key="k" * 65)


def test_folds_are_of_even_size_and_a_patient_is_in_one():
    for patients in (2, 7, 40):
        for folds in (2, 3, 5):
            numbers = folds_by_patient(PATIENTS[:patients], folds=folds, seed=0)
            assert sorted(numbers) == sorted(PATIENTS[:patients])
            sizes = [list(numbers.values()).count(fold) for fold in range(folds)]
            assert max(sizes) - min(sizes) <= 1
            assert sum(sizes) == patients
    assert folds_by_patient(reversed(PATIENTS * 2), folds=5, seed=3) == folds_by_patient(PATIENTS, folds=5, seed=3)
    assert len({tuple(sorted(folds_by_patient(PATIENTS, folds=5, seed=seed).items())) for seed in range(5)}) == 5


def test_the_folds_are_the_same_everywhere_and_for_ever():
    numbers = folds_by_patient(PATIENTS[:6], folds=3, seed=0)
    assert [numbers[name] for name in PATIENTS[:6]] == [1, 0, 2, 1, 2, 0]


@pytest.mark.parametrize(
    ("folds", "fold", "words"),
    [
        (5, None, "--folds needs --fold too"),
        (None, 0, "--fold needs --folds too"),
        (1, 0, "--folds must be from 2 to 1000, got 1"),
        (5, 5, "--fold must be from 0 to 4 with --folds 5, got 5"),
        (5, -1, "--fold must be from 0 to 4"),
    ],
)
def test_folds_out_of_range(folds: int | None, fold: int | None, words: str):
    check_folds(None, None)
    check_folds(5, 4)
    with pytest.raises(ConfigError, match=words):
        check_folds(folds, fold)
