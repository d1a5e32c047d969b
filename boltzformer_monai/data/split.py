"""Split by patient, with a seeded hash: training and validation, or folds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from boltzformer_monai.errors import ConfigError

__all__ = ["MOST_FOLDS", "check_folds", "folds_by_patient", "pseudonym", "split_by_patient"]

MOST_FOLDS = 1000

_MAX_KEY_BYTES = hashlib.blake2b.MAX_KEY_SIZE


def pseudonym(identity: str, *, key: str = "") -> str:
    """A patient's pseudonym: 12 hexadecimal digits, determined by identity and key.

    Patient numbers are short enough to be guessed by trial, so a shared data set needs a secret key.

    Raises:
        ConfigError: the identity is empty or the key longer than 64 bytes.
    """
    if not identity:
        raise ConfigError("a patient needs an identity that is not empty; give one with patient (--patient)")
    secret = key.encode()
    if len(secret) > _MAX_KEY_BYTES:
        raise ConfigError(f"the key for pseudonyms has {len(secret)} bytes; at most {_MAX_KEY_BYTES} are possible")
    return hashlib.blake2b(identity.encode(), key=secret, digest_size=6).hexdigest()


def split_by_patient(patients: Iterable[str], *, val_fraction: float, seed: int) -> dict[str, str]:
    """Divide patients into ``"train"`` and ``"val"``.

    Patients are ordered by a hash of seed and name; the first ``round(val_fraction * n)`` are for validation, at least
    one of two or more if the fraction is above 0, and never all. Order and duplicates do not matter.

    Args:
        patients: pseudonyms.
        val_fraction: at least 0 and below 1.
        seed: any integer.

    Returns:
        Pseudonym → split, in sorted order of the pseudonyms.

    Raises:
        ConfigError: the fraction is out of range.
    """
    if not (math.isfinite(val_fraction) and 0 <= val_fraction < 1):
        raise ConfigError(f"the validation fraction must be at least 0 and below 1, got {val_fraction}")
    names = sorted(set(patients))
    fewest = 1 if val_fraction > 0 and len(names) >= 2 else 0
    count = min(max(round(val_fraction * len(names)), fewest), max(len(names) - 1, 0))  # someone must train
    validation = set(_shuffled(names, seed)[:count])
    return {name: "val" if name in validation else "train" for name in names}


def check_folds(folds: int | None, fold: int | None) -> None:
    """Check number of folds and chosen fold.

    Raises:
        ConfigError: one is given without the other, or is out of range.
    """
    if folds is None and fold is None:
        return
    if folds is None or fold is None:
        given, lacking = ("folds", "fold") if fold is None else ("fold", "folds")
        raise ConfigError(f"--{given} needs --{lacking} too, e.g. --folds 5 --fold 0")
    if not 2 <= folds <= MOST_FOLDS:
        raise ConfigError(f"--folds must be from 2 to {MOST_FOLDS}, got {folds}")
    if not 0 <= fold < folds:
        raise ConfigError(f"--fold must be from 0 to {folds - 1} with --folds {folds}, got {fold}")


def folds_by_patient(patients: Iterable[str], *, folds: int, seed: int) -> dict[str, int]:
    """Divide patients into folds whose sizes differ by one at most. Order and duplicates do not matter.

    Args:
        patients: pseudonyms.
        folds: how many, at least 2.
        seed: any integer.

    Returns:
        Pseudonym → number of its fold, from 0.
    """
    return {name: place % folds for place, name in enumerate(_shuffled(set(patients), seed))}


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Names in the order of a hash of seed and name."""
    return sorted(names, key=lambda name: hashlib.blake2b(f"{seed}:{name}".encode()).digest())
