"""Cells of CSV tables that a spreadsheet does not take for formulas, and back.

A target called ``=HYPERLINK(…)`` or a file called ``@SUM(…)`` would be computed when somebody opens the table. An
apostrophe before it makes it text for every spreadsheet; :func:`from_cell` takes it away, so nothing is lost.
"""

from __future__ import annotations

import re

__all__ = ["from_cell", "to_cell"]

# With the wide forms, which spreadsheets of East Asian languages take for the same.
_FORMULA = re.compile(r"['=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def to_cell(value: object) -> object:
    """Return what to write for a value: text that could be a formula behind an apostrophe, all else as it is."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def from_cell(text: str) -> str:
    """Return the text that :func:`to_cell` was given."""
    return text.removeprefix("'")
