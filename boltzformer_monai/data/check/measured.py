"""One pass over the images and labels of a volume: grey values, label values, object sizes and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai.data.check.duplicates import Duplicates, Place
from boltzformer_monai.data.check.findings import Findings
from boltzformer_monai.data.check.integrity import DataSet, Grid, annotated_targets, volume_grid
from boltzformer_monai.data.label_names import parse_label_values
from boltzformer_monai.data.slices.reader import SliceRow, read_png
from boltzformer_monai.errors import DatasetError

__all__ = ["MeasuredVolume", "check_occurrence", "measure_volume"]

_HIDDEN = 0.9  # the window hides a target with at least this share of black and white pixels


@dataclass
class MeasuredVolume:
    """Content of a volume's images and labels.

    Attributes:
        grid: its slices; None if its description contradicts itself.
        grey: histogram (256,) of all pixels.
        pictures: number of readable images.
        flat: those of a single grey value.
        values: label values, ascending, without 0.
        areas: rows with a readable label, each with the target's recounted share of the slice.
    """

    grid: Grid | None = None
    grey: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    pictures: int = 0
    flat: int = 0
    values: list[int] = field(default_factory=list)
    areas: list[tuple[SliceRow, float]] = field(default_factory=list)


@dataclass
class _Labels:
    """Pixels of a volume's labels by value, the black or white ones among them, and pixel types."""

    pixels: Counter[int] = field(default_factory=Counter)
    saturated: Counter[int] = field(default_factory=Counter)
    types: set[str] = field(default_factory=set)


def measure_volume(
    data_set: DataSet,
    volume_id: str,
    *,
    findings: Findings,
    duplicates: Duplicates,
    picture_done: Callable[[], object] = lambda: None,
) -> MeasuredVolume:
    """Read and check the images and labels of a volume, each once.

    Args:
        data_set: the data set.
        volume_id: the volume.
        findings: collects errors.
        duplicates: receives every image.
        picture_done: called after every image and its labels.
    """
    name, entry = data_set.name, data_set.reader.volumes[volume_id]
    measured, labels = MeasuredVolume(), _Labels()
    try:
        measured.grid = volume_grid(entry)
    except DatasetError as error:
        findings.add("wrong-geometry", name, f"{volume_id} {error}")
    keys: list[bytes] = []
    seen: set[bytes] = set()
    place: Place | None = None
    for path, rows in data_set.rows[volume_id].items():
        place = place or Place(name, volume_id, entry["patient"], rows[0].split)
        if measured.grid is not None and not all(0 <= row.slice_index < measured.grid.slices for row in rows):
            findings.add("wrong-geometry", name, f"{path.name}: the volume has {measured.grid.slices} slices")
        image = _read_image(path, measured.grid, name, findings)
        if image is not None:
            key = duplicates.add_picture(image, place)
            if duplicates.repeated(key, seen):
                findings.add("repeated-picture", name, f"{volume_id}: {path.name}")
            keys.append(key)
            seen.add(key)
            counts = np.bincount(image.ravel(), minlength=256)
            measured.grey += counts
            measured.pictures += 1
            if np.count_nonzero(counts) == 1:
                measured.flat += 1
                findings.add("flat-picture", name, path.name)
        for label_path in dict.fromkeys(row.label for row in rows if row.label is not None):
            own = [row for row in rows if row.label == label_path]
            _measure_label(label_path, own, image, measured, labels, name, findings)
        picture_done()
    if place is not None:
        duplicates.add_volume(keys, place)
    if measured.pictures and np.count_nonzero(measured.grey) == 1:
        findings.add("no-contrast", name, volume_id)
    measured.values = sorted(labels.pixels)
    _check_labels(data_set, volume_id, labels, findings)
    return measured


def _read_image(path: Path, grid: Grid | None, name: str, findings: Findings) -> np.ndarray | None:
    image = _read(path, name, findings)
    if image is None:
        return None
    if image.dtype != np.uint8:
        findings.add("wrong-picture-type", name, f"{path.name}: {image.dtype}")
        return None
    if grid is not None and image.shape != grid.size:
        findings.add("wrong-picture-size", name, f"{path.name}: {_size(image.shape)}, not {_size(grid.size)}")
    return image


def _read(path: Path, name: str, findings: Findings) -> np.ndarray | None:
    try:
        return read_png(path)
    except DatasetError as error:
        what = str(error).removeprefix(f"{path}: ").partition(";")[0]  # the finding has its own advice
        findings.add("damaged-picture", name, f"{path.parent.name}/{path.name} {what}".replace(f"{path.parent}/", ""))
        return None


def _measure_label(
    path: Path,
    rows: Sequence[SliceRow],
    image: np.ndarray | None,
    measured: MeasuredVolume,
    labels: _Labels,
    name: str,
    findings: Findings,
) -> None:
    label = _read(path, name, findings)
    if label is None:
        return
    expected = image.shape if image is not None else label.shape if measured.grid is None else measured.grid.size
    fits = label.shape == expected
    if not fits:
        findings.add("wrong-picture-size", name, f"labels/{path.name}: {_size(label.shape)}, not {_size(expected)}")
    counts = np.bincount(label.ravel())
    labels.types.add(str(label.dtype))
    labels.pixels.update({int(value): int(counts[value]) for value in np.flatnonzero(counts) if value})
    if image is not None and fits:
        dark_or_bright = np.bincount(label[(image == 0) | (image == 255)])
        labels.saturated.update({int(v): int(dark_or_bright[v]) for v in np.flatnonzero(dark_or_bright) if v})
    for row in rows:
        if not row.target:
            continue
        pixels = sum(int(counts[value]) for value in row.label_values if value < len(counts))
        measured.areas.append((row, pixels / label.size))
        if abs(pixels - row.area_fraction * label.size) > 0.5:
            stated, found = (f"{100 * share:.4g} %" for share in (row.area_fraction, pixels / label.size))
            findings.add("wrong-area", name, f"{path.name}: {row.target} {stated}, recounted {found}")


def _check_labels(data_set: DataSet, volume_id: str, labels: _Labels, findings: Findings) -> None:
    name, targets = data_set.name, data_set.reader.volumes[volume_id]["targets"]
    if len(labels.types) > 1:
        findings.add("mixed-label-types", name, volume_id)
    if not labels.types:
        return
    named = {target: parse_label_values(text) for target, text in targets.items()}
    for value in sorted(labels.pixels.keys() - {value for values in named.values() for value in values}):
        findings.add("unnamed-value", name, f"{volume_id}: {value}")
    for target, values in named.items():
        pixels = sum(labels.pixels[value] for value in values)
        if not pixels and labels.pixels:  # a volume without any target has its own finding
            findings.add("target-absent", name, f"{volume_id}: {target}")
        elif pixels and sum(labels.saturated[value] for value in values) >= _HIDDEN * pixels:
            findings.add("hidden-target", name, f"{volume_id}: {target}")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def check_occurrence(data_set: DataSet, volumes: Mapping[str, Mapping[str, Any]], findings: Findings) -> None:
    """Find named label values that occur in no volume.

    Args:
        data_set: the data set.
        volumes: volume id → its part of the fingerprint, with ``label_values``.
        findings: collects errors.
    """
    named: dict[int, set[str]] = {}
    left_out: set[int] = set()
    occurring = {value for volume in volumes.values() for value in volume["label_values"]}
    if not occurring:
        return
    for volume_id, entry in data_set.reader.volumes.items():
        annotated = annotated_targets(data_set.reader.root, volume_id, entry)
        for target, text in entry["targets"].items():
            for value in parse_label_values(text):
                named.setdefault(value, set()).add(target)
                if target in annotated:
                    left_out.add(value)
    for value in sorted(named.keys() - occurring):
        code = "target-left-out" if value in left_out else "value-never-occurs"
        findings.add(code, data_set.name, f"{value}: {', '.join(sorted(named[value]))}")
