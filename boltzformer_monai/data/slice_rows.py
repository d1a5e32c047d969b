"""The rows of the manifest for one volume: which target is where, how large, and which negatives are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from boltzformer_monai.data.planes import extract_slices
from boltzformer_monai.data.slice_format import parse_label_values, slice_name
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.io.volume import Volume

__all__ = ["label_slices", "volume_rows"]


def label_slices(label: Volume, plane: str) -> np.ndarray:
    """Return the slices (N, H, W) of a label map as the smaller of uint8 and uint16 that holds its values.

    Raises:
        DatasetError: a value is negative or above 65535.
    """
    lowest, highest = int(label.array.min()), int(label.array.max())
    if lowest < 0 or highest > 65535:
        msg = f"{label.source or 'label map'}: label values from {lowest} to {highest}, a slice stores 0 to 65535"
        raise DatasetError(msg)
    return extract_slices(label, plane).astype(np.uint8 if highest <= 255 else np.uint16)


def volume_rows(
    volume_id: str,
    entry: Mapping[str, Any],
    values: np.ndarray | None,
    *,
    prompts: Mapping[str, tuple[str, ...]],
    negatives: float,
    seed: int,
) -> Iterator[tuple[str, ...]]:
    """Yield the manifest's columns but the last (the split) for every slice and target of a volume.

    Args:
        volume_id: id of the volume.
        entry: its entry in ``dataset.json``.
        values: label slices (N, H, W), None without a label.
        prompts: the texts that ask for each target.
        negatives: share of the rows of absent targets that is kept.
        seed: draws which; the draw for a slice depends on nothing but the seed, the volume, the target and the index.
    """
    targets: Mapping[str, str] = entry["targets"]
    texts = {target: json.dumps(prompts[target], ensure_ascii=False) for target in targets}
    spacing = "x".join(f"{value:.6g}" for value in entry["spacing"])
    window = json.dumps(entry["window"], separators=(",", ":"))
    wanted = [parse_label_values(value) for value in targets.values()]
    for index in range(entry["slices"]):
        name = slice_name(volume_id, entry["plane"], index)
        common = (entry["modality"], entry["site"], entry["plane"], str(index), spacing, window)
        owner = (entry["patient"], volume_id)
        if values is None:
            yield (f"images/{name}", "", "", "", "", *common, "", *owner)
            continue
        areas = _area_fractions(values[index], wanted)
        for (target, value), area in zip(targets.items(), areas, strict=True):
            if area > 0 or _draw(f"{seed}:{volume_id}:{target}:{index}") < negatives:
                yield (f"images/{name}", f"labels/{name}", value, target, texts[target], *common, f"{area:.8g}", *owner)


def _area_fractions(values: np.ndarray, wanted: list[tuple[int, ...]]) -> list[float]:
    top = max(max(target) for target in wanted)
    counts = np.bincount(values.ravel(), minlength=top + 1)
    return [float(counts[list(target)].sum() / values.size) for target in wanted]


def _draw(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
