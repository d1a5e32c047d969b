"""Writing the slice data set (layout: :mod:`~boltzformer_monai.data.slices.format`).

Volumes come from this process (:meth:`SliceWriter.add_volume`) or from others
(:func:`~boltzformer_monai.data.slices.volume.write_volume`, then :meth:`SliceWriter.accept`); the writer makes the
tables from their records. After an interruption complete volumes stay; the next writer removes the rest.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from boltzformer_monai.data.planes import PLANE_AXES
from boltzformer_monai.data.prompts import prompts_for
from boltzformer_monai.data.slices.format import (
    DATASET_FILE,
    FORMAT,
    MANIFEST_FILE,
    RECORDS_FOLDER,
    REPORT_FILE,
    SPLITS,
    VERSION,
)
from boltzformer_monai.data.slices.record import VolumeRecord, read_record, read_records, record_path
from boltzformer_monai.data.slices.tables import read_description, write_tables
from boltzformer_monai.data.slices.volume import RUN_FILE, STAGING_FOLDER, SliceSettings, write_volume
from boltzformer_monai.data.split import pseudonym, split_by_patient
from boltzformer_monai.data.windows import GreyScale
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.storage import writing

__all__ = ["AddedVolume", "SliceWriter"]

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_SLICE_NAME = re.compile(rf".+_({'|'.join(PLANE_AXES)})_\d{{4,}}\.png")
_KEY_CHECK = "the key of this data set"
# Least time between two writes of the tables in a with block, so that n volumes cost O(n), not O(n^2).
_FLUSH_SHARE, _FLUSH_SECONDS = 20, 5.0  # multiple of their cost, and seconds


@dataclass(frozen=True)
class AddedVolume:
    """Result of :meth:`SliceWriter.add_volume`; ``replaced``: an older volume of this id."""

    volume_id: str
    slices: int
    targets: tuple[str, ...]
    rows: int
    replaced: bool


class SliceWriter:
    """Create a slice data set, or add to one; only one writer at a time.

    In a ``with`` block the tables are written from time to time and at its end, also after an error or Ctrl-C;
    :meth:`add_volume` outside of one writes them after every volume.

    Args:
        root: folder of the data set, created on entering.
        name: of the data set; default: its own, or the folder's name.
        key: secret of the patients' pseudonyms, at most 64 bytes.
        val_fraction: share of patients for validation; default: the data set's, or 0.2.
        seed: of split and negatives; default: the data set's, or 0.

    Attributes:
        records: volume id → record of every volume in the tables.
        run: token of the current run for :func:`~.volume.write_volume` in other processes.

    Raises:
        DatasetError: the folder has other content, or an unreadable data set.
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        name: str | None = None,
        key: str = "",
        val_fraction: float | None = None,
        seed: int | None = None,
    ) -> None:
        self.root = Path(root)
        self._key = key
        self._wanted = (name, val_fraction, seed)
        self.run = ""
        self.records: dict[str, VolumeRecord] = {}
        self._lock: FileLock | None = None
        self._made: list[Path] = []
        self._flushed_at = -math.inf
        self._flush_cost = 0.0
        self._read_settings()

    def _read_settings(self) -> None:
        """Name, split and seed: given, else the data set's, else defaults."""
        old: dict[str, Any] = {}
        if (self.root / DATASET_FILE).exists():
            old = read_description(self.root)
        elif self.root.exists() and not _is_vacant(self.root):
            msg = f"{self.root}: exists and is not a slice data set; choose another output folder or empty it"
            raise DatasetError(msg)
        if old.get("volumes") and old.get("key_check") != pseudonym(_KEY_CHECK, key=self._key):
            msg = f"{self.root}: was made with another --key, so a patient would get two pseudonyms; use that key"
            raise DatasetError(msg)
        name, val_fraction, seed = self._wanted
        settings = {"val_fraction": 0.2, "seed": 0, **old.get("split", {})}
        self.name = name or old.get("name") or self.root.resolve().name
        self.val_fraction = float(settings["val_fraction"] if val_fraction is None else val_fraction)
        self.seed = int(settings["seed"] if seed is None else seed)
        split_by_patient((), val_fraction=self.val_fraction, seed=self.seed)  # checks the fraction

    def __enter__(self) -> SliceWriter:
        with writing(self.root):
            self._made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / LOCK_FILE)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                msg = f"{self.root}: another process is writing to this data set; wait for it or choose another folder"
                raise DatasetError(msg) from None
            self._lock = lock
        try:
            self._read_settings()  # again: another writer may have changed them before the lock
            self.records = read_records(self.root)
            # The tables identify a new folder as ours; after a killed run they list what it finished.
            with writing(self.root):
                for volume_id in _sweep(self.root, {name: each.files() for name, each in self.records.items()}):
                    logger.warning("%s: volume %s lacks pictures; it must be sliced again", self.root, volume_id)
                    self.drop(volume_id)
                    del self.records[volume_id]
                self.flush()
                self.run = secrets.token_hex(8)
                (self.root / RUN_FILE).write_text(self.run, encoding="ascii")
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Hidden volumes that were not replaced, and volumes of other processes.
            self.records = {**read_records(self.root), **self.records}
            self.flush()
        finally:
            self._release()

    def add_volume(
        self,
        image: Volume,
        label: Volume | None,
        labels: Mapping[int | str, str] | Mapping[int, str] | Mapping[str, str] | None,
        *,
        volume_id: str,
        patient: str,
        site: str,
        plane: str = "axial",
        window: GreyScale | None = None,
        prompts: Callable[..., tuple[str, ...]] = prompts_for,
        scan: str | None = None,
        split: str | None = None,
        negatives: float = 1.0,
        seed: int | None = None,
        settings: SliceSettings | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> AddedVolume:
        """Slice a volume into the data set, replacing a volume of the same id.

        Args:
            image: the scan, of a known modality.
            label: its label map on the same grid (any axis order), or None for slices without targets.
            labels: label value (or ``"2+3"`` for a target of several values) → target name; all are annotated, so a
                value that does not occur makes its target absent in every slice.
            volume_id: letters, digits, ``.``, ``_`` and ``-``; part of file names.
            patient: the patient's identity; only its pseudonym is stored.
            site: body site for prompts and for the default window, e.g. ``"abdomen"``.
            plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
            window: default: :func:`~boltzformer_monai.data.windows.default_window`.
            prompts: ``prompts(target, site=…, modality=…)`` returns the target's prompts.
            scan: the scan that this volume is one plane of, where it is sliced along several, each with an id of its
                own; default: the id.
            split: pins the patient, with all volumes, to ``"train"``, ``"val"`` or ``"test"``; of several pins the one
                furthest from training counts.
            negatives: share of the rows of absent targets to keep, 0 to 1; all images are kept.
            seed: of the choice of negatives; default: the writer's.
            settings: instead of plane, window, negatives and seed.
            progress: called after every slice with the number of slices done and the total.

        Raises:
            VolumeError: the label is not on the image's grid.
            DatasetError: the labels or the id cannot be used, or the folder cannot be written.
            ConfigError: a setting is unknown or out of range.
        """
        chosen = settings or SliceSettings(
            plane=plane, window=window, negatives=negatives, seed=self.seed if seed is None else seed
        )
        if self._lock is None:
            with self:
                return self.add_volume(
                    image, label, labels, volume_id=volume_id, patient=patient, site=site, prompts=prompts,
                    scan=scan, split=split, settings=chosen, progress=progress,
                )  # fmt: skip
        replaced = self.hide([volume_id])
        record = write_volume(
            self.root, image, label, labels, volume_id=volume_id, patient=patient, site=site, settings=chosen,
            key=self._key, prompts=prompts, scan=scan, split=split, progress=progress, run=self.run,
        )  # fmt: skip
        self.accept(record)
        rows = sum(1 for _ in record.rows(self.splits()[record.entry["patient"]]))
        return AddedVolume(volume_id, record.entry["slices"], tuple(record.entry["targets"]), rows, bool(replaced))

    def hide(self, volume_ids: Iterable[str]) -> set[str]:
        """Remove volumes from the tables before they are replaced; returns those that existed.

        A volume that an interrupted run neither accepts nor drops comes back.
        """
        found = {volume_id for volume_id in volume_ids if self.records.pop(volume_id, None) is not None}
        if found:
            self.flush(shrinking=True)
        return found

    def drop(self, volume_id: str) -> None:
        """Delete a volume whose scan is now refused.

        Raises:
            StorageError: a file cannot be removed.
        """
        with writing(self.root):
            old = read_record(self.root, volume_id)
            record_path(self.root, volume_id).unlink(missing_ok=True)
            for name in set() if old is None else old.files():
                (self.root / name).unlink(missing_ok=True)

    def accept(self, record: VolumeRecord) -> None:
        """Add a volume with a record on disk to the tables."""
        self.records[record.volume] = record
        if time.monotonic() - self._flushed_at > max(_FLUSH_SECONDS, _FLUSH_SHARE * self._flush_cost):
            self.flush()

    def flush(self, *, shrinking: bool = False) -> None:
        """Write manifest and description of all volumes.

        Args:
            shrinking: volumes were removed since the last call, and none added.

        Raises:
            StorageError: the folder cannot be written.
        """
        start = time.monotonic()
        ordered = [self.records[volume_id] for volume_id in sorted(self.records)]
        splits = self.splits()
        description = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "split": {"val_fraction": self.val_fraction, "seed": self.seed},
            "key_check": pseudonym(_KEY_CHECK, key=self._key),
            "volumes": {record.volume: record.entry for record in ordered},
        }
        rows = (row for record in ordered for row in record.rows(splits[record.entry["patient"]]))
        with writing(self.root):
            write_tables(self.root, description, rows, shrinking=shrinking)
        self._flushed_at = time.monotonic()
        self._flush_cost = self._flushed_at - start

    def splits(self) -> dict[str, str]:
        """Patient → split."""
        pinned: dict[str, str] = {}
        free: set[str] = set()
        for record in self.records.values():
            patient = record.entry["patient"]
            free.add(patient)
            if record.split is not None:
                # SPLITS is ordered by distance from training.
                pinned[patient] = max(record.split, pinned.get(patient, record.split), key=SPLITS.index)
        drawn = split_by_patient(free - pinned.keys(), val_fraction=self.val_fraction, seed=self.seed)
        return {**drawn, **pinned}

    def _release(self) -> None:
        """Release the lock; remove a new folder without volumes."""
        shutil.rmtree(self.root / STAGING_FOLDER, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.root / RUN_FILE).unlink(missing_ok=True)
        if not self.records and self._made and not (self.root / REPORT_FILE).exists():
            _remove_empty(self.root, self._made)
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _is_vacant(root: Path) -> bool:
    """Whether a folder has at most hidden files, which a killed writer may leave."""
    return root.is_dir() and all(path.name.startswith(".") for path in root.iterdir())


def _sweep(root: Path, claimed: Mapping[str, set[str]]) -> list[str]:
    """Remove a killed writer's staged files, temporary tables, and slices without a record; other names are kept.

    Args:
        root: folder of the data set.
        claimed: volume id → files of its record, as paths within the folder.

    Returns:
        The volumes with missing files.
    """
    shutil.rmtree(root / STAGING_FOLDER, ignore_errors=True)
    named = set[str]().union(*claimed.values())
    present = set()
    for folder in ("images", "labels"):
        for path in (root / folder).glob("*.png"):
            name = f"{folder}/{path.name}"
            if name in named:
                present.add(name)
            elif _SLICE_NAME.fullmatch(path.name):
                path.unlink()
    tables = (DATASET_FILE, MANIFEST_FILE, REPORT_FILE)
    for path in (*root.glob(".*-*"), *(root / RECORDS_FOLDER).glob(".*-*.json")):
        if path.parent.name == RECORDS_FOLDER or path.name.endswith(tables):  # of atomic_path
            path.unlink()
    return [volume_id for volume_id, names in claimed.items() if not names <= present]


def _remove_empty(root: Path, made: Iterable[Path]) -> None:
    """Remove a data set without volumes, and the folders created for it if they are empty."""
    for name in (DATASET_FILE, MANIFEST_FILE, LOCK_FILE):
        (root / name).unlink(missing_ok=True)
    for folder in (*(root / name for name in ("images", "labels", RECORDS_FOLDER)), *made):
        with contextlib.suppress(OSError):  # missing or not empty
            folder.rmdir()
