"""Warnings of many scans as few lines: one that many scans share is printed once, with its count."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r'"[^"]*"|\d+(?:\.\d+)?')  # a number in a name is part of the name


class Tally:
    """Counts lines of the form ``PATH: what`` by what they say; numbers in them may differ."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[str, str]]] = {}

    def add(self, line: str, paths: Iterable[object]) -> None:
        """Take up a line that begins with one of the paths, or with none."""
        places = (f"{path}: " for path in paths)
        place = max((place for place in places if line.startswith(place)), key=len, default="")
        what = line.removeprefix(place)
        kind = _NUMBER.sub(lambda match: match[0] if match[0].startswith('"') else "#", what)
        self._found.setdefault(kind, []).append((place, what))

    def lines(self) -> list[str]:
        """One line for each kind, in order of first appearance; a single one has its path."""
        lines = []
        for found in self._found.values():
            place, what = found[0]
            if len(found) == 1:
                lines.append(f"{place}{what}")
            elif len({each for _, each in found}) == 1:
                lines.append(f"{what} ({len(found)} times)")
            else:
                lines.append(f"{place}{what} (and {len(found) - 1} more like it)")
        return lines
