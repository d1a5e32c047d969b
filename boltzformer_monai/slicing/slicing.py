"""One case → one volume in the slice data set: the unit of work, the same in this process, another or on a cluster."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from logging.handlers import BufferingHandler
from pathlib import Path

import numpy as np

from boltzformer_monai.data.label_names import canonical_labels, check_values
from boltzformer_monai.data.prompts import composite_targets, find_target, normalise_target
from boltzformer_monai.data.slices.record import VolumeRecord
from boltzformer_monai.data.slices.volume import RUN_FILE, write_volume
from boltzformer_monai.data.windows import Window
from boltzformer_monai.errors import BoltzFormerError, ConfigError, DatasetError, StorageError
from boltzformer_monai.io.dicom.gantry_tilt import resample_tilt, tilt_degrees
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.limits import read_text
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.jobs import Job, JobSettings, Outcome
from boltzformer_monai.slicing.recipes import load_recipe

logger = logging.getLogger(__name__)

_NO_TITLE = re.compile(r"(segment|label|roi|region)?[ _-]*\d*")  # what programs call a segment that nobody named


def slice_case(job: Job, settings: JobSettings) -> Outcome:
    """Read a case, slice it, and write its slices and record.

    Whatever is wrong with this one scan becomes an :class:`Outcome`; the others must not suffer for it.

    Raises:
        StorageError: the data set cannot be written, which is no scan's fault.
    """
    with _collected_warnings() as records:
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
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(line.filename).name}:{line.lineno}"
        message = f"{job.case.image}: unexpected {type(error).__name__} in {where} ({error}); please report this"
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
    slices = settings.slices
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
        split=job.split,
        notes=notes,
        source=job.source,
        run=settings.run,
    )


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


@contextmanager
def _collected_warnings() -> Iterator[list[logging.LogRecord]]:
    """Collect what our readers warn of, which in another process nobody would see in order, and hush pydicom.

    pydicom's own warnings quote header values, names among them.
    """
    log, handler = logging.getLogger("boltzformer_monai"), BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pydicom")
            yield handler.buffer
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
