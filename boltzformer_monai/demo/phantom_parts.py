"""What phantoms of several kinds share: body wall, spine, texture, how much patients vary, and the scanner."""

from __future__ import annotations

import numpy as np

from boltzformer_monai.demo.phantom_shapes import Canvas, Point, Region, smooth_field
from boltzformer_monai.io.volume import Volume

__all__ = ["around", "draw_spine", "draw_wall", "scaled", "scanned", "texture"]

_NOISE_HU = 12.0


def around(rng: np.random.Generator, centre: Point, spread: Point) -> Point:
    """A point within `spread` of `centre`, in mm."""
    x, y, z = (float(c + rng.uniform(-s, s)) for c, s in zip(centre, spread, strict=True))
    return x, y, z


def scaled(rng: np.random.Generator, radii: Point, by: float = 0.12) -> Point:
    """Radii of a patient: larger or smaller by at most a share of about `by`."""
    common = rng.uniform(1 - by, 1 + by)
    x, y, z = (float(r * common * rng.uniform(1 - by / 2, 1 + by / 2)) for r in radii)
    return x, y, z


def texture(canvas: Canvas, rng: np.random.Generator, hu: float, sigma: float) -> np.ndarray:
    """A field of the canvas's size with mean `hu` and standard deviation `sigma`, float32."""
    knots = (max(canvas.size[0] // 5, 1), max(canvas.size[1] // 5, 1), max(canvas.size[2] // 3, 1))
    return np.float32(hu) + np.float32(sigma) * smooth_field(canvas.size, knots, rng)


def draw_wall(canvas: Canvas, rng: np.random.Generator, radii: tuple[float, float]) -> Region:
    """Skin, fat ring, muscle wall and ribs; returns the cavity that the organs fill."""
    body = canvas.column((0.0, 0.0), radii, power=2.4)
    fat_mm = float(rng.uniform(7, 18))
    canvas.paint(body, texture(canvas, rng, rng.uniform(-110, -95), 8))
    canvas.paint(body.shrunk(fat_mm), texture(canvas, rng, 55, 10))
    ring = [r - fat_mm - 6 for r in radii]
    for angle in np.linspace(0.12, 0.88, 7) * np.pi:  # oblique bars, which cross a slice as bright spots
        for side in (-1, 1):
            turn = float(angle + rng.uniform(-0.05, 0.05))
            for low in (-30.0, 20.0, 70.0, 120.0):
                points: list[Point] = [
                    (side * ring[0] * float(np.sin(turn + a)), -ring[1] * float(np.cos(turn + a)), low + z)
                    for a, z in ((-0.05, 0.0), (0.05, 44.0))
                ]
                canvas.paint(canvas.tube(points[0], points[1], 3.6), 420)
    return body.shrunk(fat_mm + float(rng.uniform(9, 13)))


def draw_spine(canvas: Canvas, rng: np.random.Generator, y: float) -> None:
    """Vertebral body, canal, spinous process and adjacent muscles."""
    for side in (-1, 1):
        canvas.paint(canvas.column((side * 34.0, y + 24), (25, 15)), 58, 0)
    vertebra = canvas.column((0.0, y), (19, 15))
    canvas.paint(vertebra, 380, 0)
    canvas.paint(vertebra.shrunk(2.5), texture(canvas, rng, float(rng.uniform(150, 210)), 25), 0)
    canvas.paint(canvas.column((0.0, y + 22), (11, 9)), 350, 0)
    canvas.paint(canvas.column((0.0, y + 22), (7.5, 6)), 25, 0)
    canvas.paint(canvas.column((0.0, y + 36), (3, 8)), 380, 0)


def scanned(
    canvas: Canvas, rng: np.random.Generator, *, spacing: tuple[float, float, float], source: str
) -> tuple[Volume, Volume]:
    """What a scanner makes of a drawing: blurred and noisy whole HU, float32, and the label map, both in LPS order."""
    canvas.blur()
    canvas.add_noise(rng, sigma=_NOISE_HU)
    image = np.clip(np.rint(canvas.hu), -1024, 3071).astype(np.float32)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # L and P grow where nibabel's R and A shrink
    affine[:2, 3] = [(n - 1) / 2 * s for n, s in zip(canvas.size[:2], spacing[:2], strict=True)]
    return (
        Volume(array=image, affine=affine, modality="CT", source=source),
        Volume(array=canvas.label, affine=affine.copy(), modality="CT", source=source),
    )
