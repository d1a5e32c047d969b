"""Oblique grids, in numbers: what we write is opened by all, what others write is accepted, contradictions are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import Volume, read_label_map, read_volume, reorient_label, write_label_map
from boltzformer_monai.io.dicom.files import SliceHeader
from boltzformer_monai.io.dicom.frames import FrameGeometry
from boltzformer_monai.io.dicom.gantry_tilt import settle_tilt
from boltzformer_monai.io.dicom.grid import ordered
from boltzformer_monai.io.grids import GRID_TOLERANCE, distance, right_angled
from boltzformer_monai.io.orientation import LPS_TO_RAS_AFFINE
from boltzformer_monai.io.segmentation import read_segmentation
from tests.sizes import count

CASES = count(120, thorough=1000)


def random_turn(rng: np.random.Generator, *, half: bool) -> np.ndarray:
    """Return a rotation (3, 3); ``half`` one by nearly 180 degrees, about any axis or an axis of the patient."""
    axis = rng.normal(size=3) if rng.random() < 0.5 else np.eye(3)[rng.integers(3)] + 1e-3 * rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    angle = np.pi - rng.choice([-1, 1]) * 10 ** rng.uniform(-6, -1.5) if half else rng.uniform(0, 2 * np.pi)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def random_grid(rng: np.random.Generator, *, half: bool) -> np.ndarray:
    """Return an affine (4, 4) at right angles."""
    affine = np.eye(4)
    affine[:3, :3] = random_turn(rng, half=half) * 10 ** rng.uniform(-0.4, 0.6, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def random_series(rng: np.random.Generator, shape: tuple[int, int, int]) -> Volume:
    """Return the volume of DICOM slices whose headers have few decimals and whose positions lean by a hair."""
    turn, decimals = random_turn(rng, half=rng.random() < 0.5), int(rng.integers(3, 7))
    rows, columns, gap = 10 ** rng.uniform(-0.4, 0.2), 10 ** rng.uniform(-0.4, 0.2), 10 ** rng.uniform(-0.2, 0.7)
    lean = rng.uniform(-3e-4, 3e-4, 2) if rng.random() < 0.5 else (0, 0)
    step = gap * (turn[:, 2] + lean[0] * turn[:, 0] + lean[1] * turn[:, 1])
    origin = rng.uniform(-300, 300, 3)
    slices = []
    for index in range(shape[2]):
        place = FrameGeometry(
            position=tuple(np.round(origin + index * step, 4)),
            cosines=tuple(np.round(turn[:, :2].T.ravel(), decimals)),
            pixel_spacing=(rows, columns),
        )
        path = Path(f"{index:03d}.dcm")
        size = {"rows": shape[1], "columns": shape[0], "frames": 1, "samples": 1}
        texts = {"series": "1", "modality": "MR", "patient_id": "", "frame_of_reference": "1"}
        kind: dict[str, Any] = {"photometric": "MONOCHROME2", "image_type": (), "lookup_table": False}
        slices.append(SliceHeader(path=path, geometry=place, **size, **texts, **kind))
    return Volume(np.zeros(shape, np.float32), ordered(slices)[1], modality="MR")


def as_nibabel(path: Path) -> list[np.ndarray]:
    """Return the affines that nibabel reads, by sform and, where there is one, by qform; an NRRD is not for it."""
    import nibabel

    if path.suffix == ".nrrd":
        return []
    header = nibabel.load(path).header
    assert int(header["sform_code"]) == 1
    return [header.get_best_affine(), *([header.get_qform()] if header["qform_code"] else [])]


def as_itk(path: Path) -> np.ndarray:
    """Return the affine that ITK reads, and with it 3D Slicer and ITK-SNAP."""
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.asarray(LPS_TO_RAS_AFFINE @ affine)


def test_what_is_written_is_opened_by_all_readers_at_the_same_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    moved = []
    for case in range(CASES):
        shape = [(512, 6, 40), (6, 512, 40), (512, 512, 2)][0 if case % 8 else 2] if case % 2 else (6, 512, 40)
        image = random_series(rng, shape)
        assert settle_tilt(image, "refuse").shape == shape  # no gantry tilt
        grid = right_angled(image.affine, shape)
        assert grid is not None
        moved.append(distance(grid, image.affine, shape).voxels)
        array = np.zeros(shape, np.uint8)
        array[tuple(rng.integers(shape))] = 7
        path = tmp_path / f"label{('.nii', '.nii.gz', '.nrrd')[case % 3]}"
        write_label_map(array, image, path)
        back = read_label_map(path)
        for seen in (back.affine, as_itk(path), *as_nibabel(path)[:1]):
            assert distance(seen, grid, shape).voxels < 0.001, case  # single precision
        for seen in as_nibabel(path)[1:]:
            assert distance(seen, grid, shape).voxels <= GRID_TOLERANCE, case  # or it is left out
        for drawn in (reorient_label(back, image).array, read_segmentation(path, image).volume.array):
            assert np.array_equal(drawn, array)
        as_scan = read_volume(path)  # and the written grid is one that we take for a scan's
        assert np.array_equal(reorient_label(back, as_scan).array, array)
    assert 0.01 < max(moved) < 0.5


@pytest.mark.parametrize("writer", ["nibabel", "nibabel, qform only", "SimpleITK"])
def test_headers_of_other_software_are_accepted(tmp_path: Path, writer: str) -> None:
    import nibabel
    import SimpleITK

    rng = np.random.default_rng(2)
    path, array = tmp_path / "scan.nii", np.zeros((512, 512, 2), np.uint8)
    worst = 0.0
    for case in range(CASES // 3):
        affine = random_grid(rng, half=bool(case % 4))
        if writer == "SimpleITK":
            lps, image = LPS_TO_RAS_AFFINE @ affine, SimpleITK.GetImageFromArray(array.T)
            spacing = np.linalg.norm(lps[:3, :3], axis=0)
            image.SetSpacing(spacing.tolist())
            image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
            image.SetOrigin(lps[:3, 3].tolist())
            SimpleITK.WriteImage(image, str(path))
        else:
            header = nibabel.Nifti1Image(array, None)
            header.set_qform(affine, code=1)
            header.set_sform(affine, code=0 if "only" in writer else 1)
            nibabel.save(header, path)
        found = distance(read_volume(path).affine, affine, array.shape).voxels
        worst = max(worst, found * min(np.linalg.norm(affine[:3, :3], axis=0)))
        assert found < (5 if "only" in writer else 0.01), case
    # Without an sform the angle is only known as well as the quaternion says it.
    assert worst < 1e-3 * 512 * 4 if "only" in writer else worst < 0.01


def contradictions(affine: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return qforms that say something else than the sform."""
    shifted, swapped = affine.copy(), affine[:, [1, 0, 2, 3]]
    shifted[:3, 3] += affine[:3, :3] @ np.eye(3)[np.argmin(np.linalg.norm(affine[:3, :3], axis=0))] / 2
    turned, stretched = affine.copy(), affine @ np.diag([1, 1.01, 1, 1])
    away = np.radians(1.0)
    spin = np.array([[np.cos(away), -np.sin(away), 0], [np.sin(away), np.cos(away), 0], [0, 0, 1]])
    turned[:3, :3] = spin @ affine[:3, :3]
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    mirrored[:3, 3] += affine[:3, 0] * 511  # left and right swapped within the same box
    return [shifted, swapped, turned, stretched, mirrored]


def test_contradicting_headers_are_refused(tmp_path: Path) -> None:
    import nibabel

    rng = np.random.default_rng(3)
    path = tmp_path / "scan.nii"
    for case in range(CASES // 20):
        affine = random_grid(rng, half=bool(case % 4))
        for kind, other in enumerate(contradictions(affine, rng)):
            image = nibabel.Nifti1Image(np.zeros((512, 512, 2), np.uint8), None)
            image.set_sform(affine, code=1)
            image.set_qform(other, code=1)
            nibabel.save(image, path)
            with pytest.raises(VolumeError, match="qform and sform") as caught:
                read_volume(path)
            assert caught.value.reason == "conflicting orientation", (case, kind)


def test_a_quaternion_longer_than_one_may_stand_beside_an_sform(tmp_path: Path) -> None:
    import nibabel

    affine = np.eye(4)
    affine[:3, :3] = np.array([[-0.6, 0.8, 0], [0.8, 0.6, 0], [0, 0, -1]]) * (0.8, 0.8, 2)  # by 180 degrees
    image = nibabel.Nifti1Image(np.zeros((64, 64, 5), np.float32), affine)
    for longer, with_sform, accepted in (
        (1 + 1e-6, True, True),
        (1 + 1e-4, True, True),
        (1 + 1e-6, False, False),
        (1.1, True, False),
    ):
        image.set_sform(affine, code=int(with_sform))
        image.set_qform(affine, code=1)
        nibabel.save(image, tmp_path / "scan.nii")
        content = bytearray((tmp_path / "scan.nii").read_bytes())
        content[256:268] = (np.frombuffer(content[256:268], "<f4") * np.float32(longer)).tobytes()  # b, c, d
        (tmp_path / "scan.nii").write_bytes(content)
        if accepted:
            assert np.allclose(read_volume(tmp_path / "scan.nii").affine, affine, atol=1e-6)
        else:
            with pytest.raises(VolumeError, match="quaternion"):
                read_volume(tmp_path / "scan.nii")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_gantry_tilt_stays_and_itk_opens_it_as_nrrd(tmp_path: Path, suffix: str) -> None:
    affine = np.diag([0.7, 0.7, 3, 1])
    affine[1, 2] = 0.9
    image = settle_tilt(Volume(np.zeros((32, 32, 9), np.float32), affine), "keep")
    assert [caveat.kind for caveat in image.caveats] == ["gantry tilt"]
    assert ".nrrd" in image.caveats[0].text
    path = tmp_path / f"label{suffix}"
    write_label_map(np.ones(image.shape, bool), image, path)
    assert distance(read_label_map(path).affine, affine, image.shape).voxels < 1e-4
    if suffix == ".nrrd":
        assert distance(as_itk(path), affine, image.shape).voxels < 1e-4
    else:
        with pytest.raises(RuntimeError, match="orthonormal"):  # better than at another place without a word
            as_itk(path)


def test_a_scan_a_hair_off_right_angles_is_told_and_its_label_goes_back(tmp_path: Path) -> None:
    import nibabel

    affine = np.diag([0.7, 0.7, 0.7, 1])
    affine[0, 1] = 0.7 * 3e-4
    array = np.zeros((400, 400, 3), np.uint8)
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "scan.nii.gz")
    image = read_volume(tmp_path / "scan.nii.gz")
    assert [caveat.kind for caveat in image.caveats] == ["right angles"]
    assert "0.0296 mm (3 % of a voxel)" in image.caveats[0].text
    array[5, 6, 1] = 1
    write_label_map(array, image, tmp_path / "label.nii.gz")
    assert distance(as_itk(tmp_path / "label.nii.gz"), affine, array.shape).voxels < 0.031
    drawn = read_segmentation(tmp_path / "label.nii.gz", image)
    assert np.array_equal(drawn.volume.array, array)
    assert drawn.volume.caveats == ()
    # A label that another program writes with the scan's own sheared affine fits as well.
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "other.nii.gz")
    assert np.array_equal(read_segmentation(tmp_path / "other.nii.gz", image).volume.array, array)
