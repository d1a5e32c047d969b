"""Hypothesis in one call: so many spoiled inputs, the same in every run, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.robustness.samples import Files

CUTS = st.floats(0, 1, exclude_max=True)
"""Where a file is cut off, as a share of its length."""
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)
"""Where bytes are changed, as a share of the length that may be, and what they are xor-ed with."""
MADE: Counter[str] = Counter()
"""Inputs that were examined in this session so far, by the module that made them."""


def explore(spoiled: st.SearchStrategy[Any], count: int, examine: Callable[[Any], None]) -> None:
    """Examine at least ``count`` inputs."""
    before = MADE[examine.__module__]

    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(spoiled)
    def each(drawn: Any) -> None:
        examine(drawn)
        MADE[examine.__module__] += 1

    each()
    assert MADE[examine.__module__] - before >= count


def flipped(content: bytes, flips: list[tuple[float, int]], *, start: int = 0, end: int | None = None) -> bytes:
    """Return the content with some bytes between ``start`` and ``end`` changed."""
    changed, length = bytearray(content), (len(content) if end is None else end) - start
    for share, mask in flips:
        changed[start + int(share * length)] ^= mask
    return bytes(changed)


def put(files: Files, folder: Path) -> Path:
    """Write the files and return the first one."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / next(iter(files))
