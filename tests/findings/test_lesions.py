"""Lesions of phantoms whose axes, volumes and places are known."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import label

from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.findings.lesions import acquisition_axis, find_lesions, label_lesions, tracking_uid
from boltzformer_monai.io.volume import Volume

ORDERS = list(itertools.permutations((0, 1, 2)))  # of an object's half axes along x, y and z


def rotation(*angles: float) -> np.ndarray:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (each for each in range(3) if each != axis)
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = one @ turn
    return turn


GRIDS = {
    "isotropic": np.diag([1.0, 1, 1]),
    "anisotropic": np.diag([0.7, 0.7, 1.5]),
    "flipped": np.diag([-0.8, -0.8, 1.2]),
    "oblique": rotation(0.2, -0.3, 0.4) @ np.diag([0.8, 0.9, 1.3]),
    "slices first": np.diag([0.8, 0.8, 1.6])[:, [2, 1, 0]],
}


def scan(directions: np.ndarray, size_mm: float = 70, modality: str = "CT") -> Volume:
    """A scan about the origin."""
    shape = np.ceil(size_mm / np.linalg.norm(directions, axis=0)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = directions
    affine[:3, 3] = -directions @ (shape - 1) / 2
    return Volume(np.zeros(shape, np.float32), affine, modality)


def world(volume: Volume) -> np.ndarray:
    """Centres of the voxels, (I, J, K, 3)."""
    index = np.stack(np.indices(volume.shape), axis=-1)
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def ellipsoid(volume: Volume, half: np.ndarray, centre: np.ndarray, turn: np.ndarray) -> np.ndarray:
    return ((((world(volume) - centre) @ turn) / half) ** 2).sum(axis=-1) <= 1


def box(volume: Volume, half: np.ndarray, centre: np.ndarray, turn: np.ndarray) -> np.ndarray:
    return (np.abs((world(volume) - centre) @ turn) <= half).all(axis=-1)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ORDERS)
def test_ellipsoids_and_spheres_have_their_diameters_and_volumes(grid: str, order: tuple[int, int, int]) -> None:
    volume = scan(GRIDS[grid])
    voxel = max(volume.spacing)
    for half in (np.array([22.0, 15, 12])[list(order)], np.full(3, 16.0)):
        (lesion,) = find_lesions(ellipsoid(volume, half, np.array([0.3, -0.2, 0.4]), np.eye(3)), volume)
        assert lesion.diameter_mm == pytest.approx(2 * half.max(), abs=voxel)
        assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * half.prod() / 1000, rel=0.02)
        assert lesion.centre_mm == pytest.approx((0.3, -0.2, 0.4), abs=0.2)
        assert not lesion.at_edge
        if grid != "oblique":  # its slices cut the ellipsoid at an angle
            assert lesion.long_axis_mm == pytest.approx(2 * half[:2].max(), abs=voxel)
            assert lesion.short_axis_mm == pytest.approx(2 * half[:2].min(), abs=voxel)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("turned", [False, True])
def test_rods_have_their_length(grid: str, axis: int, turned: bool) -> None:
    volume = scan(GRIDS[grid])
    half = np.full(3, 4.3)
    half[axis] = 25.2
    turn = rotation(0.5, 0.3, -0.7) if turned else np.eye(3)
    (lesion,) = find_lesions(box(volume, half, np.array([0.3, 0.1, -0.2]), turn), volume)
    assert lesion.diameter_mm == pytest.approx(2 * np.linalg.norm(half), abs=max(volume.spacing))
    assert lesion.long_axis_mm <= lesion.diameter_mm
    assert lesion.short_axis_mm <= lesion.long_axis_mm


def test_axes_of_an_oblique_rod_in_its_slice() -> None:
    """Long and short axis of an ellipse that lies askew in the slices."""
    volume = scan(np.diag([0.7, 0.7, 4.0]))
    for angle in np.linspace(0, np.pi, 7):
        turn = rotation(0, 0, angle)
        (lesion,) = find_lesions(ellipsoid(volume, np.array([20.0, 8, 9]), np.array([0, 0, 2.0]), turn), volume)
        assert lesion.long_axis_mm == pytest.approx(40, abs=0.7 + 40 * 0.03)
        assert lesion.short_axis_mm == pytest.approx(16, abs=0.7 + 16 * 0.03)


def test_one_voxel_and_a_row_of_voxels_have_their_own_size() -> None:
    volume = Volume(np.zeros((9, 9, 9), np.float32), np.diag([2.0, 1, 3, 1]))
    mask = np.zeros(volume.shape, bool)
    mask[4, 4, 4] = True
    (one,) = find_lesions(mask, volume)
    assert (one.long_axis_mm, one.short_axis_mm, one.diameter_mm) == (2, 1, 3)
    assert (one.voxels, one.volume_ml, one.axial_slice, one.slices) == (1, 0.006, 4, (4, 4))
    mask[2:7, 4, 4] = True
    (row,) = find_lesions(mask, volume)
    assert (row.long_axis_mm, row.short_axis_mm, row.diameter_mm) == (10, 1, 10)


def test_every_pair_of_voxels_by_brute_force() -> None:
    """Random lumps: long axis and diameter are those over all pairs of opposite faces."""
    random = np.random.default_rng(3)
    affine = np.eye(4)
    affine[:3, :3] = GRIDS["oblique"]
    for _ in range(20):
        volume = Volume(np.zeros((6, 7, 4), np.float32), affine)
        mask = random.random(volume.shape) < 0.55
        faces = np.concatenate([each * np.eye(3)[axis] / 2 for each in (-1, 1) for axis in range(3)]).reshape(6, 3)
        for lesion, numbers in [(each, label_lesions(mask, volume)[1]) for each in find_lesions(mask, volume)]:
            centres = np.argwhere(numbers == lesion.number)
            points = ((centres[:, None] + faces).reshape(-1, 3)) @ affine[:3, :3].T
            assert lesion.diameter_mm == pytest.approx(_furthest(points), rel=1e-5)
            flat = faces[np.abs(faces[:, 2]) == 0]
            lengths = {
                k: _furthest((centres[centres[:, 2] == k][:, None] + flat).reshape(-1, 3) @ affine[:3, :3].T)
                for k in np.unique(centres[:, 2])
            }
            assert lesion.long_axis_mm == pytest.approx(max(lengths.values()), rel=1e-5)
            assert lengths[lesion.axial_slice] == pytest.approx(max(lengths.values()), rel=1e-5)


def _furthest(points: np.ndarray) -> float:
    return float(np.sqrt(((points[:, None] - points) ** 2).sum(axis=-1).max()))


def test_numbers_go_by_size_and_then_by_place() -> None:
    volume = Volume(np.zeros((20, 20, 20), np.float32), np.eye(4))
    mask = np.zeros(volume.shape, bool)
    mask[2:4, 2, 2] = mask[2:4, 2, 12] = mask[12:14, 2, 12] = mask[2:4, 15, 12] = True
    mask[10:14, 10, 5] = True
    lesions, numbers = label_lesions(mask, volume)
    assert [each.number for each in lesions] == [1, 2, 3, 4, 5]
    assert [each.voxels for each in lesions] == [4, 2, 2, 2, 2]
    assert numbers[10, 10, 5] == 1
    # Head first, then the front, then the patient's right: RAS+ coordinates fall.
    assert [numbers[2, 15, 12], numbers[12, 2, 12], numbers[2, 2, 12], numbers[2, 2, 2]] == [2, 3, 4, 5]
    turned = Volume(volume.array, volume.affine).reoriented("LPI")
    flipped = mask[::-1, ::-1, ::-1]
    assert [each.centre_mm for each in find_lesions(flipped, turned)] == [each.centre_mm for each in lesions]


def test_touching_by_a_corner_is_one_lesion_unless_asked_otherwise() -> None:
    volume = Volume(np.zeros((4, 4, 4), np.float32), np.eye(4))
    mask = np.zeros(volume.shape, bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert [len(find_lesions(mask, volume, connectivity=each)) for each in (26, 18, 6)] == [1, 2, 2]


def test_intensities_confidence_and_entropy_are_those_of_the_lesion() -> None:
    random = np.random.default_rng(0)
    array = random.normal(40, 20, (12, 12, 12)).astype(np.float32)
    mask = np.zeros(array.shape, bool)
    mask[1:4, 1:5, 1:3] = True
    mask[8:10, 8:10, 8:10] = True
    probability = random.integers(0, 256, array.shape, np.uint8)
    entropy = random.random(array.shape)
    first, second = find_lesions(mask, Volume(array, np.eye(4), "CT"), probability=probability, entropy=entropy)
    for lesion, part in ((first, np.s_[1:4, 1:5, 1:3]), (second, np.s_[8:10, 8:10, 8:10])):
        values = array[part].astype(float)
        expected = (values.mean(), values.std(), values.min(), values.max())
        assert (lesion.mean_hu, lesion.sd_hu, lesion.min_hu, lesion.max_hu) == pytest.approx(expected, rel=1e-5)
        assert lesion.confidence == pytest.approx(probability[part].mean() / 255, rel=1e-5)
        assert lesion.entropy == pytest.approx(entropy[part].mean(), rel=1e-5)
    (magnetic, *_) = find_lesions(mask, Volume(array, np.eye(4), "MR"))
    assert (magnetic.mean_hu, magnetic.sd_hu, magnetic.min_hu, magnetic.max_hu) == (None,) * 4
    assert (magnetic.confidence, magnetic.entropy) == (None, None)


def test_a_lesion_over_the_edge_says_so_and_nothing_is_nothing() -> None:
    volume = scan(np.eye(3), 30)
    mask = ellipsoid(volume, np.full(3, 8.0), np.array([14.0, 0, 0]), np.eye(3))
    (lesion,) = find_lesions(mask, volume)
    assert lesion.at_edge
    assert lesion.voxels == mask.sum()
    assert find_lesions(np.zeros_like(mask), volume) == []
    (whole,) = find_lesions(np.ones_like(mask), volume)
    assert whole.diameter_mm == pytest.approx(np.sqrt(30**2 + 29**2 + 29**2))


def test_limits_leave_lesions_out_before_they_are_numbered() -> None:
    volume = Volume(np.zeros((30, 10, 10), np.float32), np.eye(4))
    mask = np.zeros(volume.shape, bool)
    mask[1, 1, 1] = True
    mask[4:8, 1, 1] = True
    mask[12:20, 1:3, 1] = True
    assert [each.voxels for each in find_lesions(mask, volume, minimum_ml=0.004)] == [16, 4]
    assert [each.voxels for each in find_lesions(mask, volume, minimum_mm=5)] == [16]
    small, numbers = label_lesions(mask, volume, maximum_mm=5)
    assert [(each.number, each.voxels) for each in small] == [(1, 4), (2, 1)]
    assert numbers[12, 1, 1] == 0
    assert numbers[4, 1, 1] == 1
    with pytest.raises(ConfigError, match="minimum_mm"):
        find_lesions(mask, volume, minimum_mm=-1)
    with pytest.raises(ConfigError, match="neighbours"):
        find_lesions(mask, volume, connectivity=8)
    with pytest.raises(VolumeError, match="fit"):
        find_lesions(mask[1:], volume)
    with pytest.raises(VolumeError, match="no size"):
        find_lesions(mask, replace(volume, in_mm=False))


def test_the_plane_is_axial_unless_slices_are_thick_along_another_axis() -> None:
    array = np.zeros((5, 6, 7), np.float32)
    assert acquisition_axis(Volume(array, np.diag([0.9, 0.9, 0.8, 1]))) == 2
    assert acquisition_axis(Volume(array, np.diag([0.9, 5.0, 0.9, 1]))) == 1
    turned = Volume(array, np.diag([1.0, 1, 1, 1])[[2, 0, 1, 3]])  # the first axis runs from foot to head
    assert acquisition_axis(turned) == [axis for axis in range(3) if turned.axis_codes[axis] in "SI"][0]
    mask = np.zeros(array.shape, bool)
    mask[1:4, 3, 2:4] = True
    (lesion,) = find_lesions(mask, Volume(array, np.diag([0.9, 5.0, 0.9, 1])))
    assert (lesion.plane, lesion.axial_slice, lesion.slices) == ("coronal", 3, (3, 3))


@pytest.mark.slow
def test_ten_thousand_lesions_are_quick() -> None:
    random = np.random.default_rng(1)
    volume = Volume(np.zeros((256, 256, 120), np.float32), np.diag([0.7, 0.7, 1.2, 1]), "CT")
    mask = np.zeros(volume.shape, bool)
    corners = np.argwhere(np.ones([size // 9 for size in volume.shape])) * 9
    for place in random.permutation(corners)[:10_000]:
        lump = random.random(random.integers(1, 9, 3)) < 0.8
        lump[0, 0, 0] = True
        lump = label(lump, np.ones((3, 3, 3)))[0] == 1
        mask[tuple(slice(a, a + n) for a, n in zip(place, lump.shape, strict=True))] = lump
    started = time.process_time()
    lesions = find_lesions(mask, volume, probability=mask.astype(np.uint8) * 200)
    assert time.process_time() - started < 10
    assert len(lesions) == 10_000
    assert sum(each.voxels for each in lesions) == mask.sum()


def test_values_go_into_json_and_tracking_uids_repeat() -> None:
    volume = Volume(np.zeros((5, 5, 5), np.float32), np.eye(4), "CT")
    mask = np.zeros(volume.shape, bool)
    mask[1:3, 2, 2] = True
    (lesion,) = find_lesions(mask, volume)
    assert json.loads(json.dumps(lesion.as_dict())) == lesion.as_dict()
    assert tracking_uid("1.2.3", "liver tumour", 1) == tracking_uid("1.2.3", "liver tumour", 1)
    uids = {tracking_uid(scan, name, number) for scan in ("1", "2") for name in ("a", "b") for number in (1, 2)}
    assert len(uids) == 8
    assert all(len(uid) <= 64 for uid in uids)
