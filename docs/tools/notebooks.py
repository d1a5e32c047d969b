#!/usr/bin/env python
"""Runs the notebooks of examples/notebooks in order and stores them with their output.

::

    python docs/tools/notebooks.py           # in place
    python docs/tools/notebooks.py DIR       # copies in DIR; the originals stay as they are

They run in an empty folder, so no output names a place of this machine.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
ORDER = ("phantoms_end_to_end", "segment_and_look")
"""Each may use what those before it made."""

_OF_A_RUN = re.compile(r"execution|papermill|widgets")
_SECONDS = 1800  # of one cell


def run(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook with ``folder`` as its place; what differs from run to run, and warnings, are left out.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    read = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    done = nbclient.NotebookClient(read, timeout=_SECONDS, kernel_name="python3", resources=resources).execute()
    for cell in done.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        cell.metadata = {key: value for key, value in cell.metadata.items() if not _OF_A_RUN.search(key)}
    done.metadata = {"kernelspec": done.metadata.kernelspec, "language_info": {"name": "python"}}
    return done


def main(argv: list[str]) -> int:
    """Run all and store them."""
    target = Path(argv[0]) if argv else FOLDER
    with tempfile.TemporaryDirectory() as folder:
        for name in ORDER:
            nbformat.write(run(FOLDER / f"{name}.ipynb", Path(folder)), target / f"{name}.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
