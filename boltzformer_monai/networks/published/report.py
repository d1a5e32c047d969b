"""What became of published weights: taken, dropped with the reason, left at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PartReport:
    """One part of the network.

    Attributes:
        part: its name.
        tensors: how many were taken.
        numbers: of how many numbers.
        random: names in the network that the file has no weights for → why.
    """

    part: str
    tensors: int
    numbers: int
    random: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line."""
        taken = f"{self.part}: {self.tensors} tensors, {self.numbers / 1e6:.1f} M numbers"
        return f"{taken}; left at random: {_grouped(self.random)}" if self.random else taken


@dataclass(frozen=True)
class ImportReport:
    """One file.

    Attributes:
        path: of the file.
        source: whose weights.
        parts: what was taken.
        dropped: published name → why nothing needs it.
        left: entries of the file that are no weights.
        notes: what the user should know.
    """

    path: str
    source: str
    parts: tuple[PartReport, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For the log: one line for the file, one a part, one for what was not taken, one a note."""
        lines = [f"{self.path}: {self.source}", *(str(part) for part in self.parts)]
        if self.dropped:
            lines.append(f"not taken: {_grouped(self.dropped)}")
        if self.left:
            lines.append(f"beside the weights, not read: {', '.join(self.left)}")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def __str__(self) -> str:
        """All lines."""
        return "\n".join(self.lines())


def _grouped(reasons: Mapping[str, str]) -> str:
    """``2 (no neck), 1 (classified images)``."""
    return ", ".join(f"{count} ({why})" for why, count in Counter(reasons.values()).items())


def parts_table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows of texts, the first one the header, as lines with aligned columns."""
    table = [tuple(row) for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
