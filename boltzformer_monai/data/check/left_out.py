"""Targets that a scan shows only in slices that the data set leaves out: ``every`` and ``min_area`` do that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.data.slices.record import read_record
from boltzformer_monai.errors import DatasetError

__all__ = ["drawn_targets"]


def drawn_targets(root: Path, volume_id: str, entry: Mapping[str, Any]) -> set[str]:
    """Return the targets that are drawn anywhere in a scan of which not every slice and object is kept.

    Empty for a volume that is kept whole, and where no usable record says what was drawn.

    Args:
        root: folder of the data set.
        volume_id: the volume.
        entry: what ``dataset.json`` says of it.
    """
    if entry.get("every", 1) == 1 and entry.get("min_area", 0) <= 1:
        return set()
    try:
        record = read_record(root, volume_id)
    except DatasetError:
        return set()
    areas = {} if record is None else record.areas or {}
    return {target for target, pixels in areas.items() if any(pixels)}
