"""Reading the slice data set (layout: :mod:`~boltzformer_monai.data.slices.format`); needs no medical formats."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai.data.label_names import parse_label_values
from boltzformer_monai.data.neighbours import Offset
from boltzformer_monai.data.slices.format import DATASET_FILE, MANIFEST_FILE, SPLITS, scan_of, slice_name
from boltzformer_monai.data.slices.tables import read_description, read_manifest
from boltzformer_monai.data.windows import GreyScale, window_from_dict
from boltzformer_monai.errors import ConfigError, DatasetError, why
from boltzformer_monai.io.pictures import open_picture
from boltzformer_monai.limits import parse_json

__all__ = ["SPLITS", "SliceReader", "SliceRow", "read_mask", "read_png"]


@dataclass(frozen=True)
class SliceRow:
    """One slice with one target (or, in a data set without labels, one slice).

    Attributes:
        image: PNG, uint8 grey (H, W).
        label: PNG of label values (H, W), or None without a label.
        label_values: the values that together are the target; empty without a label.
        target: canonical name, ``""`` without a label.
        prompts: of the target, the canonical one first; empty without a label.
        modality: ``"CT"``, ``"MR"``, or ``"other"`` for pictures of another kind.
        site: body site, e.g. ``"abdomen"``.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        slice_index: position in the volume along the plane's axis, from 0 (towards Left, Posterior or Superior).
        spacing: millimetres from row to row, from column to column, from slice to slice.
        in_mm: whether they are the scan's; pictures state none, and a millimetre stands for every pixel.
        window: of the grey values.
        area_fraction: the target's share of the slice's pixels, 0 to 1; 0 means absent.
        patient: pseudonym.
        volume: id of the volume in ``dataset.json``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        slices: number of slices of the whole volume.
        scan: that the volume is a plane of; ``""`` for the volume itself.
        stored_neighbours: slices on either side that are on disk; None: all.
    """

    image: Path
    label: Path | None
    label_values: tuple[int, ...]
    target: str
    prompts: tuple[str, ...]
    modality: str
    site: str
    plane: str
    slice_index: int
    spacing: tuple[float, float, float]
    window: GreyScale
    area_fraction: float
    patient: str
    volume: str
    split: str
    slices: int = 1
    scan: str = ""
    stored_neighbours: int | None = None
    in_mm: bool = True

    @property
    def present(self) -> bool:
        """Whether the target is visible in this slice."""
        return self.area_fraction > 0

    def images(self, offsets: Sequence[Offset]) -> list[tuple[Path, Path]]:
        """For each channel the images below and above it, the same where it is a slice; beyond the ends the outermost.

        Raises:
            DatasetError: the data set stores fewer slices.
        """
        pairs = [(offset.whole, offset.whole + (offset.share > 0)) for offset in offsets]
        furthest = max(abs(step) for pair in pairs for step in pair)
        if self.stored_neighbours is not None and furthest > self.stored_neighbours:
            msg = (
                f"{self.image}: needs {furthest} slices on either side, the data set keeps {self.stored_neighbours}; "
                "slice again without --every, or with the network's neighbours and neighbour_mm as --neighbours and "
                "--neighbour-mm"
            )
            raise DatasetError(msg)
        return [(self._image(lower), self._image(upper)) for lower, upper in pairs]

    def _image(self, step: int) -> Path:
        index = min(max(self.slice_index + step, 0), self.slices - 1)
        if index == self.slice_index:
            return self.image
        return self.image.with_name(slice_name(self.volume, self.plane, index))


class SliceReader:
    """Read and check a slice data set.

    Args:
        root: the folder with ``dataset.json``.

    Attributes:
        root: the folder.
        name: the data set's name.
        volumes: volume id → its entry in ``dataset.json`` (patient, modality, site, plane, shape, affine, spacing,
            window, targets, slices, every, neighbours, min_area, complete).
        rows: of the manifest, in its order.
        fold: of :mod:`~boltzformer_monai.data.slices.folds`, as plain values; None with the dataset's own split.

    Raises:
        DatasetError: a part is missing, damaged or of another version, or parts contradict each other.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        description = read_description(self.root)
        self.name: str = description["name"]
        self.volumes: dict[str, dict[str, Any]] = description["volumes"]
        self.fold: dict[str, Any] | None = None
        self._folders: dict[str, frozenset[str]] = {}
        self._files: dict[str, Path] = {}
        self.rows: list[SliceRow] = [
            self._row(fields, line) for line, fields in enumerate(read_manifest(self.root), start=2)
        ]

    @property
    def targets(self) -> list[str]:
        """Names of all targets, sorted."""
        return sorted({row.target for row in self.rows if row.target})

    def resplit(self, splits: Mapping[str, str], fold: Mapping[str, Any]) -> SliceReader:
        """The same dataset with another split.

        Args:
            splits: patient → ``"train"``, ``"val"`` or ``"test"``; patients that are not named keep theirs.
            fold: that the split is of.
        """
        other = copy.copy(self)
        other.rows = [replace(row, split=splits.get(row.patient, row.split)) for row in self.rows]
        other.fold = dict(fold)
        return other

    def along(self, planes: Sequence[str]) -> SliceReader:
        """The same dataset with its slices along these planes only.

        Raises:
            DatasetError: it has none.
        """
        other = copy.copy(self)
        other.volumes = {name: entry for name, entry in self.volumes.items() if entry["plane"] in planes}
        other.rows = [row for row in self.rows if row.plane in planes]
        if not other.rows:
            there = ", ".join(sorted({row.plane for row in self.rows})) or "none"
            raise DatasetError(f"{self.root} has no slices along {' or '.join(planes)}; planes there: {there}")
        return other

    def select(
        self,
        *,
        split: str | None = None,
        targets: Sequence[str] | None = None,
        volume: str | None = None,
        present: bool | None = None,
    ) -> list[SliceRow]:
        """Rows that fulfil all conditions, in manifest order.

        Raises:
            DatasetError: the split is none of train, val and test, or a target or volume is not in the data set.
        """
        if split is not None and split not in SPLITS:
            raise DatasetError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
        for name, known in ((volume, self.volumes), *((target, self.targets) for target in targets or ())):
            if name is not None and name not in known:
                raise DatasetError(f"{self.root} has no {name!r}; it has {', '.join(known) or 'none'}")
        return [
            row
            for row in self.rows
            if (split is None or row.split == split)
            and (targets is None or row.target in targets)
            and (volume is None or row.volume == volume)
            and (present is None or row.present == present)
        ]

    def _row(self, fields: Mapping[str, str], line: int) -> SliceRow:
        try:
            if fields["volume"] not in self.volumes:
                raise ValueError(f"volume {fields['volume']!r} is not in {DATASET_FILE}")
            entry = self.volumes[fields["volume"]]
            row = SliceRow(
                image=self._file(fields["image"]),
                label=self._file(fields["label"]) if fields["label"] else None,
                label_values=parse_label_values(fields["value"]) if fields["value"] else (),
                target=fields["target"],
                prompts=_parse_prompts(fields["prompts"]),
                modality=fields["modality"],
                site=fields["site"],
                plane=fields["plane"],
                slice_index=int(fields["slice_index"]),
                slices=int(entry["slices"]),
                scan=scan_of(fields["volume"], entry),
                stored_neighbours=None if entry["complete"] else int(entry["neighbours"]),
                spacing=_parse_spacing(fields["spacing"]),
                in_mm=bool(entry.get("in_mm", True)),
                window=_parse_window(fields["window"]),
                area_fraction=float(fields["area_fraction"] or 0),
                patient=fields["patient"],
                volume=fields["volume"],
                split=fields["split"],
            )
            if row.split not in SPLITS:
                raise ValueError(f"split {row.split!r} is none of {', '.join(SPLITS)}")
            if bool(row.target) != bool(row.label and row.label_values and row.prompts):
                raise ValueError("a target needs a label, a value and prompts, and they need a target")
            if not 0 <= row.area_fraction <= 1:
                raise ValueError(f"area_fraction {row.area_fraction} is not between 0 and 1")
        except (ValueError, TypeError, ConfigError, DatasetError) as error:
            msg = f"{self.root / MANIFEST_FILE}, line {line}: {error}; slice volume {fields['volume']!r} again"
            raise DatasetError(msg) from None
        return row

    def _file(self, name: str) -> Path:
        """Where a stored file lies; every target of a slice has a row that names the same ones."""
        if name not in self._files:
            self._files[name] = self._checked(name)
        return self._files[name]

    def _checked(self, name: str) -> Path:
        folder, _, file = name.partition("/")
        if folder not in ("images", "labels") or not file or "/" in file or "\\" in file:
            raise ValueError(f"{name!r} does not lie in images/ or labels/")
        if folder not in self._folders:  # one listing per folder instead of one look-up per row
            place = self.root / folder
            names = (entry.name for entry in place.iterdir()) if place.is_dir() else ()
            self._folders[folder] = frozenset(names)
        if file not in self._folders[folder]:
            raise ValueError(f"the file {name} is missing")
        return self.root / folder / file


def read_png(path: Path) -> np.ndarray:
    """Pixels (H, W) of a stored image (uint8) or label (uint8 or uint16).

    Raises:
        DatasetError: the file is missing or damaged, or not a grey image.
    """
    try:
        with open_picture(path) as image:
            pixels = np.array(image)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow reports broken PNG chunks as SyntaxError
        raise DatasetError(f"{path}: cannot be read as PNG ({why(error)}); slice its volume again") from None
    if pixels.ndim != 2:
        raise DatasetError(f"{path}: has {pixels.ndim} axes, a stored slice is a grey image")
    # Pillow hands 16-bit grey out as int32 in some versions.
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16)


def read_mask(row: SliceRow) -> np.ndarray:
    """The target's mask (H, W), bool.

    Raises:
        DatasetError: the row has no label, or its file is damaged.
    """
    if row.label is None:
        raise DatasetError(f"{row.image}: this slice has no label, so there is no mask")
    return np.isin(read_png(row.label), row.label_values)


# Most rows share these few texts.
@functools.lru_cache(maxsize=4096)
def _parse_prompts(text: str) -> tuple[str, ...]:
    prompts = parse_json(text) if text else []
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise ValueError(f"prompts {text!r} is not a JSON list of texts")
    return tuple(prompts)


@functools.lru_cache(maxsize=4096)
def _parse_spacing(text: str) -> tuple[float, float, float]:
    row, column, across = (float(part) for part in text.split("x"))
    if not min(row, column, across) > 0:
        raise ValueError(f"spacing {text!r} is not positive")
    return row, column, across


@functools.lru_cache(maxsize=4096)
def _parse_window(text: str) -> GreyScale:
    window = parse_json(text)
    if not isinstance(window, dict):
        raise ValueError(f"window {text!r} is not a JSON object")
    return window_from_dict(window)
