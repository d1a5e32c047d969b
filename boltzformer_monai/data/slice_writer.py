"""Writing the slice data set (layout: :mod:`~boltzformer_monai.data.slice_format`).

Volumes come one by one, from this process (:meth:`SliceWriter.add_volume`) or from others
(:func:`~boltzformer_monai.data.slice_volume.write_volume`, then :meth:`SliceWriter.accept`); the writer makes the
tables of their records. It can be stopped at any moment: what is complete stays, the rest is swept away by the next
writer.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from boltzformer_monai.data.datalist import split_by_patient
from boltzformer_monai.data.prompts import prompts_for
from boltzformer_monai.data.slice_files import read_description, write_tables
from boltzformer_monai.data.slice_format import DATASET_FILE, FORMAT, RECORDS_FOLDER, REPORT_FILE, SPLITS, VERSION
from boltzformer_monai.data.slice_record import VolumeRecord, read_records
from boltzformer_monai.data.slice_volume import STAGING_FOLDER, SliceSettings, reported, write_volume
from boltzformer_monai.data.windows import GreyScale
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.io.volume import Volume

__all__ = ["AddedVolume", "SliceWriter"]

_LOCK_FILE = ".lock"
_FLUSH_SHARE = 20  # inside a with block the tables are rewritten at most this many times their cost apart,
_FLUSH_SECONDS = 5.0  # and not more often than this, so that n volumes cost O(n), not O(n^2)


@dataclass(frozen=True)
class AddedVolume:
    """What :meth:`SliceWriter.add_volume` wrote: ids, counts, and whether an older volume of that id was replaced."""

    volume_id: str
    slices: int
    targets: tuple[str, ...]
    rows: int
    replaced: bool


class SliceWriter:
    """Make a slice data set, or add to one; a second writer at the same time is refused.

    In a ``with`` block the tables are written from time to time and at its end, also when it ends by an error or
    Ctrl-C; :meth:`add_volume` outside of one writes them after every volume.

    Args:
        root: folder of the data set; made when the writer is entered.
        name: name of the data set; default: the one it has, or the folder's name.
        key: secret of the patients' pseudonyms, at most 64 bytes.
        val_fraction: share of patients for validation; default: the one the data set has, or 0.2.
        seed: draws the split and the negatives; default: the one the data set has, or 0.

    Attributes:
        records: volume id → record of every volume that the tables shall name.

    Raises:
        DatasetError: the folder holds something else, or a data set that cannot be read.
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
        old: dict[str, Any] = {}
        if (self.root / DATASET_FILE).exists():
            old = read_description(self.root)
        elif self.root.exists() and not _is_vacant(self.root):
            msg = f"{self.root}: exists and is not a slice data set; choose another output folder or empty it"
            raise DatasetError(msg)
        settings = {"val_fraction": 0.2, "seed": 0, **old.get("split", {})}
        self.name = name or old.get("name") or self.root.resolve().name
        self.val_fraction = float(settings["val_fraction"] if val_fraction is None else val_fraction)
        self.seed = int(settings["seed"] if seed is None else seed)
        split_by_patient((), val_fraction=self.val_fraction, seed=self.seed)  # refuses a bad fraction now, not later
        self.records: dict[str, VolumeRecord] = {}
        self._lock: FileLock | None = None
        self._made: list[Path] = []
        self._flushed_at = -math.inf
        self._flush_cost = 0.0

    def __enter__(self) -> SliceWriter:
        with reported(self.root):
            self._made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / _LOCK_FILE)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                msg = f"{self.root}: another process is writing to this data set; wait for it or choose another folder"
                raise DatasetError(msg) from None
            self._lock = lock
        try:
            self.records = read_records(self.root)
            with reported(self.root):
                self._sweep()
            if self.records or (self.root / DATASET_FILE).exists():
                self.flush()  # after a run that was killed, the tables do not name what it finished
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Hidden volumes that were not replaced, and what other processes finished before they were stopped.
            self.records = {**read_records(self.root), **self.records}
            if self.records or (self.root / DATASET_FILE).exists():
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
        split: str | None = None,
        negatives: float = 1.0,
        seed: int | None = None,
        settings: SliceSettings | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> AddedVolume:
        """Slice a volume into the data set; a volume of the same id is replaced.

        Args:
            image: the scan, of a known modality.
            label: its label map on the same physical grid (any axis order), or None for slices without targets.
            labels: label value (or ``"2+3"`` for a target of several values) → target name; every one of them counts
                as annotated, so a value that does not occur makes its target absent in every slice.
            volume_id: letters, digits, ``.``, ``_`` and ``-``; it becomes part of file names.
            patient: identity of the patient; only its pseudonym is stored.
            site: body site for prompts and for the default window, e.g. ``"abdomen"``.
            plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
            window: default: :func:`~boltzformer_monai.data.windows.default_window`.
            prompts: called as ``prompts(target, site=…, modality=…)``, returns the texts that ask for the target.
            split: pins the patient, with all volumes, to ``"train"``, ``"val"`` or ``"test"``; of several pins the one
                that keeps the patient furthest from training counts.
            negatives: share of the rows of absent targets to keep, 0 to 1; every slice's picture is kept.
            seed: draws the negatives; default: the writer's.
            settings: all of plane, window, negatives and seed, and more, instead of the arguments of these names.
            progress: called after every slice with the number of slices done and of all.

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
                    split=split, settings=chosen, progress=progress,
                )  # fmt: skip
        replaced = self.hide([volume_id])
        record = write_volume(
            self.root, image, label, labels, volume_id=volume_id, patient=patient, site=site, settings=chosen,
            key=self._key, prompts=prompts, split=split, progress=progress,
        )  # fmt: skip
        self.accept(record)
        rows = sum(1 for _ in record.rows())
        return AddedVolume(volume_id, record.entry["slices"], tuple(record.entry["targets"]), rows, bool(replaced))

    def hide(self, volume_ids: Iterable[str]) -> set[str]:
        """Take volumes that are about to be replaced out of the tables; return which of them were there.

        A volume that is not accepted in the end, because it could not be read or was interrupted, comes back.
        """
        found = {volume_id for volume_id in volume_ids if self.records.pop(volume_id, None) is not None}
        if found:
            self.flush()
        return found

    def accept(self, record: VolumeRecord) -> None:
        """Name a volume whose record is on disk in the tables."""
        self.records[record.volume] = record
        if time.monotonic() - self._flushed_at > max(_FLUSH_SECONDS, _FLUSH_SHARE * self._flush_cost):
            self.flush()

    def flush(self) -> None:
        """Write manifest and description, so that they name every volume added so far.

        Raises:
            StorageError: the folder cannot be written.
        """
        start = time.monotonic()
        ordered = [self.records[volume_id] for volume_id in sorted(self.records)]
        splits = self._splits(ordered)
        description = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "split": {"val_fraction": self.val_fraction, "seed": self.seed},
            "volumes": {record.volume: record.entry for record in ordered},
        }
        rows = ((*row, splits[record.entry["patient"]]) for record in ordered for row in record.rows())
        with reported(self.root):
            write_tables(self.root, description, rows)
        self._flushed_at = time.monotonic()
        self._flush_cost = self._flushed_at - start

    def _splits(self, records: Iterable[VolumeRecord]) -> dict[str, str]:
        """Patient → split."""
        pinned: dict[str, str] = {}
        free: set[str] = set()
        for record in records:
            patient = record.entry["patient"]
            free.add(patient)
            if record.split is not None:
                # SPLITS is ordered by the distance from training: nothing pinned to test can leak.
                pinned[patient] = max(record.split, pinned.get(patient, record.split), key=SPLITS.index)
        drawn = split_by_patient(free - pinned.keys(), val_fraction=self.val_fraction, seed=self.seed)
        return {**drawn, **pinned}

    def _sweep(self) -> None:
        """Remove what a killed writer left: staged files, and pictures and half-written files that nobody names."""
        shutil.rmtree(self.root / STAGING_FOLDER, ignore_errors=True)
        claimed = {name for record in self.records.values() for name in record.files()}
        for folder in ("images", "labels"):
            for path in (self.root / folder).glob("*"):
                if f"{folder}/{path.name}" not in claimed:
                    path.unlink()
        for place in (self.root, self.root / RECORDS_FOLDER):
            for path in place.glob(".*-*.json"):  # made by atomic_path
                path.unlink()

    def _release(self) -> None:
        """Give the lock back; a folder into which nothing was written goes as it came."""
        shutil.rmtree(self.root / STAGING_FOLDER, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if not (self.root / DATASET_FILE).exists() and self._made:
            (self.root / _LOCK_FILE).unlink(missing_ok=True)
            empty = [self.root / name for name in ("images", "labels", RECORDS_FOLDER)]
            with contextlib.suppress(OSError):  # a folder that is not there, or not empty
                for folder in (*(path for path in empty if path.exists()), *self._made):
                    folder.rmdir()


def _is_vacant(root: Path) -> bool:
    """Whether a folder holds nothing but what a writer makes that was killed before its first table."""
    own = {_LOCK_FILE, STAGING_FOLDER, "images", "labels", RECORDS_FOLDER, REPORT_FILE}
    return root.is_dir() and own >= {path.name for path in root.iterdir()}
