"""What a slice dataset holds, in a few numbers that go with a model trained on it: no names, no places."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Any

from boltzformer_monai.data.slices.format import SPLITS, scan_of
from boltzformer_monai.data.slices.reader import SliceReader

__all__ = ["data_digest", "training_data"]


def training_data(reader: SliceReader) -> dict[str, Any]:
    """Counts by split, modality, site and plane, spacings in mm, and a hash of the records.

    A scan that was sliced along several planes counts once, but in each of its planes.

    Returns:
        ``splits`` (volumes, patients, slices each), ``modalities``, ``sites``, ``planes`` (name → volumes),
        ``pixel_spacing_mm`` and ``slice_spacing_mm`` (least, median, largest), ``sha256`` of what the dataset's tables
        say of its volumes, ``split_sha256`` of which of them is in which split; ``fold`` where the split is of one.
    """
    splits: dict[str, dict[str, int]] = {}
    spacings: dict[str, tuple[float, float, float]] = {}
    for split in SPLITS:
        rows = reader.select(split=split)
        spacings |= {row.volume: row.spacing for row in rows}
        if rows:
            splits[split] = {
                "volumes": len({row.scan for row in rows}),
                "patients": len({row.patient for row in rows}),
                "slices": len({row.image for row in rows}),
            }
    volumes = list(reader.volumes.values())
    scans = {scan_of(volume_id, entry): entry for volume_id, entry in reader.volumes.items()}
    return {
        "splits": splits,
        **{plural: _counted(scan[key] for scan in scans.values()) for key, plural in _KINDS.items()},
        "planes": _counted(volume["plane"] for volume in volumes),
        "pixel_spacing_mm": _range(max(spacing[:2]) for spacing in spacings.values()),
        "slice_spacing_mm": _range(spacing[2] for spacing in spacings.values()),
        "sha256": _digest(reader.volumes),
        "split_sha256": _digest(_split(reader)),
        **({"fold": reader.fold} if reader.fold else {}),
    }


def data_digest(reader: SliceReader) -> str:
    """A hash of the volumes' records and their split."""
    return _digest([reader.volumes, _split(reader)])


def _split(reader: SliceReader) -> dict[str, str]:
    """Volume → split; counts do not tell one split from another."""
    return {row.volume: row.split for row in reader.rows}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


_KINDS = {"modality": "modalities", "site": "sites"}


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(map(str, names)).most_common())


def _range(values: Iterable[float]) -> list[float]:
    found = [float(value) for value in values]
    return [round(each, 3) for each in (min(found), median(found), max(found))] if found else []
