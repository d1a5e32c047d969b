"""The demo data set, training's default: phantoms as scan files, sliced like real scans.

All data are written as DICOM or NIfTI, read back, windowed and sliced, which tests the installation end to end.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.demo.made_folder import is_complete, read_marker, staged, write_marker
from boltzformer_monai.demo.phantom import ALL_PHANTOM_LABELS, PhantomKind, make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom, write_phantom_nifti
from boltzformer_monai.errors import ConfigError, DatasetError, why
from boltzformer_monai.io.read import read_label_map, read_volume, write_label_map
from boltzformer_monai.parallel import run_jobs

__all__ = ["DemoVolume", "ensure_demo_dataset", "make_demo_volumes", "read_demo_volumes"]

_log = logging.getLogger(__name__)

VOLUMES_FORMAT, SLICES_FORMAT = "boltzformer-demo-volumes", "boltzformer-demo-slices"
VERSION = 4  # raise it when the phantoms of a seed change
VOLUMES_FILE, MARKER_FILE = "volumes.json", "demo.json"
DEFAULT_SIZE = (192, 192, 24)
# 68 + 22 training volumes of 24 slices (2,160), 14 + 5 for validation, 14 + 5 held out for testing.
DEFAULT_ABDOMEN, DEFAULT_CHEST = 96, 32
_DICOM_EVERY = 4
_HEALTHY_EVERY = 4  # without lesions or nodules
_HELD_OUT_FRACTION = 0.15  # each of validation and test
_SEEDS_PER_SET = 10_000


@dataclass(frozen=True)
class DemoVolume:
    """One synthetic scan on disk.

    Attributes:
        volume_id: e.g. ``"abdomen_003"``.
        image: NIfTI file, or the folder of a DICOM series.
        label: NIfTI label map of the same grid.
        labels: label value → target name.
        modality: ``"CT"``.
        site: ``"abdomen"`` or ``"chest"``.
        patient: identity of the fictitious patient.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """

    volume_id: str
    image: Path
    label: Path
    labels: Mapping[int, str]
    modality: str
    site: str
    patient: str
    split: str


def make_demo_volumes(
    root: str | os.PathLike[str],
    *,
    abdomen: int = DEFAULT_ABDOMEN,
    chest: int = DEFAULT_CHEST,
    seed: int = 0,
    size: tuple[int, int, int] = DEFAULT_SIZE,
    workers: int = 1,
) -> list[DemoVolume]:
    """Write phantoms under `root`/volumes, every fourth as a DICOM series with a NIfTI label, the others as NIfTI.

    Every fourth one is healthy. Targets that a phantom lacks (lesions, and those of the other kind) are absent.

    Of each kind the last 15 % (at least one, given enough) are the split "test", the 15 % before them "val"; the very
    last is a DICOM series. A complete folder of the same settings is reused; an interrupted run leaves no files.

    Args:
        root: created if needed.
        abdomen: number of abdominal phantoms, validation and test included.
        chest: number of chest phantoms, validation and test included.
        seed: of the patients.
        size: voxels of each phantom along Left, Posterior, Superior.
        workers: processes that make them.

    Returns:
        The volumes, abdomen first.

    Raises:
        ConfigError: a number is out of range.
        DatasetError: the folder exists with other settings or content.
    """
    parameters = _parameters(abdomen=abdomen, chest=chest, seed=seed, size=size)
    folder = Path(root) / "volumes"
    described = {"format": VOLUMES_FORMAT, "version": VERSION, "parameters": parameters}
    if not is_complete(folder, VOLUMES_FILE, described):
        with staged(folder, VOLUMES_FILE) as staging:
            write = partial(_write_volume, folder=staging, seed=seed * _SEEDS_PER_SET, size=size)
            plan = list(_plan(abdomen, chest))
            made = {entry["id"]: entry for entry in run_jobs(write, plan, workers=workers, crashed=_crashed)}
            entries = [made[each.name] for each in plan]
            write_marker(staging / VOLUMES_FILE, {**described, "volumes": entries})
    return read_demo_volumes(root)


def read_demo_volumes(root: str | os.PathLike[str]) -> list[DemoVolume]:
    """Read the volumes of :func:`make_demo_volumes` under `root`/volumes.

    Raises:
        DatasetError: the description is missing, damaged or of another version.
    """
    folder = Path(root) / "volumes"
    content = read_marker(folder / VOLUMES_FILE)
    try:
        if (content["format"], content["version"]) != (VOLUMES_FORMAT, VERSION):
            raise ValueError(f"format {content['format']!r} version {content['version']!r}")
        return [
            DemoVolume(
                volume_id=str(entry["id"]),
                image=folder / entry["image"],
                label=folder / entry["label"],
                labels={int(value): str(name) for value, name in entry["labels"].items()},
                modality=str(entry["modality"]),
                site=str(entry["site"]),
                patient=str(entry["patient"]),
                split=str(entry["split"]),
            )
            for entry in content["volumes"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        place = folder / VOLUMES_FILE
        msg = f"{place}: is not a list of demo volumes ({why(error)}); delete {folder} and make it again"
        raise DatasetError(msg) from None


def ensure_demo_dataset(
    root: str | os.PathLike[str],
    *,
    abdomen: int = DEFAULT_ABDOMEN,
    chest: int = DEFAULT_CHEST,
    seed: int = 0,
    size: tuple[int, int, int] = DEFAULT_SIZE,
    workers: int = 1,
) -> Path:
    """Path of the slice data set `root`/slices of the demo phantoms; missing volumes and slices are created.

    Windows and prompts are the defaults. A complete data set of the same settings is reused.

    Raises:
        ConfigError: a number is out of range.
        DatasetError: the folder exists with other settings or content.
    """
    parameters = _parameters(abdomen=abdomen, chest=chest, seed=seed, size=size)
    folder = Path(root) / "slices"
    described = {"format": SLICES_FORMAT, "version": VERSION, "parameters": parameters}
    if is_complete(folder, MARKER_FILE, described):
        return folder
    _log.info("making the demo data set (synthetic CT phantoms) in %s", folder)
    volumes = make_demo_volumes(root, abdomen=abdomen, chest=chest, seed=seed, size=size, workers=workers)
    with staged(folder, MARKER_FILE) as staging:
        _slice_volumes(volumes, staging, seed)
        write_marker(staging / MARKER_FILE, described)
    return folder


def _slice_volumes(volumes: list[DemoVolume], folder: Path, seed: int) -> None:
    with SliceWriter(folder, name="demo", seed=seed) as writer:
        for volume in volumes:
            writer.add_volume(
                read_volume(volume.image, modality=volume.modality),
                read_label_map(volume.label),
                volume.labels,
                volume_id=volume.volume_id,
                patient=volume.patient,
                site=volume.site,
                split=volume.split,
            )


@dataclass(frozen=True)
class _Planned:
    kind: PhantomKind
    index: int
    split: str
    dicom: bool

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.index:03d}"


def _plan(abdomen: int, chest: int) -> Iterator[_Planned]:
    """Every volume; the last ones of each kind are held out."""
    kinds: tuple[tuple[PhantomKind, int], ...] = (("abdomen", abdomen), ("chest", chest))
    for kind, count in kinds:
        held_out = max(round(_HELD_OUT_FRACTION * count), 1)
        test = held_out if count >= 3 else 0
        val = held_out if count >= 2 else 0
        for index in range(count):
            left = count - index
            split = "test" if left <= test else "val" if left <= test + val else "train"
            yield _Planned(kind, index, split, left % _DICOM_EVERY == 1)


def _crashed(planned: _Planned) -> NoReturn:
    raise DatasetError(f"the process that made the phantom {planned.name} died (no memory left?)")


def _write_volume(planned: _Planned, *, folder: Path, seed: int, size: tuple[int, int, int]) -> dict[str, Any]:
    site, name, seed = planned.kind, planned.name, seed + planned.index
    image, label = make_phantom(site, seed=seed, size=size, lesion=planned.index % _HEALTHY_EVERY != 2)
    if planned.dicom:
        image_path, label_path = write_phantom_dicom(image, folder / name, seed=seed), folder / f"{name}_label.nii.gz"
        write_label_map(label.array, label, label_path)
    else:
        image_path, label_path = write_phantom_nifti(image, label, folder, name)
    return {
        "id": name,
        "image": image_path.name,
        "label": label_path.name,
        "labels": {str(value): target for value, target in ALL_PHANTOM_LABELS.items()},
        "modality": "CT",
        "site": site,
        "patient": f"PHANTOM-{site}-{seed}",
        "split": planned.split,
    }


def _parameters(*, abdomen: int, chest: int, seed: int, size: tuple[int, int, int]) -> dict[str, Any]:
    if abdomen < 0 or chest < 0 or abdomen + chest == 0 or max(abdomen, chest) > _SEEDS_PER_SET:
        msg = f"a demo data set has 1 to {_SEEDS_PER_SET} phantoms of a kind, got {abdomen} abdomen and {chest} chest"
        raise ConfigError(msg)
    if seed < 0:
        raise ConfigError(f"the seed of a demo data set must be 0 or more, got {seed}")
    return {"abdomen": abdomen, "chest": chest, "seed": seed, "size": list(size)}
