"""Input and outcome of one unit of slicing, and how a restarted run knows that it is done already."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from boltzformer_monai import __version__
from boltzformer_monai.data.slices.format import VERSION
from boltzformer_monai.data.slices.record import VolumeRecord
from boltzformer_monai.data.slices.volume import SliceSettings
from boltzformer_monai.io.grids import GRID_TOLERANCE
from boltzformer_monai.slicing.cases import Case, used_files

_NOT_FACTS = {"root", "run", "key", "recipe"}


@dataclass(frozen=True)
class JobSettings:
    """What all cases of a run have in common. Picklable.

    Attributes:
        root: folder of the data set, absolute: another process may have another current folder.
        run: token of the run, see :class:`~boltzformer_monai.data.slices.writer.SliceWriter`.
        slices: how volumes become slices.
        key: secret of the pseudonyms.
        recipe: the recipe that lists the cases, which every worker must have; ``""`` for none.
        tilt: what to do with a gantry tilt, ``"refuse"`` or ``"resample"``.
        composites: add targets that the vocabulary knows as the sum of annotated ones (kidney = left + right).
        allow_missing: a named label value that does not occur is a target that is absent; else it is a mistake.
        grid_tolerance: how far, as a share of a voxel, an annotation may lie from the scan's grid.
    """

    root: Path
    slices: SliceSettings
    run: str = ""
    key: str = ""
    recipe: str = ""
    tilt: str = "refuse"
    composites: bool = False
    allow_missing: bool = True
    grid_tolerance: float = GRID_TOLERANCE


@dataclass(frozen=True)
class Job:
    """A case with its id in the data set, the digest of all that decides what becomes of it, and its patient's split.

    The split is drawn where it is None.
    """

    case: Case
    volume_id: str
    source: str
    split: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        volume_id: id in the data set.
        record: its record; None when the scan was refused.
        reason: why it was refused, without any name or path; "" otherwise.
        message: the whole line, with paths.
        warnings: warnings of the readers, with paths.
    """

    volume_id: str
    record: VolumeRecord | None
    reason: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()


def source_digest(case: Case, settings: JobSettings) -> str:
    """Hash everything that decides how the slices look: settings, and names, sizes and times of the files.

    No folder goes into it, so an archive may move. A file that cannot be seen counts as empty; reading it will say
    what is wrong.
    """
    facts = {
        "version": (VERSION, __version__),
        "case": _facts(case),
        "files": sorted(_stamp(path) for path in used_files(case)),
        "settings": _facts(settings),
    }
    secret = settings.key.encode()[: hashlib.blake2b.MAX_KEY_SIZE]
    text = json.dumps(facts, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), key=secret, digest_size=16).hexdigest()


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return path.name, 0, 0
    return path.name, status.st_size, status.st_mtime_ns


def _facts(value: Any) -> Any:
    """Plain values of settings, dataclass by dataclass; of paths the names only."""
    if is_dataclass(value) and not isinstance(value, type):
        known = {each.name: _facts(getattr(value, each.name)) for each in fields(value) if each.name not in _NOT_FACTS}
        return {"type": type(value).__name__, **known}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, dict):
        return {str(name): _facts(each) for name, each in value.items()}
    return [_facts(each) for each in value] if isinstance(value, list | tuple) else value
