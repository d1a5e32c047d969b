"""Writing the slice data set (layout: :mod:`~boltzformer_monai.data.slice_format`).

A volume is either in the data set with all its slices or not at all. Its pictures are made in a staging folder, moved
into place, and only then named in ``manifest.csv`` and ``dataset.json``, which are replaced atomically. Stopping at any
moment therefore leaves a data set that reads; at worst it lacks the volume that was being written.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from boltzformer_monai.data.datalist import pseudonym, split_by_patient
from boltzformer_monai.data.label_map import canonical_labels
from boltzformer_monai.data.planes import extract_slices, slice_spacing
from boltzformer_monai.data.prompts import normalise_site, prompts_for
from boltzformer_monai.data.slice_files import read_description, read_manifest, reported, staged_pictures, write_tables
from boltzformer_monai.data.slice_format import COLUMNS, DATASET_FILE, FORMAT, SPLITS, VERSION, slice_name
from boltzformer_monai.data.slice_rows import label_slices, volume_rows
from boltzformer_monai.data.windows import MRPercentiles, Window, default_window
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.io.volume import Volume, reorient_label

__all__ = ["AddedVolume", "SliceWriter"]

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
    """Make a slice data set, or add to one. One writer at a time.

    Used in a ``with`` block, the tables are written from time to time and at its end, also when it ends by an error or
    Ctrl-C; used without, after every volume.

    Args:
        root: folder of the data set; made when the first volume is added.
        name: name of the data set; default: the one it has, or the folder's name.
        key: secret of the patients' pseudonyms, at most 64 bytes.
        val_fraction: share of patients for validation; default: the one the data set has, or 0.2.
        seed: draws the split and the negatives; default: the one the data set has, or 0.

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
        self._stamp = self._read_stamp()
        old: dict[str, Any] = {"volumes": {}}
        if self._stamp is not None:
            old = read_description(self.root)
        elif self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            msg = f"{self.root}: exists and is not a slice data set; choose another output folder or empty it"
            raise DatasetError(msg)
        settings = {"val_fraction": 0.2, "seed": 0, **old.get("split", {})}
        self.name = name or old.get("name") or self.root.resolve().name
        self.val_fraction = float(settings["val_fraction"] if val_fraction is None else val_fraction)
        self.seed = int(settings["seed"] if seed is None else seed)
        split_by_patient((), val_fraction=self.val_fraction, seed=self.seed)  # refuses a bad fraction now, not later
        self._pinned: dict[str, str] = dict(old.get("pinned", {}))
        self._volumes: dict[str, dict[str, Any]] = dict(old["volumes"])
        self._rows: dict[str, list[tuple[str, ...]]] = {volume_id: [] for volume_id in self._volumes}
        if self._stamp is not None:
            for fields in read_manifest(self.root):
                if fields["volume"] in self._rows:  # a row of a volume that is not described is a remnant
                    self._rows[fields["volume"]].append(tuple(fields[column] for column in COLUMNS[:-1]))
        self._deferred = False
        self._dirty = False
        self._flushed_at = -math.inf
        self._flush_cost = 0.0

    def __enter__(self) -> SliceWriter:
        self._deferred = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deferred = False
        if self._dirty:
            self.flush()

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
        window: Window | MRPercentiles | None = None,
        prompts: Callable[..., tuple[str, ...]] = prompts_for,
        split: str | None = None,
        negatives: float = 1.0,
        seed: int | None = None,
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
            split: pins the patient, with all volumes, to ``"train"``, ``"val"`` or ``"test"``.
            negatives: share of the rows of absent targets to keep, 0 to 1; every slice's picture is kept.
            seed: draws the negatives; default: the writer's.
            progress: called after every slice with the number of slices done and of all.

        Raises:
            VolumeError: the label is not on the image's grid.
            DatasetError: the labels or the id cannot be used, or the folder cannot be written.
            ConfigError: a setting is unknown or out of range.
        """
        _check_settings(volume_id, split, negatives)
        if (label is None) != (not labels):
            msg = f"volume {volume_id}: a label map needs names for its values, and names need a label map"
            raise DatasetError(msg)
        site = normalise_site(site)
        window = window or default_window(image.modality, site)
        targets = {} if label is None else canonical_labels(labels or {})
        spacing = slice_spacing(image, plane)
        grey = extract_slices(Volume(window.apply(image.array), image.affine), plane)
        values = None if label is None else label_slices(reorient_label(label, image), plane)
        entry = {
            "patient": pseudonym(patient, key=self._key),
            "modality": image.modality,
            "site": site,
            "plane": plane,
            "shape": list(image.shape),
            "affine": image.affine.tolist(),
            "spacing": list(spacing),
            "window": window.to_dict(),
            "targets": targets,
            "slices": len(grey),
            "complete": True,
        }
        texts = {target: prompts(target, site=site, modality=image.modality) for target in targets}
        draw = self.seed if seed is None else seed
        rows = list(volume_rows(volume_id, entry, values, prompts=texts, negatives=negatives, seed=draw))
        replaced = volume_id in self._volumes
        if self._stamp is None:
            self.flush()  # the folder is a (still empty) data set from the first moment
        with (
            reported(self.root),
            staged_pictures(self.root, volume_id, plane, grey, values, progress) as move_into_place,
        ):
            if replaced:
                self._forget(volume_id)
            move_into_place()
            self._volumes[volume_id], self._rows[volume_id] = entry, rows
            if split is not None:
                self._pinned[entry["patient"]] = split
            self._dirty = True
        if not self._deferred or time.monotonic() - self._flushed_at > max(
            _FLUSH_SECONDS, _FLUSH_SHARE * self._flush_cost
        ):
            self.flush()
        return AddedVolume(volume_id, len(grey), tuple(targets), len(rows), replaced)

    def flush(self) -> None:
        """Write manifest and description, so that they name every volume added so far.

        Raises:
            DatasetError: the folder cannot be written, or another writer changed it meanwhile.
        """
        start = time.monotonic()
        patients = {entry["patient"] for entry in self._volumes.values()}
        self._pinned = {patient: split for patient, split in self._pinned.items() if patient in patients}
        free = split_by_patient(patients - self._pinned.keys(), val_fraction=self.val_fraction, seed=self.seed)
        splits = {**free, **self._pinned}
        description = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "split": {"val_fraction": self.val_fraction, "seed": self.seed},
            "pinned": self._pinned,
            "volumes": self._volumes,
        }
        rows = (
            (*row, splits[self._volumes[volume_id]["patient"]])
            for volume_id, rows in self._rows.items()
            for row in rows
        )
        with reported(self.root):
            if self._read_stamp() != self._stamp:
                msg = f"{self.root}: another process wrote to this data set; slice into it with one process at a time"
                raise DatasetError(msg)
            self.root.mkdir(parents=True, exist_ok=True)
            write_tables(self.root, description, rows)
            self._stamp = self._read_stamp()
        self._dirty = False
        self._flushed_at = time.monotonic()
        self._flush_cost = self._flushed_at - start

    def _read_stamp(self) -> tuple[int, ...] | None:
        """What identifies this very ``dataset.json`` (a rename gives it another inode), None when there is none."""
        try:
            status = (self.root / DATASET_FILE).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _forget(self, volume_id: str) -> None:
        """Take a volume out of the tables, then remove its pictures."""
        entry = self._volumes.pop(volume_id)
        del self._rows[volume_id]
        self.flush()
        for folder in ("images", "labels"):
            for index in range(entry["slices"]):
                (self.root / folder / slice_name(volume_id, entry["plane"], index)).unlink(missing_ok=True)


def _check_settings(volume_id: str, split: str | None, negatives: float) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", volume_id):
        msg = f"volume id {volume_id!r} must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit"
        raise DatasetError(msg)
    if split is not None and split not in SPLITS:
        msg = f"unknown split {split!r}; use one of {', '.join(SPLITS)}"
        raise ConfigError(msg)
    if not 0 <= negatives <= 1:
        msg = f"the share of negatives must lie between 0 and 1, got {negatives}"
        raise ConfigError(msg)
