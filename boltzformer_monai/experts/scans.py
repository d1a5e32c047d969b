"""The scans of a slice dataset as stacks of slices along one plane: its own 8-bit slices, or the original volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boltzformer_monai.data.label_names import parse_label_values
from boltzformer_monai.data.planes import PLANE_AXES, radiological
from boltzformer_monai.data.slices.format import scan_of, slice_name
from boltzformer_monai.data.slices.reader import SliceReader, read_png
from boltzformer_monai.data.slices.record import read_record
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.io.volume import Volume

__all__ = ["Original", "Scan", "Stack", "choose_plane", "grid_of", "list_scans", "read_stack"]

Original = Callable[[], tuple[Volume, Volume | None]]
"""Reads an original scan and its label map, on one grid."""


@dataclass(frozen=True)
class Scan:
    """A volume of a slice dataset.

    Attributes:
        reader: of the dataset.
        volume: id.
        patient: pseudonym.
        split: ``"train"``, ``"val"`` or ``"test"``.
        targets: annotated ones → their label values.
        original: reads the original scan; None takes the dataset's slices.
    """

    reader: SliceReader
    volume: str
    patient: str
    split: str
    targets: Mapping[str, tuple[int, ...]]
    original: Original | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """Of ``dataset.json``."""
        return self.reader.volumes[self.volume]


@dataclass(frozen=True)
class Stack:
    """Slices of a scan in radiological display.

    Attributes:
        image: ``(N, H, W)`` float32: 0–255 of stored slices, else the scan's own values.
        label: ``(N, H, W)`` label values.
        spacing: mm (slice, row, column).
        indices: of the slices in the volume.
    """

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, float, float]
    indices: Sequence[int]


def choose_plane(reader: SliceReader, plane: str) -> SliceReader:
    """The dataset with one plane: the given one, or for "" axial, or the first that it has.

    Raises:
        DatasetError: it has no slices along the plane.
    """
    there = {str(entry["plane"]) for entry in reader.volumes.values()}
    return reader.along([plane or next((each for each in PLANE_AXES if each in there), "axial")])


def list_scans(reader: SliceReader, originals: Mapping[str, Original] | None = None) -> list[Scan]:
    """The annotated scans of a dataset along one plane, in the order of their ids.

    Args:
        reader: of the dataset, see :func:`choose_plane`.
        originals: scan → what reads it; None takes the dataset's slices.

    Raises:
        DatasetError: an original scan is missing.
    """
    owners = {row.volume: row for row in reader.rows if row.label is not None}
    scans = []
    for volume in sorted(owners):
        entry, row = reader.volumes[volume], owners[volume]
        original = None
        if originals is not None and (original := originals.get(scan_of(volume, entry))) is None:
            msg = f"the original of {scan_of(volume, entry)} is not among the scans given ({len(originals)} others are)"
            raise DatasetError(f"{msg}; give the recipe, folder and key with which {reader.root} was sliced")
        targets = {name: parse_label_values(text) for name, text in entry["targets"].items()}
        scans.append(Scan(reader, volume, row.patient, row.split, targets, original))
    return scans


def read_stack(scan: Scan, *, whole: bool) -> Stack:
    """The slices of a scan.

    Args:
        scan: of :func:`list_scans`.
        whole: whether all slices are needed, as a volume; of an original they are always there.

    Raises:
        DatasetError: slices are missing or damaged, or the original is not the scan that was sliced.
        VolumeError: the original cannot be read.
    """
    entry = scan.entry
    row, column, across = (float(each) for each in entry["spacing"])
    if scan.original is not None:
        image, label = _original(scan, scan.original)
        return Stack(image, label, (across, row, column), range(len(image)))
    if whole and not entry["complete"]:
        msg = f"{scan.reader.root}: volume {scan.volume} has every {entry['every']}th slice only, which is no volume"
        raise DatasetError(f"{msg}; train an expert with dimensions 2, slice without --every, or give the scans")
    indices = range(0, int(entry["slices"]), int(entry["every"]))
    names = [slice_name(scan.volume, entry["plane"], index) for index in indices]
    images, labels = ([read_png(scan.reader.root / part / name) for name in names] for part in ("images", "labels"))
    return Stack(np.stack(images).astype(np.float32), np.stack(labels), (across, row, column), indices)


def grid_of(entry: Mapping[str, Any]) -> Volume:
    """The grid of a volume's scan, without voxels."""
    return Volume(np.broadcast_to(np.uint8(0), [int(length) for length in entry["shape"]]), np.asarray(entry["affine"]))


def _original(scan: Scan, read: Original) -> tuple[np.ndarray, np.ndarray]:
    """Image and label slices of the original, which must be the scan of the dataset's record."""
    image, label = read()
    entry = scan.entry
    same = image.shape == tuple(entry["shape"]) and np.allclose(image.affine, np.asarray(entry["affine"]), atol=1e-3)
    if not same or label is None:
        what = "has no annotation" if label is None else "lies on another grid than the scan that was sliced"
        raise DatasetError(f"{image.source or scan.volume}: {what} as {scan.volume}; give the scans of this dataset")
    slicing = radiological(image, entry["plane"])
    values = slicing.extract(label.array)
    record = read_record(scan.reader.root, scan.volume)
    if record is not None and record.areas is not None:
        for target, numbers in scan.targets.items():
            found, known = int(np.isin(values, numbers).sum()), sum(record.areas[target])
            if found != known:
                msg = f"{label.source or scan.volume}: {target} has {found} voxels, and {known} in the slice dataset"
                raise DatasetError(f"{msg}; slice the scans again")
    return slicing.extract(image.array).astype(np.float32, copy=False), values
