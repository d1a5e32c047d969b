"""The values of the paper's Tables 1 to 8 (Hiera-S), to be shown beside those of a study."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files

from boltzformer_monai.errors import ConfigError, did_you_mean

__all__ = ["PaperTable", "paper_rows", "paper_tables"]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: ``"1"`` to ``"8"``.
        title: what it compares.
        note: what its values are of.
        columns: of its values.
        rows: name → Dice in %, one for each column.
    """

    number: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]


@functools.cache
def paper_tables() -> dict[str, PaperTable]:
    """All tables by their numbers."""
    content = json.loads((files(__package__) / "paper.json").read_text(encoding="utf-8"))
    return {
        number: PaperTable(
            number,
            entry["title"],
            entry.get("note", "Hiera-S; average over seven data sets"),
            tuple(entry.get("columns", ["all"])),
            {name: tuple(value) if isinstance(value, list) else (value,) for name, value in entry["rows"].items()},
        )
        for number, entry in content.items()
    }


def paper_rows(number: str) -> dict[str, tuple[float, ...]]:
    """Name of a row → its values.

    Raises:
        ConfigError: the paper has no such table.
    """
    tables = paper_tables()
    if number not in tables:
        raise ConfigError(f"the paper has no Table {number!r} of Dice; {did_you_mean(number, tables)}")
    return tables[number].rows
