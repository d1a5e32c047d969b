"""DICOM SEG: every voxel where its frame says, in every orientation, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.seg_reader import read_dicom_seg
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.segmentation import read_segmentation
from boltzformer_monai.io.volume import Volume
from tests.io.cases import ORIENTATIONS, TILT, make_volume
from tests.io.dicom_objects import FRAME_OF_REFERENCE, write_seg

IMAGE = replace(make_volume(), frame_of_reference=FRAME_OF_REFERENCE)
LABEL = np.random.default_rng(4).integers(0, 4, IMAGE.shape).astype(np.uint8)
LABEL[:, :, 2] = 0  # a slice without frames
MASKS = {number: number == LABEL for number in (1, 2, 3)}


def refusal(path: Path, image: Volume = IMAGE) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_segmentation(path, image)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("tilt", [None, TILT], ids=["straight", "oblique"])
def test_frames_in_any_orientation(tmp_path: Path, codes: str, tilt: np.ndarray | None) -> None:
    image = replace(make_volume(tilt=tilt), frame_of_reference=FRAME_OF_REFERENCE)
    stored = Volume(LABEL, image.affine).reoriented(codes)
    masks = {number: stored.array == number for number in MASKS}
    drawn = read_segmentation(write_seg(tmp_path / "seg.dcm", masks, stored.affine), image)
    assert np.array_equal(drawn.volume.array, LABEL)
    assert drawn.volume.array.dtype == np.uint8
    assert np.array_equal(drawn.volume.affine, image.affine)
    assert drawn.names == {"1": "part 1", "2": "part 2", "3": "part 3"}


def test_overlapping_segments(tmp_path: Path) -> None:
    masks = {1: LABEL > 0, 5: LABEL > 1}
    drawn = read_segmentation(write_seg(tmp_path / "seg.dcm", masks, IMAGE.affine), IMAGE)
    assert drawn.names == {"1+6": "part 1", "6": "part 5"}
    assert np.array_equal(drawn.volume.array, np.choose(LABEL, [0, 1, 6, 6]))


def test_fractions_count_from_one_half(tmp_path: Path) -> None:
    fractions = np.random.default_rng(1).integers(0, 201, IMAGE.shape).astype(np.uint8)
    fractions[0, 0, :2] = 99, 100
    drawn = read_segmentation(write_seg(tmp_path / "seg.dcm", {1: fractions}, IMAGE.affine, kind="FRACTIONAL"), IMAGE)
    assert np.array_equal(drawn.volume.array, fractions >= 100)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_map_storage(tmp_path: Path, dtype: type[np.unsignedinteger]) -> None:
    path = write_seg(tmp_path / "seg.dcm", {0: LABEL.astype(dtype)}, IMAGE.affine, kind="LABELMAP")
    drawn = read_segmentation(path, IMAGE)
    assert np.array_equal(drawn.volume.array, LABEL)
    assert drawn.names == {"1": "part 1", "2": "part 2", "3": "part 3"}

    def forget(dataset: Any) -> None:
        del dataset.SegmentSequence[1]

    write_seg(path, {0: LABEL.astype(dtype)}, IMAGE.affine, kind="LABELMAP", change=forget)
    assert "does not list the segments [2]" in str(refusal(path))


def test_compressed_frames(tmp_path: Path) -> None:
    def compress(dataset: Any) -> None:
        from pydicom.uid import RLELossless

        dataset.compress(RLELossless)
        assert dataset.file_meta.TransferSyntaxUID.is_compressed

    path = write_seg(tmp_path / "seg.dcm", {0: LABEL}, IMAGE.affine, kind="LABELMAP", change=compress)
    assert np.array_equal(read_segmentation(path, IMAGE).volume.array, LABEL)


def test_names_fall_back_and_say_the_side(tmp_path: Path) -> None:
    import pydicom

    def change(dataset: Any) -> None:
        first, second, third = dataset.SegmentSequence
        del first.SegmentLabel
        second.SegmentLabel, second.SegmentDescription = "", "by hand"
        for segment, side in ((third, "Right"), (first, "Left")):
            modifier = pydicom.Dataset()
            modifier.CodeMeaning = side
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        third.SegmentLabel = "Kidney"

    drawn = read_segmentation(write_seg(tmp_path / "seg.dcm", MASKS, IMAGE.affine, change=change), IMAGE)
    assert drawn.names == {"1": "left type 1", "2": "by hand", "3": "right Kidney"}


def test_a_crop_is_put_in_its_place_and_frames_may_not_leave_the_image(tmp_path: Path) -> None:
    affine = IMAGE.affine.copy()
    affine[:3, 3] = (affine @ (1, 2, 3, 1))[:3]
    path = write_seg(tmp_path / "seg.dcm", {2: np.ones((2, 2, 1), bool)}, affine)
    expected = np.zeros(IMAGE.shape)
    expected[1:, 2:, 3] = 2
    assert np.array_equal(read_segmentation(path, IMAGE).volume.array, expected)
    write_seg(path, {2: np.ones((3, 2, 1), bool)}, affine)
    assert refusal(path).reason == "grid"
    write_seg(path, {2: np.ones((2, 2, 3), bool)}, affine)
    assert "frame 3 lies outside the image" in str(refusal(path))


@pytest.mark.parametrize(
    ("shift", "fits", "fits_unmatched"),
    [
        ((0.0005, 0.0, 0.0), True, True),
        ((0.01, 0.0, 0.0), True, True),  # of 0.7 mm pixels: within what a slice's own position may stray
        ((0.35, 0.0, 0.0), False, False),
        ((0.0, 0.45, 0.0), False, False),
        ((0.0, 0.0, 0.25), True, True),  # of 3 mm slices
        ((0.0, 0.0, 1.5), False, False),
    ],
)
def test_between_the_voxels_is_refused(
    tmp_path: Path, shift: tuple[float, ...], fits: bool, fits_unmatched: bool
) -> None:
    affine = IMAGE.affine.copy()
    affine[:3, 3] += shift
    path = write_seg(tmp_path / "seg.dcm", MASKS, affine)
    for image, expected in ((IMAGE, fits), (replace(IMAGE, frame_of_reference=""), fits_unmatched)):
        if expected:
            assert np.array_equal(read_segmentation(path, image).volume.array, LABEL)
        else:
            assert refusal(path, image).reason == "grid"


def test_other_grids_are_refused(tmp_path: Path) -> None:
    for scale in ((1.4, 1, 1), (2, 2, 1), (1.06, 1, 1)):
        path = write_seg(tmp_path / "seg.dcm", MASKS, IMAGE.affine @ np.diag([*scale, 1.0]))
        assert refusal(path).reason == "grid"
    path = write_seg(tmp_path / "seg.dcm", MASKS, make_volume(tilt=TILT).affine)
    assert refusal(path).reason == "grid"


def test_another_pixel_spacing_is_said(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", MASKS, IMAGE.affine @ np.diag([2, 1.5, 1, 1]))
    text = str(refusal(path))
    assert "frame 1: its voxels measure 1.4 x 1.35 x 3 mm, those of the image 0.7 x 0.9 x 3 mm" in text
    assert "resample it" in text


def test_a_near_miss_is_taken_and_told(tmp_path: Path) -> None:
    affine = IMAGE.affine.copy()
    affine[:3, 3] += (0.0035, 0, 0.03)
    drawn = read_segmentation(write_seg(tmp_path / "seg.dcm", MASKS, affine), IMAGE).volume
    assert np.array_equal(drawn.array, LABEL)
    assert [caveat.kind for caveat in drawn.caveats] == ["grid"]
    assert "0.0302 mm (1 % of a voxel)" in drawn.caveats[0].text


def test_cosines_of_three_decimals_fit_the_image_that_states_them(tmp_path: Path) -> None:
    """A row of 0.577, 0.577, 0.577 is shorter than 1: over 512 pixels by a third of a pixel."""
    row, column = np.array([0.577, 0.577, 0.577]), np.array([0.707, -0.707, 0.0])
    affine = np.eye(4)
    units = [axis / np.linalg.norm(axis) for axis in (row, column)]
    affine[:3, :3] = np.stack([*units, np.cross(*units)], axis=1) * (0.7, 0.7, 2)
    image = Volume(np.zeros((600, 5, 3), np.float32), affine, frame_of_reference=FRAME_OF_REFERENCE)
    mask = np.zeros(image.shape, bool)
    mask[-1, 2, 1] = True

    def rounded(dataset: Any) -> None:
        plane = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        plane.ImageOrientationPatient = [
            f"{sign * v:.3f}" for axis in (row, column) for sign, v in zip((-1, -1, 1), axis, strict=True)
        ]

    path = write_seg(tmp_path / "seg.dcm", {1: mask}, affine, change=rounded)
    drawn = read_segmentation(path, image).volume
    assert np.array_equal(drawn.array != 0, mask)
    assert drawn.caveats == ()


def test_frame_of_reference_decides_where_both_are_known(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", MASKS, IMAGE.affine, frame_of_reference="1.2.3.10")
    error = refusal(path)
    assert error.reason == "grid"
    assert "frame of reference" in str(error)
    assert "1.2.3" not in str(error)
    assert np.array_equal(read_segmentation(path, replace(IMAGE, frame_of_reference="")).volume.array, LABEL)


def lose_groups(dataset: Any) -> None:
    del dataset.PerFrameFunctionalGroupsSequence


def lose_segments(dataset: Any) -> None:
    del dataset.SegmentSequence


def lose_position(dataset: Any) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence


def lose_shared(dataset: Any) -> None:
    del dataset.SharedFunctionalGroupsSequence


def lose_frame(dataset: Any) -> None:
    dataset.NumberOfFrames -= 1


def lose_pixels(dataset: Any) -> None:
    dataset.PixelData = dataset.PixelData[:-4]


def lose_all_pixels(dataset: Any) -> None:
    del dataset.PixelData


def spoil_number(dataset: Any) -> None:
    dataset.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def spoil_type(dataset: Any) -> None:
    dataset.SegmentationType = "SURFACE"


def spoil_rows(dataset: Any) -> None:
    dataset.Rows = 60000


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lose_groups, "damaged"),
        (lose_segments, "damaged"),
        (lose_position, "no geometry"),
        (lose_shared, "no geometry"),
        (lose_frame, "damaged"),
        (lose_pixels, "truncated"),
        (lose_all_pixels, "truncated"),
        (spoil_number, "damaged"),
        (spoil_type, "unsupported format"),
        (spoil_rows, "grid"),
    ],
)
def test_damaged_objects_are_refused(tmp_path: Path, spoil: Callable[[Any], None], reason: str) -> None:
    path = write_seg(tmp_path / "seg.dcm", MASKS, IMAGE.affine, change=spoil)
    assert refusal(path).reason == reason


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom on the values that are cut off
def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole = write_seg(tmp_path / "seg.dcm", MASKS, IMAGE.affine).read_bytes()
    cut = tmp_path / "cut.dcm"
    for size in range(0, len(whole) - 1, 13):
        cut.write_bytes(whole[:size])
        refusal(cut)


def test_real_objects_equal_their_twins(shared_data: Path) -> None:
    image = read_volume(shared_data / "dcmqi" / "ct-3slice")
    drawn = read_segmentation(shared_data / "dcmqi" / "liver.dcm", image)
    twin = reorient_label(read_label_map(shared_data / "dcmqi" / "liver_seg.nrrd"), image)
    assert np.array_equal(drawn.volume.array > 0, twin.array > 0)
    assert drawn.names == {"1": "Liver"}
    small = read_volume(shared_data / "dcmqi" / "23x38x3" / "image")
    drawn = read_segmentation(shared_data / "dcmqi" / "23x38x3" / "seg", small)  # the folder; frames not byte-aligned
    twin = reorient_label(read_label_map(shared_data / "dcmqi" / "23x38x3" / "nrrd" / "label.nrrd"), small)
    assert np.array_equal(drawn.volume.array, twin.array)
    assert refusal(shared_data / "dcmqi" / "liver.dcm", small).reason == "grid"


def test_real_overlaps_have_the_voxels_of_their_frames(shared_data: Path) -> None:
    import pydicom

    path = shared_data / "dcmqi" / "partial_overlaps.dcm"
    image = read_volume(shared_data / "dcmqi" / "ct-3slice")
    flat = read_dicom_seg(path, image)
    dataset = pydicom.dcmread(path)
    counts: dict[int, int] = {}
    for frame, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        position = [float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient]
        k = int(np.rint((position[2] - image.affine[2, 3]) / image.spacing[2]))
        values = [int(value) for value in flat.segments[str(number)].split("+")]
        assert np.array_equal(np.isin(flat.array[:, :, k], values), frame.T.astype(bool))
        counts[number] = counts.get(number, 0) + int(frame.sum())
    for number, count in counts.items():
        assert np.isin(flat.array, [int(value) for value in flat.segments[str(number)].split("+")]).sum() == count
    assert sorted((flat.names or {}).values()) == ["DARK_BLUE", "GREEN", "LIGHT_BLUE", "ORANGE", "PURPLE"]
