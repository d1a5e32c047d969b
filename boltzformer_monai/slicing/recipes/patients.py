"""The patient of a scan without a header for it: by a pattern of the user, or guessed, with a warning."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from boltzformer_monai.errors import ConfigError

logger = logging.getLogger(__name__)


def compile_pattern(name: str, text: str, *, group: bool) -> re.Pattern[str] | None:
    """Return the regular expression of the option ``name``; None for an empty one.

    Raises:
        ConfigError: it is none, or has no group although it must have one.
    """
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise ConfigError(f"{name} {text!r} is not a regular expression ({error})") from None
    if text and group and not compiled.groups:
        raise ConfigError(f"{name} {text!r} has no group; put the patient's part into parentheses")
    return compiled if text else None


def patient_in(pattern: re.Pattern[str], text: str) -> str:
    """Return what the first group of a pattern finds.

    Raises:
        ConfigError: it finds nothing.
    """
    found = pattern.search(text)
    if found is None or not found[1]:
        raise ConfigError(f"patient_pattern {pattern.pattern!r} finds no patient in {text!r}")
    return found[1]


class PatientGuesses:
    """Names the patients of scans without PatientID, and counts the guesses."""

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self.pattern = pattern
        self._ways: set[str] = set()
        self._patients: list[str] = []

    def __call__(self, relative: Path, guess: str, way: str) -> str:
        """Return the patient.

        Args:
            relative: path of the scan below the input, which the pattern is for.
            guess: the patient where there is no pattern.
            way: what the guess goes by, for the warning.

        Raises:
            ConfigError: the pattern finds no patient in the path.
        """
        if self.pattern is not None:
            return patient_in(self.pattern, relative.as_posix())
        self._ways.add(way)
        self._patients.append(guess)
        return guess

    def warn(self, folder: Path) -> None:
        """Warn once of guessed patients: a wrong guess puts one patient into training and validation."""
        if self._patients:
            line = "%s: %d scans are counted by %s as those of %d patients; see --option patient_pattern=REGEX"
            ways = " or ".join(sorted(self._ways))
            logger.warning(line, folder, len(self._patients), ways, len(set(self._patients)))
