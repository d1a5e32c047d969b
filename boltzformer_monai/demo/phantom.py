"""Synthetic CT scans with labels, for the demo data set, tests and benchmarks.

They are not anatomically exact, but difficult in the same ways: organs that vary in shape, place and density, left and
right ones, similar structures without a label (gallbladder, stomach, caval vein, lung vessels), and objects of a few
pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from boltzformer_monai.demo.phantom_parts import around, draw_spine, draw_wall, scaled, scanned, texture
from boltzformer_monai.demo.phantom_shapes import FIELD_OF_VIEW_MM, Canvas, Point, Region, smooth_field
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.io.volume import Volume

__all__ = ["ALL_PHANTOM_LABELS", "CHEST_LABELS", "PHANTOM_LABELS", "PhantomKind", "labels_of", "make_phantom"]

PhantomKind = Literal["abdomen", "chest"]

PHANTOM_LABELS: Mapping[int, str] = MappingProxyType(
    {1: "liver", 2: "spleen", 3: "right kidney", 4: "left kidney", 5: "aorta", 6: "liver lesion"}
)
CHEST_LABELS: Mapping[int, str] = MappingProxyType(
    {5: "aorta", 7: "right lung", 8: "left lung", 9: "heart", 10: "lung nodule"}
)
# A value means the same structure in both kinds, so that one table describes a mixed data set.
ALL_PHANTOM_LABELS: Mapping[int, str] = MappingProxyType({**PHANTOM_LABELS, **CHEST_LABELS})

LIVER, SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, AORTA, LIVER_LESION = 1, 2, 3, 4, 5, 6
RIGHT_LUNG, LEFT_LUNG, HEART, LUNG_NODULE = 7, 8, 9, 10
_MIN_SIZE = (32, 32, 4)


def labels_of(kind: str) -> Mapping[int, str]:
    """Label value → target name of a phantom kind.

    Raises:
        ConfigError: the kind is unknown.
    """
    kinds = {"abdomen": PHANTOM_LABELS, "chest": CHEST_LABELS}
    if kind not in kinds:
        raise ConfigError(f"unknown phantom kind {kind!r}; choose one of {', '.join(kinds)}")
    return kinds[kind]


def make_phantom(
    kind: PhantomKind,
    *,
    seed: int,
    size: tuple[int, int, int] = (192, 192, 24),
    spacing: tuple[float, float, float] | None = None,
    lesion: bool = True,
) -> tuple[Volume, Volume]:
    """Make one synthetic patient.

    Args:
        kind: "abdomen" or "chest".
        seed: of the patient; reproducible voxel for voxel.
        size: voxels along Left, Posterior and Superior (at least 32 × 32 × 4), for the same field of view.
        spacing: voxel size in mm along the same axes; default: 345.6 × 345.6 × 120 mm divided by the size, 1.8 × 1.8 ×
            5 mm for the default size.
        lesion: with lesions (abdomen) or nodules (chest).

    Returns:
        The image, float32 (I, J, K) in whole HU, and the label map, uint8 of the same grid, both in LPS order.

    Raises:
        ConfigError: unknown kind, negative seed, or a size or spacing out of range.
    """
    labels_of(kind)
    if seed < 0:
        raise ConfigError(f"phantom seed must be 0 or more, got {seed}")
    if len(size) != 3 or any(n < low for n, low in zip(size, _MIN_SIZE, strict=True)):
        raise ConfigError(f"phantom size must be at least {_MIN_SIZE}, got {tuple(size)}")
    if spacing is None:
        spacing = (FIELD_OF_VIEW_MM[0] / size[0], FIELD_OF_VIEW_MM[1] / size[1], FIELD_OF_VIEW_MM[2] / size[2])
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ConfigError(f"phantom spacing must be three positive numbers of mm, got {tuple(spacing)}")
    rng = np.random.default_rng([get_args(PhantomKind).index(kind), seed])
    canvas = Canvas(size, rng, deformation_mm=float(rng.uniform(2.5, 4.5)), z_offset_mm=float(rng.uniform(-8, 8)))
    draw = _draw_abdomen if kind == "abdomen" else _draw_chest
    draw(canvas, rng, lesion)
    return scanned(canvas, rng, spacing=spacing, source=f"phantom:{kind}:{seed}")


def _branches(
    canvas: Canvas, rng: np.random.Generator, root: Point, reach: Point, *, hu: float, radius: float, only: int
) -> None:
    """A small tapering tree of vessels from `root` within the structure `only`."""
    for _ in range(5):
        point, width = root, radius
        heading = rng.standard_normal(3)
        for _ in range(4):
            heading = heading + 0.6 * rng.standard_normal(3)
            step = heading / max(float(np.linalg.norm(heading)), 1e-6) * np.asarray(reach) / 4
            target = (point[0] + float(step[0]), point[1] + float(step[1]), point[2] + float(step[2]))
            canvas.paint(canvas.tube(point, target, width), hu, only=(only,))
            point, width = target, width * 0.75


def _draw_lesions(
    canvas: Canvas, rng: np.random.Generator, parent: int, value: int, contrast: tuple[float, float] | None
) -> None:
    """One to three small ellipsoids inside `parent`; `contrast` is HU below the parent, None draws 0 to 50 HU."""
    inside = np.argwhere(canvas.label == parent)
    if not len(inside):
        return
    for _ in range(int(rng.integers(1, 4))):
        radius = max(float(np.exp(rng.normal(np.log(7.4), 0.42))), 1.3 * canvas.voxel_mm)
        radius = min(radius, 15.0)
        radii = scaled(rng, (radius, radius, max(radius, 0.6 * canvas.spacing[2])), 0.2)
        angle = float(rng.uniform(0, np.pi))
        for _ in range(40):
            index = inside[int(rng.integers(len(inside)))]
            region = canvas.ellipsoid(canvas.position(tuple(index)), radii, angle=angle)
            touched = canvas.label[region.box][region.distance < canvas.voxel_mm]
            if np.all(touched == parent):
                break
        else:
            continue
        density = float(rng.uniform(0, 50))
        if contrast is not None:
            density = float(np.median(canvas.hu[canvas.label == parent])) - float(rng.uniform(*contrast))
        canvas.paint(region, density, value)


def _draw_abdomen(canvas: Canvas, rng: np.random.Generator, lesion: bool) -> None:
    radii = (float(rng.uniform(142, 162)), float(rng.uniform(100, 118)))
    cavity = draw_wall(canvas, rng, radii)
    back = radii[1] - 108  # what lies on the spine moves with it
    bowel = smooth_field(canvas.size, (14, 14, 4), rng)
    inner = np.where(bowel > 0.2, np.float32(rng.uniform(25, 45)), np.float32(-95))
    front = canvas.ellipsoid((0, -45, 40), (radii[0] - 35, 62, 110), power=2.5, box=cavity.box)
    canvas.paint(cavity, -95)
    canvas.paint(Region(cavity.box, np.maximum(front.distance, cavity.distance)), inner)
    organ = float(rng.uniform(95, 125))  # one contrast phase sets the densities of all parenchyma

    canvas.paint(canvas.ellipsoid(around(rng, (62, -42, 88), (8, 8, 8)), scaled(rng, (42, 34, 36))), 32)  # stomach
    box = cavity.box
    right_lobe = canvas.ellipsoid(
        around(rng, (-64, -8, 84), (7, 6, 8)), scaled(rng, (62, 72, 62)), angle=0.25, power=2.3, box=box
    )
    left_lobe = canvas.ellipsoid(around(rng, (-6, -52, 92), (8, 6, 8)), scaled(rng, (62, 27, 36)), box=box)
    liver = right_lobe.union(left_lobe)
    liver = Region(box, np.maximum(liver.distance, cavity.shrunk(2).distance))
    canvas.paint(liver, texture(canvas, rng, organ, 5), LIVER)
    hilum = around(rng, (-45, -5, 80), (8, 8, 8))
    _branches(canvas, rng, hilum, (70, 70, 50), hu=organ + float(rng.uniform(25, 50)), radius=4.5, only=LIVER)
    canvas.paint(
        canvas.ellipsoid(around(rng, (-42, -52, 48), (6, 5, 6)), scaled(rng, (13, 19, 20))), 8, 0
    )  # gallbladder

    spleen = canvas.ellipsoid(
        around(rng, (98, 34, 90), (6, 6, 8)), scaled(rng, (24, 42, 34)), angle=float(rng.uniform(0.1, 0.5)), box=box
    )
    spleen = Region(box, np.maximum(spleen.distance, cavity.shrunk(2).distance))
    canvas.paint(spleen, texture(canvas, rng, organ + float(rng.uniform(5, 20)), 4), SPLEEN)

    draw_spine(canvas, rng, 52.0 + back)
    height = float(rng.uniform(44, 56))
    for side, value, lower in ((-1, RIGHT_KIDNEY, float(rng.uniform(8, 16))), (1, LEFT_KIDNEY, 0.0)):
        centre = around(rng, (side * 64.0, 44.0 + back, height - lower), (5, 4, 2))
        size = scaled(rng, (25, 29, 40))
        tilt = side * float(rng.uniform(-0.5, -0.2))
        kidney = canvas.ellipsoid(centre, size, angle=tilt)
        canvas.paint(kidney.shrunk(-5), -95, 0)  # perirenal fat
        canvas.paint(kidney, organ + float(rng.uniform(55, 75)), value)
        canvas.paint(kidney.shrunk(7), organ + float(rng.uniform(15, 35)), only=(value,))
        sinus = canvas.ellipsoid((centre[0] - side * 0.75 * size[0], centre[1] - 6, centre[2]), (13, 8, 0.45 * size[2]))
        canvas.paint(sinus, -80, 0)

    aorta = (float(rng.uniform(6, 14)), 30.0 + back + float(rng.uniform(-3, 3)))
    calibre = float(rng.uniform(9, 12.5))
    canvas.paint(canvas.column(aorta, (calibre, calibre)), organ + float(rng.uniform(50, 90)), AORTA)
    cava = (float(rng.uniform(-24, -16)), 30.0 + back + float(rng.uniform(-4, 2)))
    canvas.paint(canvas.column(cava, (float(rng.uniform(10, 14)), float(rng.uniform(7, 10)))), organ + 15, 0)
    if lesion:
        _draw_lesions(canvas, rng, LIVER, LIVER_LESION, (40, 80))


def _draw_chest(canvas: Canvas, rng: np.random.Generator, lesion: bool) -> None:
    radii = (float(rng.uniform(145, 164)), float(rng.uniform(100, 116)))
    cavity = draw_wall(canvas, rng, radii)
    back = radii[1] - 108
    canvas.paint(cavity, texture(canvas, rng, 10, 20))
    air = float(rng.uniform(-880, -830))
    box = cavity.box
    for side, value, width in ((-1, RIGHT_LUNG, 58.0), (1, LEFT_LUNG, 52.0)):
        centre = around(rng, (side * 74.0, 2.0, 50.0), (4, 4, 10))
        lung = canvas.ellipsoid(centre, scaled(rng, (width, 82, 130), 0.08), angle=side * 0.12, power=2.4, box=box)
        lung = Region(box, np.maximum(lung.distance, cavity.shrunk(1).distance))
        canvas.paint(lung, texture(canvas, rng, air, 18), value)
        root = around(rng, (side * 38.0, 10.0, 62.0), (4, 4, 10))
        for _ in range(3):
            _branches(canvas, rng, root, (95, 110, 90), hu=float(rng.uniform(20, 60)), radius=4.0, only=value)
    canvas.paint(canvas.column((0.0, 50.0 + back), (26, 22)), 45, 0)  # the tissue that keeps the lungs apart
    draw_spine(canvas, rng, 52.0 + back)

    heart = canvas.ellipsoid(
        around(rng, (22, -26, 22), (5, 4, 6)), scaled(rng, (52, 40, 48)), angle=float(rng.uniform(0.3, 0.6))
    )
    blood = float(rng.uniform(120, 170))
    canvas.paint(heart.shrunk(-4), -80, 0)  # epicardial fat
    canvas.paint(heart, float(rng.uniform(70, 95)), HEART)
    canvas.paint(heart.shrunk(9), blood, only=(HEART,))

    wander = float(rng.uniform(-3, 3))
    calibre = float(rng.uniform(10, 13))
    arch: list[Point] = [(-6, -14, 66), (-8, -12, 88), (-2, -4, 106), (10, 12, 112), (22, 26, 104), (25, 30 + back, 84)]
    arch = [(x + wander, y, z) for x, y, z in arch] + [(24 + wander, 30 + back, -40.0)]
    density = blood + float(rng.uniform(10, 50))
    for start, end in zip(arch[:-1], arch[1:], strict=True):
        canvas.paint(canvas.tube(start, end, calibre), density, AORTA)
    canvas.paint(canvas.tube((-4.0 + wander, 12.0, 66.0), (-2.0 + wander, 8.0, 200.0), 8.0), -980, 0)  # trachea
    if lesion:
        for parent in (RIGHT_LUNG, LEFT_LUNG):
            _draw_lesions(canvas, rng, parent, LUNG_NODULE, None)
