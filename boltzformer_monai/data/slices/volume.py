"""Write the slices and the record of one volume, in any process."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from boltzformer_monai.data.label_names import canonical_labels
from boltzformer_monai.data.neighbours import reach
from boltzformer_monai.data.planes import PLANE_AXES, extract_slices, slice_spacing
from boltzformer_monai.data.plausibility import scan_caveats
from boltzformer_monai.data.prompts import normalise_site, prompts_for
from boltzformer_monai.data.slices.format import SPLITS, slice_name
from boltzformer_monai.data.slices.record import VolumeRecord, read_record, record_path, target_areas, write_record
from boltzformer_monai.data.split import pseudonym
from boltzformer_monai.data.windows import GreyScale, StoredGrey, default_window
from boltzformer_monai.errors import ConfigError, DatasetError, StorageError
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.storage import writing

__all__ = ["RUN_FILE", "STAGING_FOLDER", "SliceSettings", "check_volume_id", "save_png", "write_volume"]

logger = logging.getLogger(__name__)

STAGING_FOLDER = ".staging"
RUN_FILE = ".run"
_RUN_LENGTHS = 3  # Z_RLE


@dataclass(frozen=True)
class SliceSettings:
    """How volumes become slices.

    Attributes:
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``, by the patient's anatomy.
        window: None takes :func:`~boltzformer_monai.data.windows.default_window` of modality and site.
        every: every n-th slice gets rows, from slice 0.
        neighbours: channels on either side of each slice for which slices are stored, for 2.5-D input.
        neighbour_mm: from channel to channel; 0: adjacent slices.
        min_area: least pixels of a target in a slice; with fewer (but any) it gets no row.
        negatives: share of the rows of absent targets that is kept, 0 to 1.
        seed: of the choice of negatives.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    plane: str = "axial"
    window: GreyScale | None = None
    every: int = 1
    neighbours: int = 0
    neighbour_mm: float = 0.0
    min_area: int = 0
    negatives: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.plane not in PLANE_AXES:
            raise ConfigError(f"unknown plane {self.plane!r}; known are {', '.join(PLANE_AXES)}")
        if self.every < 1 or self.neighbours < 0 or self.min_area < 0:
            msg = (
                f"every n-th slice needs n >= 1, neighbours and the smallest area 0 or more; got {self.every}, "
                f"{self.neighbours} and {self.min_area}"
            )
            raise ConfigError(msg)
        if not 0 <= self.neighbour_mm < math.inf or (self.neighbour_mm and not self.neighbours):
            msg = f"the distance of neighbours must be 0 mm or more, and needs neighbours; got {self.neighbour_mm}"
            raise ConfigError(msg)
        if not 0 <= self.negatives <= 1:
            raise ConfigError(f"the share of negatives must lie between 0 and 1, got {self.negatives}")


def write_volume(
    root: Path,
    image: Volume,
    label: Volume | None,
    labels: Mapping[int | str, str] | Mapping[int, str] | Mapping[str, str] | None,
    *,
    volume_id: str,
    patient: str,
    site: str,
    settings: SliceSettings,
    key: str = "",
    prompts: Callable[..., tuple[str, ...]] = prompts_for,
    scan: str | None = None,
    split: str | None = None,
    notes: Sequence[str] = (),
    source: str = "",
    run: str = "",
    progress: Callable[[int, int], object] | None = None,
) -> VolumeRecord:
    """Write slices and record of a volume; arguments as in :meth:`~.writer.SliceWriter.add_volume`.

    The caveats of reader and scan go into the record.

    Slices are written into a staging folder and moved into place, then the record is written: an interrupted call
    leaves the whole volume or nothing. With ``run``, the token of the writer's run, nothing is moved after that run
    has ended, so that a process that outlives it does not disturb the next one.

    Raises:
        VolumeError: the label is not on the image's grid.
        DatasetError: the labels or the id cannot be used.
        StorageError: the folder cannot be written.
        ConfigError: a setting is unknown or out of range.
    """
    for name in (volume_id, scan or volume_id):
        check_volume_id(name)
    if split is not None and split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    if (label is None) != (not labels):
        raise DatasetError(f"volume {volume_id}: a label map needs names for its values, and names need a label map")
    site = normalise_site(site)
    window = settings.window or default_window(image.modality, site)
    targets = {} if label is None else canonical_labels(labels or {})
    owner = pseudonym(patient, key=key)
    spacing = slice_spacing(image, settings.plane)
    label = None if label is None else reorient_label(label, image)
    measured = "" if isinstance(window, StoredGrey) else image.modality  # grey values are no HU
    doubts = scan_caveats(image, modality=measured, planes=(settings.plane,))
    caveats = [*image.caveats, *(label.caveats if label is not None else ()), *doubts]
    grey = extract_slices(Volume(window.apply(image.array), image.affine), settings.plane)
    values = None if label is None else label_slices(label, settings.plane)
    entry = {
        "patient": owner,
        **({"scan": scan} if scan not in (None, volume_id) else {}),
        "modality": image.modality,
        "site": site,
        "plane": settings.plane,
        "shape": list(image.shape),
        "affine": image.affine.tolist(),
        "spacing": list(spacing),
        **({} if image.in_mm else {"in_mm": False}),
        "window": window.to_dict(),
        "targets": targets,
        "slices": len(grey),
        "every": settings.every,
        "neighbours": reach(settings.neighbours, distance_mm=settings.neighbour_mm, spacing_mm=spacing[2]),
        "min_area": settings.min_area,
        "complete": settings.every == 1,
        **({"caveats": [caveat.as_dict() for caveat in caveats]} if caveats else {}),
    }
    record = VolumeRecord(
        volume=volume_id,
        entry=entry,
        prompts={target: list(prompts(target, site=site, modality=image.modality)) for target in targets},
        areas=None if values is None else target_areas(values, targets),
        pixels=int(grey[0].size),
        negatives=settings.negatives,
        seed=settings.seed,
        split=split,
        notes=[*notes, *(caveat.text for caveat in caveats)],
        source=source,
    )
    for caveat in caveats:
        logger.warning("%s: %s", image.source or f"volume {volume_id}", caveat.text)
    with writing(root), _staging(root, volume_id) as staging:
        indices = record.stored()
        for done, index in enumerate(indices, start=1):
            name = slice_name(volume_id, settings.plane, index)
            save_png(grey[index], staging / "images" / name)
            if values is not None:
                save_png(values[index], staging / "labels" / name)
            if progress is not None:
                progress(done, len(indices))
        if run and _current_run(root) != run:
            raise StorageError(f"{root}: the run that wanted volume {volume_id} is over; start it again")
        _commit(root, staging, record)
    return record


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Save a slice (H, W), uint8 or uint16; zlib's run-length strategy is three times as fast as its default here."""
    Image.fromarray(pixels).save(path, format="PNG", compress_level=6, compress_type=_RUN_LENGTHS)


def label_slices(label: Volume, plane: str) -> np.ndarray:
    """Slices (N, H, W) of a label map as uint8, or uint16 for values above 255.

    Raises:
        DatasetError: a value is negative or above 65535.
    """
    lowest, highest = int(label.array.min()), int(label.array.max())
    if lowest < 0 or highest > 65535:
        msg = f"{label.source or 'label map'}: label values from {lowest} to {highest}, a slice stores 0 to 65535"
        raise DatasetError(msg)
    return extract_slices(label, plane).astype(np.uint8 if highest <= 255 else np.uint16)


def check_volume_id(volume_id: str) -> None:
    """Raise a ``DatasetError`` for an id that cannot be part of file names."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", volume_id):
        msg = f"volume id {volume_id!r} must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit"
        raise DatasetError(msg)


def _current_run(root: Path) -> str:
    try:
        return (root / RUN_FILE).read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


@contextmanager
def _staging(root: Path, volume_id: str) -> Iterator[Path]:
    """A folder of this call, so that two processes never write the same file."""
    folder = root / STAGING_FOLDER / f"{volume_id}-{secrets.token_hex(4)}"
    try:
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True)
            (root / name).mkdir(exist_ok=True)
        record_path(root, volume_id).parent.mkdir(exist_ok=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _commit(root: Path, staging: Path, record: VolumeRecord) -> None:
    """Replace an older volume of this id by the staged slices, then write the record; on failure remove both."""
    old = read_record(root, record.volume)
    moved: list[Path] = []
    done = False
    try:
        record_path(root, record.volume).unlink(missing_ok=True)
        for file in sorted(staging.glob("*/*.png")):
            place = root / file.parent.name / file.name
            moved.append(place)
            os.replace(file, place)
        write_record(root, record)
        done = True
    finally:
        left_over = set() if old is None else {root / name for name in old.files()}
        left_over = left_over - set(moved) if done else left_over | set(moved)
        for place in left_over:
            place.unlink(missing_ok=True)
