"""Contours to pixels against a rasterised oracle that knows how each set was made: copies, holes, islands, overlaps."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom import contours as module
from boltzformer_monai.io.dicom.contours import fill_contours, fill_region
from boltzformer_monai.io.segmentation import read_segmentation
from boltzformer_monai.io.volume import Volume
from tests.io.dicom_objects import FRAME_OF_REFERENCE, write_rtstruct
from tests.sizes import count

SIZE = 64
NEAR = 0.3  # pixels from an edge within which a pixel may belong to either side
FILES, ROIS = count(4, thorough=40), 50


def winding(contour: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether points lie inside, by the angles that a contour without crossings turns around each."""
    inside = np.zeros(len(points), bool)
    near = ((points >= contour.min(axis=0)) & (points <= contour.max(axis=0))).all(axis=1)
    to_corners = (contour - points[near, None]) @ (1, 1j)
    inside[near] = np.abs(np.angle(np.roll(to_corners, -1, axis=1) / to_corners).sum(axis=1)) > np.pi
    return inside


def distance(contour: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pixels from the line; infinite further than a pixel outside its box."""
    nearest = np.full(len(points), np.inf)
    near = ((points > contour.min(axis=0) - 1) & (points < contour.max(axis=0) + 1)).all(axis=1)
    start, along = contour, np.roll(contour, -1, axis=0) - contour
    away = points[near, None] - start
    share = np.clip((away * along).sum(axis=2) / np.maximum((along**2).sum(axis=1), 1e-12), 0, 1)
    nearest[near] = np.linalg.norm(away - share[:, :, None] * along, axis=2).min(axis=1)
    return nearest


CENTRES = np.argwhere(np.ones((SIZE, SIZE))).astype(float)
FINE = CENTRES + 0.013


@dataclass
class Drawn:
    """A set of contours and the pixels that they mean; ``near`` are those too close to an edge to tell."""

    contours: list[np.ndarray] = field(default_factory=list)
    inside: np.ndarray = field(default_factory=lambda: np.zeros(len(CENTRES), bool))
    near: np.ndarray = field(default_factory=lambda: np.zeros(len(CENTRES), bool))
    xor: bool = False

    def add(self, contour: np.ndarray) -> np.ndarray:
        self.contours.append(contour)
        self.near |= distance(contour, CENTRES) < NEAR
        return winding(contour, CENTRES)


def star(random: np.random.Generator, centre: np.ndarray, radius: float) -> np.ndarray:
    count = int(random.integers(4, 25))
    angles = 2 * np.pi * (np.arange(count) + random.uniform(0.0, 0.6, count)) / count
    radii = radius * random.uniform(random.choice([0.55, 0.9]), 1.0, count)
    return centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def copy(random: np.random.Generator, contour: np.ndarray) -> np.ndarray:
    """The same again: another first point, perhaps backwards, perhaps rounded."""
    again = np.roll(contour, int(random.integers(len(contour))), axis=0)[:: int(random.choice([-1, 1]))]
    return again + random.choice([0.0, 1e-4, 0.03]) * random.uniform(-1, 1, again.shape)


def nested(random: np.random.Generator, drawn: Drawn, centre: np.ndarray, radius: float) -> None:
    outer = star(random, centre, radius)
    for level in range(int(random.integers(1, 5))):  # body, hole, island, hole of the island
        drawn.inside ^= drawn.add(centre + (outer - centre) * (1, 0.62, 0.36, 0.16)[level])


def keyhole(random: np.random.Generator, drawn: Drawn, centre: np.ndarray, radius: float) -> None:
    outer = star(random, centre, radius)
    inner = centre + (outer - centre) * 0.5
    inside, hole = winding(outer, CENTRES), winding(inner, CENTRES)
    drawn.inside |= inside & ~hole
    drawn.add(np.concatenate([outer, outer[:1], inner[:1], inner[::-1]]))
    drawn.near |= distance(inner, CENTRES) < NEAR


def overlapping(random: np.random.Generator, drawn: Drawn, centre: np.ndarray, radius: float) -> None:
    """Two parts that overlap; one or both have a hole, which the other may cover, cross, share or not touch."""
    while True:
        away = random.uniform(0, 2 * np.pi)
        shift = radius * random.uniform(0.3, 0.9) * np.array([np.cos(away), np.sin(away)])
        first, second = star(random, centre, radius), star(random, centre + shift, radius * random.uniform(0.6, 1))
        hole = centre + (first - centre) * random.uniform(0.2, 0.5)
        fine = [winding(each, FINE) for each in (first, second, hole)]
        only_first, only_second = (fine[0] & ~fine[1]).mean(), (fine[1] & ~fine[0]).mean()
        both, missed = (fine[0] & fine[1]).mean(), (fine[2] & ~fine[1]).mean()
        uncovered = (fine[2] & fine[1]).mean()
        clear = min(only_first, only_second, both) > 0.004
        # Whether the hole is one of both parts must be clear: all of it, none of it, or a good share of either.
        corners = winding(second, hole)
        if missed and uncovered:
            clear &= min(missed, uncovered) > 0.001
        else:
            clear &= bool((corners == (not missed)).all()) and distance(second, hole).min() > 0.6
        if clear:
            break
    areas = [drawn.add(contour) for contour in (first, second)]
    if random.random() < 0.6:
        empty = drawn.add(hole)
        # A hole lies in all that surrounds it, and what crosses it is another part of the region.
        drawn.inside |= (areas[0] | areas[1]) & ~empty if missed == 0 else areas[0] & ~empty | areas[1]
    else:
        drawn.inside |= areas[0] | areas[1]


def exclusive(random: np.random.Generator, drawn: Drawn, centre: np.ndarray, radius: float) -> None:
    for _ in range(int(random.integers(1, 5))):
        drawn.inside ^= drawn.add(star(random, centre + random.uniform(-4, 4, 2), radius * random.uniform(0.4, 1)))


def random_set(random: np.random.Generator) -> Drawn:
    drawn = Drawn(xor=bool(random.random() < 0.2))
    kinds: list[Callable[..., None]] = [exclusive] if drawn.xor else [nested, keyhole, overlapping]
    places = np.array([(15.0, 15.0), (15.0, 48.0), (48.0, 15.0), (48.0, 48.0)])
    for place in random.permutation(places)[: int(random.integers(1, 4))]:
        kinds[int(random.integers(len(kinds)))](random, drawn, place + random.uniform(-0.5, 0.5, 2), 8.0)
    if not drawn.xor and random.random() < 0.6:
        chosen = random.choice(len(drawn.contours), int(random.integers(1, 4)))
        drawn.contours += [copy(random, drawn.contours[index]) for index in chosen]
        drawn.contours = [drawn.contours[index] for index in random.permutation(len(drawn.contours))]
    return drawn


def files(seed: int) -> Iterator[tuple[int, list[Drawn]]]:
    for number in range(FILES):
        random = np.random.default_rng((seed, number))
        yield number, [random_set(random) for _ in range(ROIS)]


def test_random_sets_of_contours_against_the_oracle(tmp_path: Path) -> None:
    affine = np.array([[-0.9, 0, 0, 30], [0, -0.8, 0, 40], [0, 0, 2.5, -70], [0, 0, 0, 1.0]])
    grid = np.zeros((SIZE, SIZE, ROIS), np.float32)
    image = Volume(grid, affine, frame_of_reference=FRAME_OF_REFERENCE)
    compared = inside = 0
    for number, sets in files(7):
        kinds = ["CLOSEDPLANAR_XOR" if drawn.xor else "CLOSED_PLANAR" for drawn in sets]

        def set_kinds(dataset: Any, kinds: list[str] = kinds) -> None:
            for item, kind in zip(dataset.ROIContourSequence, kinds, strict=True):
                for contour in item.ContourSequence:
                    contour.ContourGeometricType = kind

        rois = {
            f"set {index}": [
                np.insert(contour, 2, index, axis=1) @ affine[:3, :3].T + affine[:3, 3] for contour in drawn.contours
            ]
            for index, drawn in enumerate(sets)
        }
        path = write_rtstruct(tmp_path / f"{number}.dcm", rois, change=set_kinds)
        array = read_segmentation(path, image).volume.array
        for index, drawn in enumerate(sets):
            found = array[:, :, index].ravel() == index + 1
            wrong = (found != drawn.inside) & ~drawn.near
            assert not wrong.any(), (number, index, drawn.xor, CENTRES[wrong][:5])
            compared += int((~drawn.near).sum())
            inside += int((drawn.inside & ~drawn.near).sum())
    assert compared > 0.8 * FILES * ROIS * SIZE**2
    assert inside > 100 * FILES * ROIS


def box(low: tuple[float, float], high: tuple[float, float]) -> np.ndarray:
    return np.array([low, (low[0], high[1]), high, (high[0], low[1])], float)


@pytest.mark.parametrize("shift", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_contour_drawn_twice_counts_once(shift: float, direction: int) -> None:
    once = box((0.5, 0.5), (6.5, 8.5))
    again = np.roll(once, 2, axis=0)[::direction] + shift
    region = fill_region([once, again], (10, 10))
    assert np.array_equal(region.mask, fill_contours([once], (10, 10)))
    assert region.mask.sum() == 6 * 8
    assert (region.repeated, region.crossing) == (1, 0)


def test_one_contour_that_runs_around_twice_counts_once() -> None:
    once = box((0.5, 0.5), (6.5, 8.5))
    assert fill_region([np.concatenate([once, once])], (10, 10)).mask.sum() == 6 * 8


def test_a_copy_with_other_points_on_the_same_line_counts_once() -> None:
    once = box((0.5, 0.5), (6.5, 8.5))
    finer = np.stack([once, (once + np.roll(once, -1, axis=0)) / 2], axis=1).reshape(-1, 2)
    region = fill_region([once, finer], (10, 10))
    assert region.mask.sum() == 6 * 8
    assert region.repeated == 1


def test_a_copied_hole_stays_a_hole() -> None:
    outer, hole = box((0.5, 0.5), (8.5, 8.5)), box((3.5, 3.5), (5.5, 5.5))
    for contours in ([outer, hole, hole], [hole, outer, outer, hole[::-1]]):
        assert fill_region(contours, (10, 10)).mask.sum() == 64 - 4


def test_overlapping_contours_are_united() -> None:
    region = fill_region([box((0.5, 0.5), (5.5, 5.5)), box((3.5, 3.5), (8.5, 8.5))], (10, 10))
    assert region.mask.sum() == 25 + 25 - 4
    assert region.crossing == 2


def test_parts_that_share_an_edge_are_no_overlap() -> None:
    region = fill_region([box((0.5, 0.5), (5.5, 5.5)), box((5.45, 0.5), (8.5, 5.5))], (10, 10))
    assert region.mask.sum() == 40
    assert region.crossing == 0


def test_a_hole_that_touches_the_outer_line_stays_a_hole() -> None:
    region = fill_region([box((0.5, 0.5), (8.5, 8.5)), box((0.45, 3.5), (4.5, 5.5))], (10, 10))
    assert region.mask.sum() == 64 - 8
    assert region.crossing == 0


def nested_squares(size: float, count: int = 3) -> list[np.ndarray]:
    return [box((-size + step, -size + step), (size + step, size + step)) for step in range(count)]


@pytest.mark.parametrize("size", [1e6, 1e8, 1e15, 1e300])
def test_contours_without_measure_are_refused_by_name(tmp_path: Path, size: float) -> None:
    started = perf_counter()
    with pytest.raises(VolumeError, match="^here: its contours on one slice are too many or too long") as caught:
        fill_region(nested_squares(size * 10), (10, 10), where="here")
    assert caught.value.reason == "damaged"
    image = Volume(np.zeros((9, 9, 3), np.float32), np.eye(4), frame_of_reference=FRAME_OF_REFERENCE)
    path = write_rtstruct(
        tmp_path / "rt.dcm", {"GTV": [np.insert(each, 2, 1, axis=1) for each in nested_squares(size)]}
    )
    with pytest.raises(VolumeError, match=r'"GTV" .*(10000 pixels beyond|on no slice)') as caught:
        read_segmentation(path, image)
    assert caught.value.reason == "grid"
    assert perf_counter() - started < 20


def test_contours_around_a_scan_that_was_cut_small(tmp_path: Path) -> None:
    """The body around a small part of it, its hole and a copy, all far beyond the picture, and what lies inside."""
    image = Volume(np.zeros((9, 9, 3), np.float32), np.eye(4), frame_of_reference=FRAME_OF_REFERENCE)
    far = [box((-9000.0, -9000.0), (4.5, 9000.0)), box((-8000.0, -8000.0), (2.5, 8000.0))]
    contours = [*far, far[0][::-1], box((0.5, 0.5), (1.5, 1.5))]
    path = write_rtstruct(tmp_path / "rt.dcm", {"body": [np.insert(each, 2, 1, axis=1) for each in contours]})
    expected = np.zeros((9, 9), bool)
    expected[3:5], expected[1, 1] = True, True
    assert np.array_equal(read_segmentation(path, image).volume.array[:, :, 1] == 1, expected)


def test_thousands_of_small_contours_are_compared_with_their_neighbours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WORK", 1e8)  # each with each would be 2e9
    places = np.argwhere(np.ones((173, 173)))
    region = fill_region([box((-0.4, -0.4), (0.4, 0.4)) + place for place in places], (173, 173))
    assert (region.mask.all(), region.repeated, region.crossing) == (True, 0, 0)


@pytest.mark.parametrize("apart", [0.0, 1e-3])
def test_thousands_of_contours_in_one_place_are_refused(monkeypatch: pytest.MonkeyPatch, apart: float) -> None:
    assert module._MOST_WORK / module._PER_PAIR <= 50_000  # pairs, each a millisecond at most
    monkeypatch.setattr(module, "_MOST_WORK", module._MOST_WORK / 50)
    contours = [box((1.5, 1.5), (4.5, 4.5)) + apart * number for number in range(1500)]
    with pytest.raises(VolumeError, match="too many"):
        fill_region(contours, (100, 100))
    with pytest.raises(VolumeError, match="too many"):
        module.copies(contours)


def test_hundreds_of_outlines_inside_a_long_one_are_no_reason_to_refuse() -> None:
    angles = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    body = 250 + 248 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places = 100 + 12 * np.argwhere(np.ones((25, 25)))
    holes = [box((-2.5, -2.5), (2.5, 2.5)) + place for place in places]
    region = fill_region([body, *holes], (500, 500))
    assert region.mask.sum() == fill_contours([body], (500, 500)).sum() - 25 * len(holes)


def test_a_line_that_crosses_every_row_many_times_takes_little_memory() -> None:
    count = 20_000
    zigzag = np.stack([np.tile([-0.5, 499.5], count), np.linspace(0.2, 499.8, 2 * count)], axis=1)
    tracemalloc.start()
    mask = fill_contours([zigzag], (500, 500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.shape == (500, 500)
    assert peak < 300_000_000


def test_boxes_in_any_order_are_compared_with_all_that_they_meet() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        lows = random.uniform(0, 50, (30, 2))
        boxes = [box(tuple(low), tuple(low + random.uniform(2, 15, 2))) for low in lows]
        expected = np.zeros((70, 70), bool)
        for each in boxes:
            expected |= fill_contours([each], (70, 70))
        inside = any(
            (one.min(0) > other.min(0)).all() and (one.max(0) < other.max(0)).all() for one in boxes for other in boxes
        )
        if not inside:
            assert np.array_equal(fill_region(boxes, (70, 70)).mask, expected)
