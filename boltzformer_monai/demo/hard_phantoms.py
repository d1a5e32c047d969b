"""Hard phantoms: scans in which small objects of low contrast can be told only by their surroundings.

Objects have 2 to 12 pixels in diameter and lie in one slice each. Two kinds look alike but for their density, and that
counts relative to the patient's contrast phase: one is as bright as this patient's aorta, the other half way to it
from the organ around. The same two have other names in the liver, the spleen and the mediastinum, which are equally
dense. Pieces of vessels of the same densities and widths, elongated or branched, are no objects. A target is absent
from many slices whose organ is there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.demo.made_folder import is_complete, staged, write_marker
from boltzformer_monai.demo.phantom_parts import around, draw_spine, draw_wall, scaled, scanned, texture
from boltzformer_monai.demo.phantom_shapes import FIELD_OF_VIEW_MM, Canvas, Point, Region
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.io.volume import Volume

__all__ = ["HARD_LABELS", "HARD_OBJECTS", "ensure_hard_dataset", "make_hard_phantom"]

_log = logging.getLogger(__name__)

LIVER, SPLEEN, AORTA, LIVER_DIM, LIVER_BRIGHT, SPLEEN_DIM, SPLEEN_BRIGHT = 1, 2, 3, 4, 5, 6, 7
LUNG, HEART, NODULE, MEDIASTINUM_DIM, MEDIASTINUM_BRIGHT = 8, 9, 10, 11, 12
_MEDIASTINUM = 255  # while drawing; no target

HARD_LABELS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "abdomen": MappingProxyType(
            {
                LIVER: "liver",
                SPLEEN: "spleen",
                AORTA: "aorta",
                LIVER_DIM: "liver metastasis",
                LIVER_BRIGHT: "liver hemangioma",
                SPLEEN_DIM: "spleen metastasis",
                SPLEEN_BRIGHT: "spleen hemangioma",
            }
        ),
        "chest": MappingProxyType(
            {
                AORTA: "aorta",
                LUNG: "lung",
                HEART: "heart",
                NODULE: "lung nodule",
                MEDIASTINUM_DIM: "mediastinal lymph node",
                MEDIASTINUM_BRIGHT: "mediastinal paraganglioma",
            }
        ),
    }
)
"""Site → label value → target."""
HARD_OBJECTS = tuple(
    name
    for labels in HARD_LABELS.values()
    for value, name in labels.items()
    if value not in (LIVER, SPLEEN, AORTA, LUNG, HEART)
)
"""The targets that are small."""

_FORMAT, _VERSION, _MARKER = "boltzformer-hard-phantoms", 1, "hard_phantoms.json"  # raise it when a seed's scans change
_MIN_SIZE, _MOST_PATIENTS = (96, 96, 1), 10_000
_DIM, _BRIGHT = (0.4, 0.6), (0.95, 1.05)  # of the way from the organs' density to the aorta's
_PRESENT = 0.66  # of the slices, where there is room
_DIAMETER_PX = (2.0, 12.0)
_MARGIN_PX = 1.5
_TRIES, _NEAR_TRIES = 100, 5
_ENDLESS = 1e6  # mm


class _Density(NamedTuple):
    """HU of one patient: all follow from the phase of the contrast agent."""

    organ: float
    aorta: float

    def between(self, share: float) -> float:
        """``share`` of the way from the organs to the aorta."""
        return self.organ + share * (self.aorta - self.organ)


def make_hard_phantom(site: str, *, seed: int, size: tuple[int, int, int] = (192, 192, 8)) -> tuple[Volume, Volume]:
    """Make one synthetic patient.

    Args:
        site: ``"abdomen"`` or ``"chest"``.
        seed: of the patient; reproducible voxel for voxel.
        size: voxels along Left, Posterior and Superior, at least 96 × 96 × 1, of a field of view of 345.6 × 345.6 × 120
            mm. Objects have their size in pixels.

    Returns:
        The image, float32 (I, J, K) in whole HU, and the label map, uint8 of the same grid, both in LPS order.

    Raises:
        ConfigError: unknown site, negative seed, or a size out of range.
    """
    if site not in HARD_LABELS:
        raise ConfigError(f"unknown site {site!r} of a hard phantom; choose one of {', '.join(HARD_LABELS)}")
    if seed < 0:
        raise ConfigError(f"phantom seed must be 0 or more, got {seed}")
    if len(size) != 3 or any(n < low for n, low in zip(size, _MIN_SIZE, strict=True)):
        raise ConfigError(f"the size of a hard phantom must be at least {_MIN_SIZE}, got {tuple(size)}")
    rng = np.random.default_rng([2, list(HARD_LABELS).index(site), seed])  # 0 and 1 are those of make_phantom
    canvas = Canvas(size, rng, deformation_mm=float(rng.uniform(2.5, 4.5)), z_offset_mm=float(rng.uniform(-8, 8)))
    aorta = float(rng.uniform(110, 220))
    density = _Density(45 + 0.2 * (aorta - 110) + float(rng.uniform(-4, 4)), aorta)
    (_draw_abdomen if site == "abdomen" else _draw_chest)(canvas, rng, density)
    canvas.label[canvas.label == _MEDIASTINUM] = 0
    spacing = (FIELD_OF_VIEW_MM[0] / size[0], FIELD_OF_VIEW_MM[1] / size[1], FIELD_OF_VIEW_MM[2] / size[2])
    return scanned(canvas, rng, spacing=spacing, source=f"hard phantom:{site}:{seed}")


def ensure_hard_dataset(
    root: str | os.PathLike[str],
    *,
    train: int = 150,
    val: int = 20,
    test: int = 20,
    slices: int = 8,
    edge: int = 192,
    seed: int = 0,
) -> Path:
    """Slice dataset of hard phantoms, half of them of the chest; made where it is missing.

    Args:
        root: folder of the dataset. One of the same settings is reused; an interrupted call leaves nothing.
        train: patients for training.
        val: for validation.
        test: for testing.
        slices: of each patient.
        edge: of a slice in pixels.
        seed: of the patients; other seeds are other patients.

    Raises:
        ConfigError: a number is out of range.
        DatasetError: the folder has other content.
    """
    counts = {"train": train, "val": val, "test": test}
    if min(counts.values()) < 0 or train < 1 or sum(counts.values()) > _MOST_PATIENTS:
        msg = f"hard phantoms need 1 patient or more for training and at most {_MOST_PATIENTS} in all, got {counts}"
        raise ConfigError(msg)
    if slices < 1 or edge < _MIN_SIZE[0] or seed < 0:
        msg = (
            f"hard phantoms need 1 slice or more, an edge of {_MIN_SIZE[0]} pixels or more and a seed of 0 or more; "
            f"got {slices}, {edge} and {seed}"
        )
        raise ConfigError(msg)
    place = Path(root)
    parameters = {**counts, "slices": slices, "edge": edge, "seed": seed}
    described = {"format": _FORMAT, "version": _VERSION, "parameters": parameters}
    if is_complete(place, _MARKER, described):
        return place
    _log.info("making %d hard phantoms in %s", sum(counts.values()), place)
    splits = [split for split, count in counts.items() for _ in range(count)]
    with staged(place, _MARKER) as staging:
        with SliceWriter(staging, name="hard phantoms", seed=seed) as writer:
            for index, split in enumerate(splits):
                _add_patient(writer, index, split, seed=seed * _MOST_PATIENTS + index, size=(edge, edge, slices))
        write_marker(staging / _MARKER, described)
    return place


def _add_patient(writer: SliceWriter, index: int, split: str, *, seed: int, size: tuple[int, int, int]) -> None:
    site = ("abdomen", "chest")[index % 2]
    image, label = make_hard_phantom(site, seed=seed, size=size)
    labels: Any = HARD_LABELS[site]
    name = f"{site}_{index:04d}"
    writer.add_volume(image, label, labels, volume_id=name, patient=f"HARD-{seed}", site=site, split=split)


def _draw_abdomen(canvas: Canvas, rng: np.random.Generator, density: _Density) -> None:
    radii = (float(rng.uniform(142, 162)), float(rng.uniform(100, 118)))
    cavity = draw_wall(canvas, rng, radii)
    back = radii[1] - 108  # what lies on the spine moves with it
    box = cavity.box
    canvas.paint(cavity, texture(canvas, rng, -95, 10))
    canvas.paint(canvas.ellipsoid(around(rng, (40, -50, 70), (8, 6, 10)), scaled(rng, (46, 30, 150))), 30)  # stomach

    parenchyma = texture(canvas, rng, density.organ, 5)  # one for both organs
    liver = canvas.ellipsoid(
        around(rng, (-64, -8, 74), (7, 6, 8)), scaled(rng, (64, 74, 160)), angle=0.25, power=2.3, box=box
    ).union(canvas.ellipsoid(around(rng, (-8, -52, 80), (8, 6, 8)), scaled(rng, (62, 27, 120)), box=box))
    canvas.paint(_within(liver, cavity.shrunk(2)), parenchyma, LIVER)
    spleen = canvas.ellipsoid(
        around(rng, (96, 30, 70), (6, 6, 8)), scaled(rng, (34, 54, 160)), angle=float(rng.uniform(0.1, 0.5)), box=box
    )
    canvas.paint(_within(spleen, cavity.shrunk(2)), parenchyma, SPLEEN)

    draw_spine(canvas, rng, 52.0 + back)
    for side in (-1, 1):
        kidney = canvas.ellipsoid(around(rng, (side * 52.0, 48.0 + back, 50), (4, 4, 6)), scaled(rng, (20, 23, 80)))
        canvas.paint(kidney.shrunk(-4), -95, 0)  # perirenal fat
        canvas.paint(kidney, density.between(0.7))
        canvas.paint(kidney.shrunk(7), density.between(0.3))
    calibre = float(rng.uniform(9, 12.5))
    place = (float(rng.uniform(6, 14)), 30.0 + back + float(rng.uniform(-3, 3)))
    canvas.paint(canvas.column(place, (calibre, calibre)), density.aorta, AORTA)
    cava = (float(rng.uniform(-24, -16)), 30.0 + back + float(rng.uniform(-4, 2)))
    canvas.paint(canvas.column(cava, (float(rng.uniform(10, 14)), float(rng.uniform(7, 10)))), density.between(0.4), 0)

    for organ, dim, bright in ((LIVER, LIVER_DIM, LIVER_BRIGHT), (SPLEEN, SPLEEN_DIM, SPLEEN_BRIGHT)):
        _draw_small(canvas, rng, organ, density, objects={dim: _DIM, bright: _BRIGHT})


def _draw_chest(canvas: Canvas, rng: np.random.Generator, density: _Density) -> None:
    radii = (float(rng.uniform(145, 164)), float(rng.uniform(100, 116)))
    cavity = draw_wall(canvas, rng, radii)
    back = radii[1] - 108
    box = cavity.box
    canvas.paint(cavity, texture(canvas, rng, density.organ, 5), _MEDIASTINUM)
    air = texture(canvas, rng, float(rng.uniform(-880, -830)), 18)
    for side in (-1, 1):
        centre, width = around(rng, (side * 82.0, 0.0, 60.0), (4, 4, 10)), float(rng.uniform(46, 54))
        lung = canvas.ellipsoid(centre, (width, 80.0, 240.0), angle=side * 0.12, power=2.4, box=box)
        canvas.paint(_within(lung, cavity.shrunk(1)), air, LUNG)
    draw_spine(canvas, rng, 52.0 + back)
    heart = canvas.ellipsoid(
        around(rng, (22, -34, 40), (5, 4, 6)), scaled(rng, (46, 34, 110)), angle=float(rng.uniform(0.3, 0.6))
    )
    canvas.paint(heart.shrunk(-4), -80, 0)  # epicardial fat
    canvas.paint(heart, density.between(0.3), HEART)
    canvas.paint(heart.shrunk(9), density.aorta, only=(HEART,))
    calibre = float(rng.uniform(10, 13))
    canvas.paint(canvas.column((24.0, 28.0 + back), (calibre, calibre)), density.aorta, AORTA)
    canvas.paint(canvas.column((float(rng.uniform(-8, 0)), 8.0), (8.0, 8.0)), -980, 0)  # trachea

    # Soft tissue in the lung is far from the organs' density, so here vessels are told by shape alone.
    _draw_small(canvas, rng, LUNG, density, objects={NODULE: (-0.2, 0.6)}, pieces=8)
    _draw_small(canvas, rng, _MEDIASTINUM, density, objects={MEDIASTINUM_DIM: _DIM, MEDIASTINUM_BRIGHT: _BRIGHT})


def _within(region: Region, other: Region) -> Region:
    """What two regions over the same box have in common."""
    return Region(region.box, np.maximum(region.distance, other.distance))


def _draw_small(
    canvas: Canvas,
    rng: np.random.Generator,
    organ: int,
    density: _Density,
    *,
    objects: Mapping[int, tuple[float, float]],
    pieces: int = 5,
) -> None:
    """Draw pieces of vessels and objects into every slice of an organ; no two touch each other.

    Args:
        canvas: with the organ.
        rng: of everything.
        organ: label value of what they lie in.
        density: of the patient.
        objects: label value → density, the least and greatest share of the way from the organs to the aorta.
        pieces: of vessels in a slice, and as many branches of a tree.
    """
    lowest, highest = min(low for low, _ in objects.values()), max(high for _, high in objects.values())
    for k in range(canvas.size[2]):
        free = canvas.label[:, :, k] == organ
        for number in range(2 * pieces):
            width = _radius_mm(canvas, rng, largest=3.5)
            length = width * float(rng.uniform(3, 6))
            shape = (length, width, float(rng.uniform(0, np.pi)))
            hu = density.between(float(rng.uniform(lowest, highest)))
            centre = _draw_one(canvas, rng, k, free, shape, hu, value=None)
            if centre is not None and number >= pieces:  # a branch, thinner and turned
                turned = (0.7 * length, 0.8 * width, shape[2] + float(rng.uniform(0.6, 1.4)))
                tip = (centre[0] + length * np.cos(shape[2]), centre[1] + length * np.sin(shape[2]), centre[2])
                _paint(canvas, free, _disc(canvas, k, tip, turned), hu, only=(organ,))
        for value, (low, high) in objects.items():
            if rng.random() >= _PRESENT:
                continue
            for _ in range(int(rng.integers(1, 3))):
                radius = _radius_mm(canvas, rng, largest=_DIAMETER_PX[1] / 2)
                ratio = float(np.exp(rng.uniform(-0.15, 0.15)))
                shape = (radius * ratio, radius / ratio, float(rng.uniform(0, np.pi)))
                _draw_one(canvas, rng, k, free, shape, density.between(float(rng.uniform(low, high))), value)


def _radius_mm(canvas: Canvas, rng: np.random.Generator, *, largest: float) -> float:
    """Log-uniform, from half the least diameter to `largest` pixels."""
    return float(np.exp(rng.uniform(np.log(_DIAMETER_PX[0] / 2), np.log(largest)))) * canvas.voxel_mm


def _disc(canvas: Canvas, k: int, centre: Point, shape: tuple[float, float, float]) -> Region:
    """An ellipse (radii in mm, angle) that exists in one slice only."""
    reach = max(shape[:2])
    across = canvas.box([c - reach for c in centre], [c + reach for c in centre])
    box = (across[0], across[1], slice(k, k + 1))
    return canvas.ellipsoid(centre, (shape[0], shape[1], _ENDLESS), angle=shape[2], box=box)


def _draw_one(
    canvas: Canvas,
    rng: np.random.Generator,
    k: int,
    free: np.ndarray,
    shape: tuple[float, float, float],
    hu: float,
    value: int | None,
) -> Point | None:
    """Draw an ellipse where the organ is free, and return its centre; None where no place was found."""
    for i, j in _places(canvas, rng, free, shape)[:_NEAR_TRIES]:
        centre = canvas.position((int(i), int(j), k))
        region = _disc(canvas, k, centre, shape)
        covered = region.distance <= 0
        near = (region.distance < _MARGIN_PX * canvas.voxel_mm)[:, :, 0]
        if covered.sum() >= 2 and free[region.box[:2]][near].all():
            _paint(canvas, free, region, hu, value)
            return centre
    return None


def _places(
    canvas: Canvas, rng: np.random.Generator, free: np.ndarray, shape: tuple[float, float, float]
) -> np.ndarray:
    """Pixels around which an ellipse would be free but for the patient's deformation, ``(n, 2)``, in random order."""
    inside = np.argwhere(free)
    if not len(inside):
        return inside
    long, short = (radius / canvas.voxel_mm + _MARGIN_PX for radius in shape[:2])
    reach = int(max(long, short)) + 1
    i, j = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    cos, sin = np.cos(shape[2]), np.sin(shape[2])
    offsets = np.argwhere(((cos * i + sin * j) / long) ** 2 + ((cos * j - sin * i) / short) ** 2 <= 1)
    tried = inside[rng.integers(len(inside), size=_TRIES)]
    around = tried[:, None] + offsets  # in the padded array, whose first pixel lies `reach` before
    return tried[np.pad(free, reach)[around[..., 0], around[..., 1]].all(axis=1)]


def _paint(
    canvas: Canvas,
    free: np.ndarray,
    region: Region,
    hu: float,
    value: int | None = None,
    *,
    only: Sequence[int] | None = None,
) -> None:
    """Draw a region of one slice, and take it and a pixel around it from what is free there."""
    canvas.paint(region, hu, value, only=only)
    free[region.box[:2]][region.distance[:, :, 0] < _MARGIN_PX * canvas.voxel_mm] = False
