"""What became of every scan: ``report.json`` for everybody, and a table with paths for the house alone."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.csv_cells import from_cell, to_cell
from boltzformer_monai.data.slices.format import REPORT_FILE
from boltzformer_monai.data.slices.record import VolumeRecord
from boltzformer_monai.data.slices.volume import reported
from boltzformer_monai.data.split import pseudonym
from boltzformer_monai.errors import ConfigError, why
from boltzformer_monai.io.scan_list import HIDDEN
from boltzformer_monai.limits import open_text
from boltzformer_monai.slicing.accounts import Account
from boltzformer_monai.slicing.jobs import Job, JobSettings, Outcome
from boltzformer_monai.storage import atomic_path

_LEFT_OUT = "left out"
_MAPPING = ("volume", "patient", "identity", "image", "status", "message")


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
            "plane": settings.slices.plane,
            "window": "by modality and site" if window is None else window.to_dict(),
            "every": settings.slices.every,
            "neighbours": settings.slices.neighbours,
            "min_area": settings.slices.min_area,
            "negatives": settings.slices.negatives,
            "seed": settings.slices.seed,
            "tilt": settings.tilt,
            "composites": settings.composites,
        },
        "done": len(volumes) - sum(why.values()),
        "refused": sum(why.values()),
        "why": dict(sorted(why.items())),
        "left_out": dict(sorted(left_out.items())),
        "volumes": dict(sorted(volumes.items())),
    }
    with reported(root), atomic_path(root / REPORT_FILE) as temporary:
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
        reported(path.parent),
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
