"""How much the tests of many cases do: by default what finds a fault of its kind, and far more when asked to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["THOROUGH", "cases", "count"]

Case = TypeVar("Case")
THOROUGH = os.environ.get("BOLTZFORMER_THOROUGH", "") not in ("", "0")


def count(default: int, *, thorough: int) -> int:
    """A number of cases; ``BOLTZFORMER_THOROUGH=1`` takes the second one."""
    return thorough if THOROUGH else default


def cases(default: Sequence[Case], *, thorough: Sequence[Case]) -> list[Case]:
    """Parameters of a test, and those that only a thorough run has."""
    return [*default, *(thorough if THOROUGH else ())]
