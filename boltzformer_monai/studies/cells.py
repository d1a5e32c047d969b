"""Numbers of a study as the cells of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["GREY", "NONE", "RED", "Cell", "count_of", "decimal", "interval", "mean_sd", "p_value", "signed", "titles"]

NONE = "–"
GREY, RED = "paper", "void"
"""Classes of the page's cells."""

Cell = str | tuple[str, str]
"""Text, or text and class."""


def titles(results: Mapping[str, Any]) -> dict[str, str]:
    return {name: arm["title"] or name for name, arm in results["study"]["arms"].items()}


def mean_sd(entry: Mapping[str, Any], *, count: bool = False, seeds: bool = False) -> str:
    """``"71.2 ± 0.4"`` in %, and below the number of instances and seeds."""
    if entry["mean"] is None:
        return NONE
    text = f"{100 * entry['mean']:.1f}"
    text += "" if entry["sd"] is None else f" ± {100 * entry['sd']:.1f}"
    text += f"\nn {entry['instances']}" if count else ""
    return f"{text}, {count_of(entry['n_seeds'], 'seed')}" if seeds else text


def decimal(value: float | None, decimals: int) -> str:
    return NONE if value is None else f"{value:.{decimals}f}"


def signed(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:+.1f}".replace("-", "−")


def interval(low: float | None, high: float | None, form: str = "{}") -> str:
    return NONE if low is None or high is None else form.format(f"{signed(low)} to {signed(high)}")


def p_value(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def count_of(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
