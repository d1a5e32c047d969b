"""Checks of a slice data set's tables and list of files; :mod:`.measured` opens the images."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai.caveats import WARNINGS
from boltzformer_monai.data.check.findings import Findings
from boltzformer_monai.data.label_names import parse_label_values
from boltzformer_monai.data.planes import PLANE_AXES
from boltzformer_monai.data.plausibility import acquisition_plane
from boltzformer_monai.data.slices.format import (
    DATASET_FILE,
    MANIFEST_FILE,
    MOST_SLICES,
    SPLITS,
    scan_of,
    stored_slices,
)
from boltzformer_monai.data.slices.reader import SliceReader, SliceRow
from boltzformer_monai.data.slices.record import read_record
from boltzformer_monai.errors import ConfigError, DatasetError, VolumeError
from boltzformer_monai.io.orientation import axis_codes, axis_map, parse_codes
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.limits import open_text

__all__ = ["DataSet", "Grid", "annotated_targets", "check_between", "check_tables", "open_data_sets", "volume_grid"]

_IMAGE_NAME = re.compile(r"(?P<volume>.+)_(?P<plane>axial|coronal|sagittal)_(?P<index>\d+)\.png")
_SPACING_TOLERANCE = 1e-3  # of the spacing; the manifest keeps six digits


@dataclass(frozen=True)
class Grid:
    """Slices of a volume: number, size (rows, columns) and orientation of the scan, e.g. LPS."""

    slices: int
    size: tuple[int, int]
    orientation: str


@dataclass(frozen=True)
class DataSet:
    """An opened data set.

    Attributes:
        name: unique in this check.
        reader: its reader.
        rows: volume id → image → its rows, in the manifest's order.
    """

    name: str
    reader: SliceReader
    rows: Mapping[str, Mapping[Path, Sequence[SliceRow]]]

    @property
    def pictures(self) -> int:
        """Number of images in the manifest."""
        return sum(len(images) for images in self.rows.values())


def open_data_sets(roots: Sequence[Path], findings: Findings) -> list[DataSet]:
    """Open the readable data sets; the others become findings.

    Raises:
        DatasetError: a folder is no slice data set, or given twice.
    """
    opened: list[DataSet] = []
    names: Counter[str] = Counter()
    if len({root.resolve() for root in roots}) < len(roots):
        raise DatasetError("a data set is given twice; name each folder once")
    for root in roots:
        try:
            reader = SliceReader(root)
        except DatasetError as error:
            if not (root / DATASET_FILE).is_file():
                raise
            name = _distinct(root.resolve().name, names)
            for file in _missing_pictures(root):
                findings.add("missing-picture", name, file)
            findings.add("unreadable", name, str(error).replace(f"{root}/", ""))
            continue
        name = _distinct(reader.name, names)
        damaged = [volume_id for volume_id, entry in reader.volumes.items() if not _is_usable(entry)]
        if damaged:
            for volume_id in damaged:
                findings.add("unreadable", name, f"{DATASET_FILE}: the entry of {volume_id} is damaged")
            continue
        rows: dict[str, dict[Path, list[SliceRow]]] = {volume_id: {} for volume_id in reader.volumes}
        for row in reader.rows:
            rows[row.volume].setdefault(row.image, []).append(row)
        opened.append(DataSet(name, reader, rows))
    return opened


def volume_grid(entry: Mapping[str, Any]) -> Grid:
    """The slices of a volume of ``dataset.json``.

    Raises:
        DatasetError: shape, affine, plane and spacing are unusable or contradict each other.
    """
    try:
        shape = tuple(int(length) for length in entry["shape"])
        affine = np.asarray(entry["affine"], dtype=float)
        spacing = [float(value) for value in entry["spacing"]]
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape {entry['shape']}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0:
            raise ValueError("an affine that cannot be inverted")
        if entry["plane"] not in PLANE_AXES:
            raise ValueError(f"plane {entry['plane']!r}")
        codes = axis_codes(affine)
        across, row, column = axis_map(codes, parse_codes(PLANE_AXES[entry["plane"]])).order
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.allclose(spacing[:2], lengths[[row, column]], rtol=_SPACING_TOLERANCE, atol=0):
            raise ValueError(f"a spacing of {spacing}, but its affine has {lengths[[row, column, across]].tolist()}")
        if int(entry["slices"]) != shape[across]:
            raise ValueError(f"{entry['slices']} slices, but its shape has {shape[across]}")
    except (TypeError, ValueError, ConfigError) as error:
        raise DatasetError(f"has {error}") from None
    return Grid(shape[across], (shape[row], shape[column]), "".join(codes))


def annotated_targets(root: Path, volume_id: str, entry: Mapping[str, Any]) -> set[str]:
    """Targets anywhere in the label map of a scan of which some slices or objects were left out.

    Empty for a complete volume, and without a usable record.

    Args:
        root: folder of the data set.
        volume_id: the volume.
        entry: its entry in ``dataset.json``.
    """
    if entry.get("every", 1) == 1 and entry.get("min_area", 0) <= 1:
        return set()
    try:
        record = read_record(root, volume_id)
    except DatasetError:
        return set()
    areas = {} if record is None else record.areas or {}
    return {target for target, pixels in areas.items() if any(pixels)}


def check_tables(data_set: DataSet, findings: Findings) -> int:
    """Check volumes, rows, splits, prompts and files; returns the number of images without a row."""
    planes: defaultdict[str, set[str]] = defaultdict(set)
    for volume_id, entry in data_set.reader.volumes.items():
        planes[scan_of(volume_id, entry)].add(entry["plane"])
    for volume_id, entry in data_set.reader.volumes.items():
        _check_caveats(data_set, volume_id, entry, planes[scan_of(volume_id, entry)], findings)
        if not data_set.rows[volume_id]:
            findings.add("no-rows", data_set.name, volume_id)
        elif not entry["targets"]:
            findings.add("no-label", data_set.name, volume_id)
        elif not any(row.present for rows in data_set.rows[volume_id].values() for row in rows):
            left_out = sorted(annotated_targets(data_set.reader.root, volume_id, entry))
            for target in left_out:
                findings.add("target-left-out", data_set.name, f"{volume_id}: {target}")
            if not left_out:
                findings.add("no-target", data_set.name, volume_id)
    _check_rows(data_set, findings)
    _check_splits(data_set, findings)
    _check_prompts(data_set, findings)
    return _check_files(data_set, findings)


def _check_caveats(
    data_set: DataSet, volume_id: str, entry: Mapping[str, Any], planes: Set[str], findings: Findings
) -> None:
    """Repeat the warnings of slicing; check the planes of the scan also in data sets older than that warning."""
    for caveat in entry.get("caveats", ()):
        if caveat["kind"] in WARNINGS and caveat["kind"] != "acquisition plane":
            findings.add("doubtful-values", data_set.name, f"{volume_id}: {caveat['text']}")
    try:
        grid = Volume(np.broadcast_to(np.uint8(0), [int(length) for length in entry["shape"]]), entry["affine"])
        acquired = acquisition_plane(grid)
    except (TypeError, ValueError, VolumeError):
        return  # volume_grid reports it
    if acquired is not None and acquired not in planes:
        findings.add("other-plane", data_set.name, f"{volume_id}: {entry['plane']}, acquired {acquired}")


def check_between(data_sets: Sequence[DataSet], findings: Findings) -> None:
    """Find pseudonyms in different splits of different data sets."""
    places: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for data_set in data_sets:
        for row in data_set.reader.rows:
            places[row.patient].setdefault(data_set.name, row.split)
    for patient, splits in places.items():
        if len(set(splits.values())) > 1:
            where = ", ".join(f"{split} of {name}" for name, split in splits.items())
            findings.add("patient-in-two-data-sets", "", f"patient {patient}: {where}")


def _check_rows(data_set: DataSet, findings: Findings) -> None:
    for volume_id, images in data_set.rows.items():
        entry = data_set.reader.volumes[volume_id]
        for image, rows in images.items():
            targets = Counter(row.target for row in rows)
            for target, count in targets.items():
                if count > 1:
                    findings.add("repeated-row", data_set.name, f"{image.name}: {target or 'no target'}")
            for row in rows:
                for field in ("patient", "modality", "site", "plane"):
                    if getattr(row, field) != entry[field]:
                        findings.add("wrong-row", data_set.name, f"{volume_id}: {field}")
                if row.window.to_dict() != entry["window"]:
                    findings.add("wrong-row", data_set.name, f"{volume_id}: window")
                if row.target and "+".join(map(str, row.label_values)) != entry["targets"].get(row.target):
                    findings.add("wrong-row", data_set.name, f"{volume_id}: values of {row.target}")


def _check_splits(data_set: DataSet, findings: Findings) -> None:
    name = data_set.name
    splits: defaultdict[str, dict[str, None]] = defaultdict(dict)
    present: dict[str, set[str]] = {split: set() for split in SPLITS}
    listed: dict[str, set[str]] = {split: set() for split in SPLITS}
    absent: set[str] = set()
    for row in data_set.reader.rows:
        splits[row.patient][row.split] = None
        listed[row.split].add(row.target)
        if row.present:
            present[row.split].add(row.target)
        elif row.split == "train":
            absent.add(row.target)
    for patient, named in splits.items():
        if len(named) > 1:
            findings.add("patient-in-two-splits", name, f"patient {patient}: {' and '.join(named)}")
    for split in ("train", "val"):
        if not listed[split]:
            findings.add("empty-split", name, split)
    if not listed["test"]:
        findings.add("no-test", name, "test")
    if not listed["train"]:
        return
    for target in sorted((present["val"] | present["test"]) - present["train"]):
        findings.add("target-not-trained", name, target)
    for target in sorted(present["train"] - present["val"]) if listed["val"] else ():
        findings.add("target-not-validated", name, target)
    for target in sorted(present["train"] - absent):
        findings.add("no-negatives", name, target)


def _check_prompts(data_set: DataSet, findings: Findings) -> None:
    owner: dict[str, str] = {}
    pairs = dict.fromkeys((row.target, row.prompts) for row in data_set.reader.rows)
    for target, prompts in pairs:
        for prompt in prompts:
            other = owner.setdefault(prompt, target)
            if other != target:
                findings.add("shared-prompt", data_set.name, f"{prompt!r}: {other} and {target}")


def _check_files(data_set: DataSet, findings: Findings) -> int:
    reader = data_set.reader
    named = {"images": {row.image.name for row in reader.rows}, "labels": set[str]()}
    named["labels"].update(row.label.name for row in reader.rows if row.label is not None)
    lacking = {
        volume_id: stored_slices(int(entry["slices"]), int(entry.get("every", 1)), int(entry.get("neighbours", 0)))
        for volume_id, entry in reader.volumes.items()
    }
    without_rows = 0
    for folder, names in named.items():
        place = reader.root / folder
        for file in sorted(entry.name for entry in place.iterdir()) if place.is_dir() else ():
            owner = _owner(file, reader.volumes)
            if folder == "images" and owner is not None:
                lacking[owner[0]].discard(owner[1])
            if file in names:
                continue
            if owner is None:
                findings.add("stray-picture", data_set.name, f"{folder}/{file}")
            elif folder == "images":
                without_rows += 1
    for volume_id, entry in reader.volumes.items():
        if lacking[volume_id]:
            findings.add("incomplete-volume", data_set.name, f"{volume_id}: slice {min(lacking[volume_id])}")
        elif not entry["complete"] and entry.get("every", 1) == 1:
            findings.add("incomplete-volume", data_set.name, f"{volume_id}: was not finished")
    return without_rows


def _owner(file: str, volumes: Mapping[str, Any]) -> tuple[str, int] | None:
    """Volume and slice index in an image's name; also for slices without rows."""
    match = _IMAGE_NAME.fullmatch(file)
    entry = volumes.get(match["volume"]) if match else None
    if match is None or entry is None or entry["plane"] != match["plane"] or int(match["index"]) >= entry["slices"]:
        return None
    return match["volume"], int(match["index"])


def _missing_pictures(root: Path) -> list[str]:
    """Images in the readable part of the manifest that do not exist."""
    missing: dict[str, None] = {}
    try:
        with open_text(root / MANIFEST_FILE) as file:
            for fields in csv.DictReader(file):
                for column in ("image", "label"):
                    name = fields.get(column)
                    if name and name not in missing and not (root / name).is_file():
                        missing[name] = None
    except (OSError, UnicodeDecodeError, csv.Error):
        pass  # the reader reported it
    return list(missing)


def _is_usable(entry: Mapping[str, Any]) -> bool:
    """Whether a volume's description has the types that the checks need."""
    try:
        values = [parse_label_values(text) for text in dict(entry["targets"]).values()]
        numbers = [int(entry["slices"]), int(entry.get("every", 1)), int(entry.get("neighbours", 0)) + 1]
        caveats = [caveat[field] for caveat in entry.get("caveats", ()) for field in ("kind", "text")]
    except (TypeError, KeyError, ValueError, DatasetError):
        return False
    texts = [entry[field] for field in ("patient", "modality", "site", "plane")]
    sizes_fit = min(numbers) >= 1 and numbers[0] <= MOST_SLICES
    return all(values) and sizes_fit and all(isinstance(text, str) for text in (*texts, *caveats))


def _distinct(name: str, names: Counter[str]) -> str:
    names[name] += 1
    return name if names[name] == 1 else f"{name} ({names[name]})"
