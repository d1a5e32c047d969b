"""Reading and writing the two tables of a slice data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from boltzformer_monai.csv_cells import from_cell, to_cell
from boltzformer_monai.data.slices.format import (
    COLUMNS,
    DATASET_FILE,
    FORMAT,
    MANIFEST_FILE,
    VERSION,
    VOLUME_FIELDS,
)
from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.limits import open_text, read_json
from boltzformer_monai.storage import atomic_path


def read_description(root: Path) -> dict[str, Any]:
    """Content of ``dataset.json``, checked.

    Raises:
        DatasetError: the folder or file is missing, damaged, or of another format or version.
    """
    path = root / DATASET_FILE
    if not path.is_file():
        what = f"has no {DATASET_FILE}: not a slice data set" if root.is_dir() else "no such folder"
        raise DatasetError(f"{root}: {what}; make one with boltzformer slice")
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({why(error)})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DatasetError(f"{path}: is not the description of a {FORMAT} data set")
    version = content.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        advice = "update this package" if newer else "slice the volumes again into a new folder"
        raise DatasetError(f"{path}: has version {version}, this package reads {VERSION}; {advice}")
    volumes = content.get("volumes")
    if (
        not isinstance(content.get("name"), str)
        or not isinstance(volumes, dict)
        or not all(isinstance(part, dict) for part in (*volumes.values(), content.get("split", {})))
    ):
        msg = f"{path}: lacks its name or its volumes, or they are damaged; slice the volumes again into a new folder"
        raise DatasetError(msg)
    for volume_id, entry in volumes.items():
        missing = [field for field in VOLUME_FIELDS if field not in entry]
        if missing:
            msg = f"{path}: volume {volume_id!r} lacks {', '.join(missing)}; slice it again into a new folder"
            raise DatasetError(msg)
    return content


def read_manifest(root: Path) -> Iterator[dict[str, str]]:
    """Rows of ``manifest.csv`` as text.

    Raises:
        DatasetError: the file is missing, lacks a column or a field.
    """
    path = root / MANIFEST_FILE
    try:
        with open_text(path) as file:
            table = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
            if missing:
                raise DatasetError(f"{path}: lacks the column {', '.join(missing)}")
            for fields in table:
                if any(fields[column] is None for column in COLUMNS):
                    raise DatasetError(f"{path}, line {table.line_num}: has too few fields; the file is cut off")
                yield {column: from_cell(fields[column]) for column in COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read ({why(error)})") from None


def write_tables(
    root: Path, description: Mapping[str, Any], rows: Iterable[Sequence[str]], *, shrinking: bool = False
) -> None:
    """Replace ``manifest.csv`` and ``dataset.json`` of an existing folder.

    A kill between the two may leave a volume without rows, but no row without its volume. So the description is
    replaced first, unless volumes were removed (``shrinking``).
    """
    with ExitStack() as stack:
        # What is entered last is renamed first.
        order = (DATASET_FILE, MANIFEST_FILE) if shrinking else (MANIFEST_FILE, DATASET_FILE)
        new = {name: stack.enter_context(atomic_path(root / name, durable=False)) for name in order}
        with new[MANIFEST_FILE].open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows([to_cell(value) for value in row] for row in rows)
        text = json.dumps(description, indent=1, ensure_ascii=False)
        new[DATASET_FILE].write_text(text + "\n", encoding="utf-8")
