"""One case → one volume in the slice data set: the unit of work, the same in this process, another or on a cluster."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai import __version__
from boltzformer_monai.data.label_names import canonical_labels, check_values
from boltzformer_monai.data.prompts import composite_targets, find_target, normalise_target
from boltzformer_monai.data.slices.format import VERSION
from boltzformer_monai.data.slices.record import VolumeRecord
from boltzformer_monai.data.slices.volume import RUN_FILE, SliceSettings, write_volume
from boltzformer_monai.data.windows import Window
from boltzformer_monai.errors import BoltzFormerError, ConfigError, DatasetError, StorageError
from boltzformer_monai.io.dicom.gantry_tilt import resample_tilt, tilt_degrees
from boltzformer_monai.io.grids import GRID_TOLERANCE
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.limits import read_text
from boltzformer_monai.parallel import collected_messages
from boltzformer_monai.registry import place_of
from boltzformer_monai.slicing.cases import Case, used_files
from boltzformer_monai.slicing.recipes import load_recipe

logger = logging.getLogger(__name__)

_NO_TITLE = re.compile(r"(segment|label|roi|region)?[ _-]*\d*")  # what programs call a segment that nobody named
_NOT_FACTS = {"root", "run", "key", "recipe", "planes"}  # of the settings: not part of what decides about the slices


@dataclass(frozen=True)
class JobSettings:
    """What all cases of a run have in common. Picklable.

    Attributes:
        root: folder of the data set, absolute: another process may have another current folder.
        run: token of the run, see :class:`~boltzformer_monai.data.slices.writer.SliceWriter`.
        slices: how volumes become slices; the plane is the job's.
        planes: that every scan is sliced along.
        key: secret of the pseudonyms.
        recipe: the recipe that lists the cases, which every worker must have; ``""`` for none.
        tilt: what to do with a gantry tilt, ``"refuse"`` or ``"resample"``.
        composites: add targets that the vocabulary knows as the sum of annotated ones (kidney = left + right).
        allow_missing: a named label value that does not occur is a target that is absent; else it is a mistake.
        grid_tolerance: how far, as a share of a voxel, an annotation may lie from the scan's grid.
    """

    root: Path
    slices: SliceSettings
    planes: tuple[str, ...] = ("axial",)
    run: str = ""
    key: str = ""
    recipe: str = ""
    tilt: str = "refuse"
    composites: bool = False
    allow_missing: bool = True
    grid_tolerance: float = GRID_TOLERANCE


@dataclass(frozen=True)
class Job:
    """A case and a plane to slice it along.

    Attributes:
        case: the scan.
        volume_id: in the data set.
        source: digest of all that decides what becomes of it.
        split: of its patient; drawn where it is None.
        plane: of the slices.
        scan: id of the scan, the same for all its planes.
    """

    case: Case
    volume_id: str
    source: str
    split: str | None = None
    plane: str = "axial"
    scan: str | None = None


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


def slice_case(job: Job, settings: JobSettings) -> Outcome:
    """Read a case, slice it, and write its slices and record.

    Whatever is wrong with this one scan becomes an :class:`Outcome`; the others must not suffer for it.

    Raises:
        StorageError: the data set cannot be written, which is no scan's fault.
    """
    with collected_messages() as records:
        outcome = _outcome(job, settings)
    return replace(outcome, warnings=tuple(record.getMessage() for record in records))


def _outcome(job: Job, settings: JobSettings) -> Outcome:
    try:
        record = _slice(job, settings)
    except StorageError:
        raise
    except BoltzFormerError as error:
        return Outcome(job.volume_id, None, error.reason, str(error))
    except MemoryError:
        return Outcome(job.volume_id, None, "memory", f"{job.case.image}: does not fit into memory; use fewer workers")
    except Exception as error:  # noqa: BLE001  a fault of ours in one scan of a thousand must not stop the other 999
        logger.debug("%s", traceback.format_exc())
        kind, where = type(error).__name__, place_of(error)
        message = f"{job.case.image}: unexpected {kind} in {where} ({error}); please report this"
        return Outcome(job.volume_id, None, "unexpected error", " ".join(message.split()))
    return Outcome(job.volume_id, record)


def _slice(job: Job, settings: JobSettings) -> VolumeRecord:
    case = job.case
    # An annotation was drawn on the scan as it is stored, so a tilt is resampled only after both are read.
    image = case.read_image(tilt="refuse" if settings.tilt == "refuse" else "keep")
    if image.modality == "unknown" and case.window is None:
        raise ConfigError(f"{case.image}: does not say its modality; add --modality CT or --modality MR")
    annotation = None if case.annotation is None else case.annotation.draw_on(image, tolerance=settings.grid_tolerance)
    labels, notes = ({}, []) if annotation is None else _named(annotation, case, settings)
    label = None if annotation is None else annotation.volume
    if tilt_degrees(image):
        notes.append(f"gantry tilt of {tilt_degrees(image):.1f} degrees, resampled to a right-angled grid")
        label = None if label is None else resample_tilt(replace(label, affine=image.affine))
        image = resample_tilt(image)
    for note in notes:
        logger.warning("%s: %s", case.image, note)
    slices = replace(settings.slices, plane=job.plane)
    if isinstance(slices.window, Window) and (image.modality != "CT" or case.window is not None):
        msg = f"{case.image}: --window in HU is for CT, not for this {image.modality} scan; leave --window out"
        raise ConfigError(msg)
    return write_volume(
        settings.root,
        image,
        label,
        labels,
        volume_id=job.volume_id,
        patient=case.patient,
        site=case.site,
        settings=slices if case.window is None else replace(slices, window=case.window),
        key=settings.key,
        scan=job.scan,
        split=job.split,
        notes=notes,
        source=job.source,
        run=settings.run,
    )


def source_digest(case: Case, settings: JobSettings, plane: str = "axial") -> str:
    """Hash everything that decides how the slices look: settings, and names, sizes and times of the files.

    No folder goes into it, so an archive may move. A file that cannot be seen counts as empty; reading it will say
    what is wrong.
    """
    facts = {
        "version": (VERSION, __version__),
        "case": _facts(case),
        "files": sorted(_stamp(path) for path in used_files(case)),
        "settings": _facts(replace(settings, slices=replace(settings.slices, plane=plane))),
    }
    secret = settings.key.encode()[: hashlib.blake2b.MAX_KEY_SIZE]
    text = json.dumps(facts, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), key=secret, digest_size=16).hexdigest()


def worker_problem(settings: JobSettings) -> str:
    """Say why this process cannot slice for a run, "" if it can."""
    try:
        token = read_text(settings.root / RUN_FILE, encoding="ascii")
    except OSError:
        token = ""
    if token != settings.run:
        return f"does not see {settings.root}; every worker needs the same file system"
    try:
        if settings.recipe:
            load_recipe(settings.recipe)  # its classes are unpickled here
    except ConfigError as error:
        return f"lacks the recipe: {error}; install it on every worker"
    return ""


def _named(annotation: Segmentation, case: Case, settings: JobSettings) -> tuple[Mapping[str, str], list[str]]:
    """Return value text → target of an annotation, and what there is to say about it."""
    files = ", ".join(map(str, case.annotation.files())) if case.annotation else ""
    if not annotation.names:
        raise DatasetError(f"{files}: its label values have no names; say what they mean with --labels-json")
    _check_renamed(annotation, files, settings)
    occurs = bool(np.any(annotation.volume.array))
    # A file that carries its own names may list segments that nobody drew.
    allow_missing = settings.allow_missing or annotation.segments is not None
    notes = ["no label value occurs: every target is absent"] if allow_missing and not occurs else []
    if occurs or not allow_missing:
        try:
            # Without any path, because the notes are stored.
            notes += check_values(
                annotation.volume.array, annotation.names, where="label map", allow_missing=allow_missing
            )
        except DatasetError as error:
            raise DatasetError(f"{files}: {error}") from None
    targets = canonical_labels(annotation.names)
    unknown = [target for target in targets if find_target(target) is None]
    notes += [f'the vocabulary does not know "{target}"; its prompts are made of its name' for target in unknown]
    if settings.composites:
        targets |= composite_targets(targets)
    return {value: target for target, value in targets.items()}, notes


def _check_renamed(annotation: Segmentation, files: str, settings: JobSettings) -> None:
    """Refuse names for segments that a file lacks, and warn where it calls them something else."""
    there = annotation.segments or {}
    for numbers, name in annotation.renamed.items():
        lacking = [number for number in numbers.split("+") if number not in there]
        if lacking and not settings.allow_missing:
            msg = (
                f'{files}: has no segment {", ".join(lacking)} ("{name}"; segments there: {", ".join(there)}); '
                "correct labels.json, or keep the target as absent with --allow-missing"
            )
            raise DatasetError(msg)
        target = normalise_target(name)
        for number in numbers.split("+"):
            title = normalise_target(annotation.titles.get(number, ""))
            # A target of several segments has a wider name than each: "kidney" of a left one and a right one.
            part = "+" in numbers and set(target.split()) <= set(title.split())
            if title and title != target and not part and not _NO_TITLE.fullmatch(title):
                logger.warning('%s: segment %s is "%s" in the file, named "%s" here', files, number, title, name)


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
