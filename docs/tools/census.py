#!/usr/bin/env python
"""Writes the table of docs/reference/refusals.md from the reasons in the code: what is refused, repaired or warned of.

::

    python docs/tools/census.py            # rewrites the table
    python docs/tools/census.py --check    # exit code 1 where it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from boltzformer_monai.caveats import REPAIRS, WARNINGS
from boltzformer_monai.errors import REASONS

PAGE = Path(__file__).parents[1] / "reference" / "refusals.md"
BEGIN, END = "<!-- made by docs/tools/census.py -->", "<!-- end -->"


def table() -> str:
    """The table in Markdown: refusals, repairs, warnings; within each in the order of the code."""
    kinds = (("refused", REASONS), ("repaired", REPAIRS), ("warned of", WARNINGS))
    rows = [f"| {what} | {name} | {why} |" for what, reasons in kinds for name, why in reasons.items()]
    return "\n".join(["| | what | why |", "|---|---|---|", *rows])


def main(argv: list[str]) -> int:
    """Rewrite or check the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    if "--check" in argv:
        return int(made != text)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
