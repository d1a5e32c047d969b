"""Hypothesis in one call: so many spoiled inputs, the same in every run, and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.robustness.samples import Files
from tests.sizes import count as _count

CUTS = st.floats(0, 1, exclude_max=True)
"""Where a file is cut off, as a share of its length."""
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)
"""Where bytes are changed, as a share of the length that may be, and what they are xor-ed with."""


def sizes(**counts: int) -> dict[str, int]:
    """How many inputs each test examines, for each of its parameters; a thorough run examines ten times as many."""
    return {name: _count(default, thorough=10 * default) for name, default in counts.items()}


def explore(spoiled: st.SearchStrategy[Any], count: int, examine: Callable[[Any], None]) -> None:
    """Examine at least ``count`` inputs."""
    made = 0

    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(spoiled)
    def each(drawn: Any) -> None:
        nonlocal made
        examine(drawn)
        made += 1

    each()
    assert made >= count


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
