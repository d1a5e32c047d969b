"""One case → one volume in the slice data set: the unit of work, the same in this process, another or on a cluster."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from boltzformer_monai import __version__
from boltzformer_monai.data.label_map import canonical_labels, check_values
from boltzformer_monai.data.prompts import composite_targets, find_target
from boltzformer_monai.data.slice_format import VERSION
from boltzformer_monai.data.slice_record import VolumeRecord, record_path
from boltzformer_monai.data.slice_volume import SliceSettings, write_volume
from boltzformer_monai.errors import BoltzFormerError, ConfigError, DatasetError, StorageError
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.io.tilt import resample_tilt, tilt_degrees
from preprocessing.cases import Case

__all__ = ["Job", "JobSettings", "Outcome", "is_current", "slice_case", "source_digest"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobSettings:
    """What all cases of a run have in common. Picklable.

    Attributes:
        root: folder of the data set.
        slices: how volumes become slices.
        key: secret of the pseudonyms.
        tilt: what to do with a gantry tilt, ``"refuse"`` or ``"resample"``.
        composites: add targets that the vocabulary knows as the sum of annotated ones (kidney = left + right).
        allow_missing: a named label value that does not occur is a target that is absent; else it is a mistake.
        split: pins all patients to a split; None leaves it to the case.
    """

    root: Path
    slices: SliceSettings
    key: str = ""
    tilt: str = "refuse"
    composites: bool = False
    allow_missing: bool = True
    split: str | None = None


@dataclass(frozen=True)
class Job:
    """A case with the id that it has in the data set and the digest of all that decides what becomes of it."""

    case: Case
    volume_id: str
    source: str


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        volume_id: id in the data set.
        record: its record; None when the scan was refused.
        reason: why it was refused, without any name or path; "" otherwise.
        message: the whole line, with paths.
        warnings: what the readers said on the way, with paths.
    """

    volume_id: str
    record: VolumeRecord | None
    reason: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()


def slice_case(job: Job, settings: JobSettings) -> Outcome:
    """Read a case, slice it, and write its pictures and record.

    Whatever is wrong with this one scan becomes an :class:`Outcome`; the others must not suffer for it.

    Raises:
        StorageError: the data set cannot be written, which is no scan's fault.
    """
    with _collected_warnings() as said:
        outcome = _outcome(job, settings)
    return replace(outcome, warnings=tuple(said))


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


def is_current(job: Job, record: VolumeRecord | None, root: Path) -> bool:
    """Whether a volume is there already, made with these settings of these files, which are older than it."""
    if record is None or record.source != job.source:
        return False
    made = record_path(root, job.volume_id).stat().st_mtime_ns
    try:
        return all(path.stat().st_mtime_ns < made for path in _files(job.case))
    except OSError:
        return False


def source_digest(case: Case, settings: JobSettings) -> str:
    """Hash everything that decides how the slices look, but no absolute path: settings, names and sizes of the files.

    A file that cannot be seen counts as empty; reading it will say what is wrong.
    """
    files = _files(case)
    text = repr(case)
    for folder in sorted({str(path.parent) for path in files}, key=len, reverse=True):
        text = text.replace(folder, "")
    facts = {
        "version": (VERSION, __version__),
        "case": text,
        "files": sorted((path.name, path.stat().st_size if path.is_file() else 0) for path in files),
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("root", "key")},
    }
    secret = settings.key.encode()[: hashlib.blake2b.MAX_KEY_SIZE]
    return hashlib.blake2b(json.dumps(facts, default=repr).encode(), key=secret, digest_size=16).hexdigest()


def _slice(job: Job, settings: JobSettings) -> VolumeRecord:
    case = job.case
    # An annotation was drawn on the scan as it is stored, so a tilt is resampled only after both are read.
    image = case.read_image(tilt="refuse" if settings.tilt == "refuse" else "keep")
    if image.modality == "unknown" and case.window is None:
        msg = f"{case.image}: does not say its modality; add --modality CT or --modality MR"
        raise ConfigError(msg)
    drawn = None if case.annotation is None else case.annotation.draw_on(image)
    labels, notes = ({}, []) if drawn is None else _named(drawn, case, settings)
    label = None if drawn is None else drawn.volume
    if tilt_degrees(image.affine):
        notes.append(f"gantry tilt of {tilt_degrees(image.affine):.1f} degrees, resampled to a right-angled grid")
        label = None if label is None else resample_tilt(replace(label, affine=image.affine), order="nearest")
        image = resample_tilt(image)
    for note in notes:
        logger.warning("%s: %s", case.image, note)
    slices = settings.slices
    return write_volume(
        settings.root,
        image,
        label,
        labels,
        volume_id=job.volume_id,
        patient=case.patient,
        site=case.site,
        settings=slices if slices.window or case.window is None else replace(slices, window=case.window),
        key=settings.key,
        split=settings.split or case.split,
        notes=notes,
        source=job.source,
    )


def _named(drawn: Segmentation, case: Case, settings: JobSettings) -> tuple[Mapping[str, str], list[str]]:
    """Return value text → target of an annotation, and what there is to say about it."""
    files = ", ".join(map(str, case.annotation.files())) if case.annotation else ""
    if not drawn.names:
        msg = f"{files}: its label values have no names; say what they mean with --labels-json"
        raise DatasetError(msg)
    occurs = bool(np.any(drawn.volume.array))
    # A file that carries its own names may list segments that nobody drew.
    allow_missing = settings.allow_missing or drawn.segments is not None
    notes = ["no label value occurs: every target is absent"] if allow_missing and not occurs else []
    if occurs or not allow_missing:
        try:
            # Without any path, because the notes are stored.
            notes += check_values(drawn.volume.array, drawn.names, where="label map", allow_missing=allow_missing)
        except DatasetError as error:
            msg = f"{files}: {error}"
            raise DatasetError(msg) from None
    targets = canonical_labels(drawn.names)
    unknown = [target for target in targets if find_target(target) is None]
    notes += [f'the vocabulary does not know "{target}"; its prompts are made of its name' for target in unknown]
    if settings.composites:
        targets |= composite_targets(targets)
    return {value: target for target, value in targets.items()}, notes


class _Collector(logging.Handler):
    """Puts warnings into a list."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect what our readers warn of, which in another process nobody would see in order, and hush pydicom.

    pydicom's own warnings quote header values, names among them.
    """
    said: list[str] = []
    handler = _Collector(said)
    ours = [logging.getLogger(name) for name in ("boltzformer_monai", "preprocessing")]
    before = [(log, log.propagate) for log in ours]
    for log in ours:
        log.addHandler(handler)
        log.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pydicom")
            yield said
    finally:
        for log, propagate in before:
            log.removeHandler(handler)
            log.propagate = propagate


def _files(case: Case) -> list[Path]:
    """All files that a case is made of."""
    places = [case.image, *(case.annotation.files() if case.annotation else ())]
    found = []
    for place in places:
        inside = [Path(folder, name) for folder, _, names in os.walk(place) for name in names] if place.is_dir() else []
        found += inside or [place]
    return found
