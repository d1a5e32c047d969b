"""What became of every scan and file: ``report.json`` for everybody, and a table with paths for internal use.

Every file under the input is sliced, refused with its reason, or left out.
"""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boltzformer_monai.csv_cells import from_cell, to_cell
from boltzformer_monai.data.slices.format import REPORT_FILE
from boltzformer_monai.data.slices.record import VolumeRecord
from boltzformer_monai.data.split import pseudonym
from boltzformer_monai.errors import ConfigError, why
from boltzformer_monai.io.folder_tree import Tree, read_tree
from boltzformer_monai.io.scan_list import HIDDEN, find_left_out
from boltzformer_monai.limits import open_text
from boltzformer_monai.slicing.biomedparse_names import MARKER_FILE
from boltzformer_monai.slicing.cases import Case, used_files
from boltzformer_monai.slicing.slicing import Job, JobSettings, Outcome
from boltzformer_monai.storage import atomic_path, writing

# They give the files beside and below them their meaning.
_DESCRIPTIONS = ("labels.json", "dataset.json", MARKER_FILE)
_NUMBER = re.compile(r'"[^"]*"|\d+(?:\.\d+)?')  # a number in a name is part of the name
_LEFT_OUT = "left out"
_MAPPING = ("volume", "patient", "identity", "image", "status", "message")


@dataclass(frozen=True)
class Account:
    """The scans of a folder, those of closed folders as refused ones, and kind → files that belong to no scan.

    ``top`` is None where the input is a file; the kinds name no file.
    """

    cases: list[Case]
    top: Path | None = None
    left_out: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Return kind → number of files."""
        return {kind: len(paths) for kind, paths in self.left_out.items()}

    def summary(self) -> str:
        """Return the numbers as words: ``"3 files left out (image files: 2, other files: 1)"``; "" for none."""
        counts = self.counts()
        number = sum(counts.values())
        kinds = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
        return f"{number} file{'s' * (number != 1)} left out ({kinds})" if number else ""


def take_account(top: Path, cases: Sequence[Case], *, described: Iterable[Path] = ()) -> Account:
    """Compare what lies in a folder with the cases that a recipe lists of it, and further files that were read.

    Raises:
        VolumeError: the folder cannot be opened.
    """
    tree = read_tree(top)
    cases = [*cases, *(_closed(top, place, why) for place, why in tree.closed)]
    used = [*described, *(path for case in cases for path in used_files(case))]
    return Account(cases, top, find_left_out(tree, [*used, *_descriptions(tree, used)]))


class Tally:
    """Counts warnings of many scans, ``PATH: what``, by their text; numbers in it may differ."""

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


def write_report(
    root: Path,
    settings: JobSettings,
    records: Mapping[str, VolumeRecord],
    splits: Mapping[str, str],
    outcomes: Iterable[Outcome],
    left_out: Mapping[str, int],
) -> None:
    """Write ``report.json``: all volumes of the data set, the scans that this run refused, with the reason, and how
    many files of which kind belong to no scan.

    It holds no path, name, date or UID, and nothing that depends on when or in how many runs the work was done.

    Raises:
        StorageError: the folder cannot be written.
    """
    volumes: dict[str, dict[str, Any]] = {
        outcome.volume_id: {"status": "refused", "reason": outcome.reason}
        for outcome in outcomes
        if outcome.record is None
    }
    why = Counter(entry["reason"] for entry in volumes.values())
    for volume_id, record in records.items():
        volumes[volume_id] = _done(record, splits[record.entry["patient"]])
    window = settings.slices.window
    content = {
        "format": "boltzformer-slicing-report",
        "version": 1,
        "settings": {
            "plane": ", ".join(settings.planes),
            "window": "by modality and site" if window is None else window.to_dict(),
            **{
                name: getattr(settings.slices, name)
                for name in ("every", "neighbours", "neighbour_mm", "min_area", "negatives", "seed")
            },
            "tilt": settings.tilt,
            "composites": settings.composites,
        },
        "done": len(volumes) - sum(why.values()),
        "refused": sum(why.values()),
        "why": dict(sorted(why.items())),
        "left_out": dict(sorted(left_out.items())),
        "volumes": dict(sorted(volumes.items())),
    }
    with writing(root), atomic_path(root / REPORT_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_mapping(
    path: Path,
    jobs: Iterable[Job],
    records: Mapping[str, VolumeRecord],
    outcomes: Iterable[Outcome],
    account: Account,
    *,
    key: str,
) -> None:
    """Write the table that leads from pseudonyms back to scans. It identifies patients: keep it in the house.

    Rows of other scans that the file has already stay. The status of a scan is done, refused, or not reached (by a run
    that was stopped). A file that belongs to no scan has a row too, with the status "left out" and its kind.

    Raises:
        StorageError: it cannot be written.
    """
    before = check_mapping(path).items()
    top = None if account.top is None else account.top.absolute()
    rows = {name: row for name, row in before if top is None or row[4] != _LEFT_OUT or top not in Path(row[3]).parents}
    refused = {outcome.volume_id: outcome.message for outcome in outcomes if outcome.record is None}
    with (
        writing(path.parent),
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        os.chmod(temporary, stat.S_IRUSR | stat.S_IWUSR)
        for job in jobs:
            case, message = job.case, refused.get(job.volume_id, "")
            current = job.volume_id in records and records[job.volume_id].source == job.source
            status = "refused" if message else "done" if current else "not reached"
            owner = pseudonym(case.patient, key=key)
            rows[job.volume_id] = (job.volume_id, owner, case.patient, str(case.image), status, message)
        for kind, paths in account.left_out.items():
            for each in paths if kind != HIDDEN else ():
                name = f"file-{pseudonym(str(each.absolute()), key=key)}"
                rows[name] = (name, "", "", str(each.absolute()), _LEFT_OUT, kind)
        table = csv.writer(file)
        table.writerow(_MAPPING)
        table.writerows([to_cell(value) for value in rows[volume_id]] for volume_id in sorted(rows))


def check_mapping(path: Path) -> dict[str, Sequence[str]]:
    """Return the rows of a private table by volume, none where there is no file yet.

    Raises:
        ConfigError: the file is something else, which must not be lost.
    """
    try:
        with open_text(path) as file:
            head, *rows = list(csv.reader(file)) or [[]]
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path}: cannot be read ({why(error)}); name a new file, or a table that --mapping wrote"
        raise ConfigError(msg) from None
    if tuple(head) != _MAPPING or any(len(row) != len(_MAPPING) for row in rows):
        raise ConfigError(f"{path}: exists and is not a table that --mapping wrote; name another file")
    plain = ([from_cell(text) for text in row] for row in rows)
    return {row[0]: row for row in plain}


def _done(record: VolumeRecord, split: str) -> dict[str, Any]:
    areas = record.areas or {}
    return {
        "status": "done",
        "slices": len(record.taken()),
        "rows": sum(1 for _ in record.rows(split)),
        "targets": {target: sum(counts[i] > 0 for i in record.taken()) for target, counts in areas.items()},
        "notes": list(record.notes),
    }


def _closed(top: Path, place: Path, why: str) -> Case:
    name = str(place.relative_to(top))
    problem = f"{place}: cannot be opened ({why}); allow it, or move it elsewhere: scans may lie in it"
    return Case(name, name, place, None, "", problem=problem, reason="missing")


def _descriptions(tree: Tree, used: Iterable[Path]) -> list[Path]:
    """Return the descriptions in or above whose folder something was used."""
    above = {parent for place in {path.parent for path in used} for parent in (place, *place.parents)}
    return [place / name for place, names in tree.folders for name in names if name in _DESCRIPTIONS and place in above]
