"""The record of one volume in a slice data set, from which its rows in the tables are made.

It is written after the volume's last slice, so a volume with a record is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boltzformer_monai.data.label_names import parse_label_values
from boltzformer_monai.data.slices.format import (
    MOST_SLICES,
    RECORDS_FOLDER,
    VOLUME_FIELDS,
    scan_of,
    slice_name,
    stored_slices,
)
from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.limits import read_json
from boltzformer_monai.storage import atomic_path

__all__ = ["VolumeRecord", "read_record", "read_records", "record_path", "target_areas", "write_record"]


@dataclass(frozen=True)
class VolumeRecord:
    """One volume of a slice data set.

    Attributes:
        volume: id.
        entry: of ``dataset.json``.
        prompts: target → its prompts; empty without a label.
        areas: target → its pixels in every slice of the volume; None without a label.
        pixels: of a slice.
        negatives: share of the rows of absent targets that is kept.
        seed: of their random choice.
        split: that the patient is pinned to; None: random.
        notes: remarks without names and paths.
        source: digest of settings and input files, by which a restarted run skips the volume; ``""`` if unknown.
    """

    volume: str
    entry: Mapping[str, Any]
    prompts: Mapping[str, Sequence[str]]
    areas: Mapping[str, Sequence[int]] | None
    pixels: int
    negatives: float
    seed: int
    split: str | None = None
    notes: Sequence[str] = ()
    source: str = ""

    @property
    def scan(self) -> str:
        """The scan that it is a plane of."""
        return scan_of(self.volume, self.entry)

    def taken(self) -> range:
        """Indices of the slices with rows: every n-th one."""
        return range(0, int(self.entry["slices"]), int(self.entry["every"]))

    def stored(self) -> list[int]:
        """Indices of the slices on disk: every n-th one, and its neighbours."""
        return sorted(stored_slices(*(int(self.entry[name]) for name in ("slices", "every", "neighbours"))))

    def files(self) -> set[str]:
        """Its images and labels, as paths within the data set."""
        folders = ("images",) if self.areas is None else ("images", "labels")
        names = [slice_name(self.volume, self.entry["plane"], index) for index in self.stored()]
        return {f"{folder}/{name}" for folder in folders for name in names}

    def rows(self, split: str) -> Iterator[tuple[str, ...]]:
        """Rows of the manifest for every slice and target, given the patient's split.

        A target of fewer than ``min_area`` pixels in a slice is neither present nor absent, and has no row. Negatives
        are thinned out for training only; which ones depends on seed, volume, target and slice alone.
        """
        entry, targets = self.entry, self.entry["targets"]
        texts = {target: json.dumps(list(self.prompts[target]), ensure_ascii=False) for target in targets}
        spacing = "x".join(f"{value:.6g}" for value in entry["spacing"])
        window = json.dumps(entry["window"], separators=(",", ":"))
        owner = (entry["patient"], self.volume)
        for index in self.taken():
            name = slice_name(self.volume, entry["plane"], index)
            common = (entry["modality"], entry["site"], entry["plane"], str(index), spacing, window)
            if self.areas is None:
                yield (f"images/{name}", "", "", "", "", *common, "", *owner, split)
                continue
            for target, value in targets.items():
                area = self.areas[target][index]
                present = area >= max(entry["min_area"], 1)
                if present or (area == 0 and (split != "train" or self._kept(target, index))):
                    files = (f"images/{name}", f"labels/{name}")
                    yield (*files, value, target, texts[target], *common, f"{area / self.pixels:.8g}", *owner, split)

    def _kept(self, target: str, index: int) -> bool:
        text = f"{self.seed}:{self.volume}:{target}:{index}"
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
        return number / 2**48 < self.negatives


def target_areas(values: np.ndarray, targets: Mapping[str, str]) -> dict[str, list[int]]:
    """Count the pixels of every target in every slice.

    Args:
        values: label slices (N, H, W), uint8 or uint16.
        targets: target → value text.
    """
    wanted = {target: list(parse_label_values(text)) for target, text in targets.items()}
    top = max(max(numbers) for numbers in wanted.values())
    counts = [_histogram(label, top) for label in values]
    return {target: [int(count[numbers].sum()) for count in counts] for target, numbers in wanted.items()}


def _histogram(label: np.ndarray, top: int) -> np.ndarray:
    if label.dtype == np.uint8:  # without the copy to 64 bits that bincount makes
        return np.pad(Image.fromarray(label).histogram(), (0, max(top - 255, 0)))
    return np.bincount(label.ravel(), minlength=top + 1)


def record_path(root: Path, volume_id: str) -> Path:
    """Path of a volume's record."""
    return root / RECORDS_FOLDER / f"{volume_id}.json"


def write_record(root: Path, record: VolumeRecord) -> None:
    """Write a record atomically."""
    with atomic_path(record_path(root, record.volume), durable=False) as temporary:
        text = json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":"))
        temporary.write_text(text + "\n", encoding="utf-8")


def read_records(root: Path) -> dict[str, VolumeRecord]:
    """Records of a data set by volume id, in the order of the ids.

    Raises:
        DatasetError: a record is damaged.
    """
    files = sorted((root / RECORDS_FOLDER).glob("[!.]*.json"), key=lambda path: path.stem)
    return {path.stem: _parse(path) for path in files}


def read_record(root: Path, volume_id: str) -> VolumeRecord | None:
    """Record of one volume, or None.

    Raises:
        DatasetError: it is damaged.
    """
    path = record_path(root, volume_id)
    return _parse(path) if path.is_file() else None


def _parse(path: Path) -> VolumeRecord:
    try:
        record = VolumeRecord(**read_json(path))
        whole = record.volume == path.stem and all(field in record.entry for field in VOLUME_FIELDS)
        whole = whole and 0 <= int(record.entry["slices"]) <= MOST_SLICES and int(record.entry["every"]) >= 1
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{path}: cannot be read ({why(error)}); remove it and slice its volume again") from None
    if not whole:
        raise DatasetError(f"{path}: is not a complete record of its volume; remove it and slice the volume again")
    return record
