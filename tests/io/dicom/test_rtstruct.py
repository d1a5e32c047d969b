"""RTSTRUCT: voxels whose centres lie inside the contours, in every orientation, or a refusal that names the ROI."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.contours import fill_contours
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.segmentation import read_segmentation
from boltzformer_monai.io.volume import Volume
from tests.io.cases import ORIENTATIONS, TILT, make_volume
from tests.io.dicom_objects import FRAME_OF_REFERENCE, box_outline, voxel_outlines, write_rtstruct

IMAGE = replace(make_volume(), frame_of_reference=FRAME_OF_REFERENCE)
LABEL = np.random.default_rng(6).integers(0, 3, IMAGE.shape).astype(np.uint8)


def refusal(path: Path, image: Volume = IMAGE) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_segmentation(path, image)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def outlines(affine: np.ndarray, *, across: int = 2) -> dict[str, list[np.ndarray]]:
    return {name: voxel_outlines(value == LABEL, affine, across=across) for value, name in ((1, "GTV"), (2, "Liver"))}


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("tilt", [None, TILT], ids=["straight", "oblique"])
def test_axial_contours_on_an_image_in_any_orientation(tmp_path: Path, codes: str, tilt: np.ndarray | None) -> None:
    straight = Volume(LABEL, make_volume(tilt=tilt).affine)
    path = write_rtstruct(tmp_path / "rt.dcm", outlines(straight.affine))
    stored = straight.reoriented(codes)
    drawn = read_segmentation(path, replace(stored, frame_of_reference=FRAME_OF_REFERENCE))
    assert np.array_equal(drawn.volume.array, stored.array)
    assert np.array_equal(drawn.volume.affine, stored.affine)
    assert drawn.names == {"1": "GTV", "2": "Liver"}


@pytest.mark.parametrize("across", [0, 1])
def test_sagittal_and_coronal_contours(tmp_path: Path, across: int) -> None:
    path = write_rtstruct(tmp_path / "rt.dcm", outlines(IMAGE.affine, across=across), kind="CLOSEDPLANAR_XOR")
    assert np.array_equal(read_segmentation(path, IMAGE).volume.array, LABEL)


def test_holes_islands_and_overlaps(tmp_path: Path) -> None:
    image = Volume(np.zeros((9, 9, 2), np.float32), IMAGE.affine, frame_of_reference=FRAME_OF_REFERENCE)

    def box(low: float, high: float) -> np.ndarray:
        return box_outline((low, low), (high, high), image.affine, across=2, position=1)

    rois = {"ring": [box(0.5, 7.5), box(2.5, 5.5), box(3.5, 4.5)], "dot": [box(3.5, 5.5)]}
    drawn = read_segmentation(write_rtstruct(tmp_path / "rt.dcm", rois), image)
    ring, dot = np.zeros((2, 9, 9, 2), bool)
    ring[1:8, 1:8, 1] = True
    ring[3:6, 3:6, 1] = False
    ring[4, 4, 1] = True
    dot[4:6, 4:6, 1] = True
    assert drawn.names == {"1+3": "ring", "2+3": "dot"}
    assert np.array_equal(np.isin(drawn.volume.array, (1, 3)), ring)
    assert np.array_equal(np.isin(drawn.volume.array, (2, 3)), dot)


def test_filling_agrees_with_matplotlib_on_odd_polygons() -> None:
    from matplotlib.path import Path as Polygon

    generator = np.random.default_rng(0)
    shape = (23, 17)
    centres = np.argwhere(np.ones(shape))
    for _ in range(50):
        corners = generator.integers(3, 12, generator.integers(1, 4))
        contours = [generator.uniform(-6, 28, (count, 2)).round(3) for count in corners]
        inside = sum(Polygon(contour).contains_points(centres).astype(int) for contour in contours) % 2
        assert np.array_equal(fill_contours(contours, shape), inside.reshape(shape).astype(bool))


def test_areas_that_share_an_edge_through_centres_share_no_voxel() -> None:
    left = np.array([(1.0, 1.0), (1.0, 4.0), (5.0, 4.0), (5.0, 1.0)])
    right = left + (0, 3)
    noise = np.random.default_rng(1).uniform(-4e-4, 4e-4, (2, 4, 2))
    filled = [fill_contours([contour], (8, 9)).astype(int) for contour in (left + noise[0], right + noise[1])]
    expected = np.zeros((8, 9))
    expected[1:5, 1:7] = 1
    assert np.array_equal(sum(filled), expected)


def test_points_open_contours_and_empty_regions_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rois = outlines(IMAGE.affine) | {"marker": [np.zeros((1, 3))], "Nothing": []}
    with caplog.at_level(logging.WARNING, "boltzformer_monai"):
        drawn = read_segmentation(write_rtstruct(tmp_path / "rt.dcm", rois), IMAGE)
    assert np.array_equal(drawn.volume.array, LABEL)
    assert drawn.names == {"1": "GTV", "2": "Liver", "3": "marker", "4": "Nothing"}
    assert '"marker": 1 points or open contours' in caplog.text
    assert 'nothing is drawn, for "marker", "Nothing"' in caplog.text
    path = write_rtstruct(tmp_path / "rt.dcm", {"line": outlines(IMAGE.affine)["GTV"]}, kind="OPEN_PLANAR")
    assert not read_segmentation(path, IMAGE).volume.array.any()


@pytest.mark.parametrize(("off", "fits"), [(0.05, True), (-0.09, True), (0.2, False), (0.5, False), (4.0, False)])
def test_contours_lie_on_slices(tmp_path: Path, off: float, fits: bool) -> None:
    contour = box_outline((0.5, 0.5), (1.5, 2.5), IMAGE.affine, across=2, position=2 + off)
    path = write_rtstruct(tmp_path / "rt.dcm", {"Prostate": [contour]})
    if fits:
        assert np.array_equal(np.argwhere(read_segmentation(path, IMAGE).volume.array), [(1, 1, 2), (1, 2, 2)])
    else:
        error = refusal(path)
        assert error.reason == "grid"
        assert '"Prostate"' in str(error)


def test_oblique_contours_are_refused(tmp_path: Path) -> None:
    contour = box_outline((0.5, 0.5), (1.5, 2.5), IMAGE.affine, across=2, position=2)
    contour[:, 2] += contour[:, 1] - contour[:, 1].mean()  # 45 degrees about the first axis
    assert refusal(write_rtstruct(tmp_path / "rt.dcm", {"Prostate": [contour]})).reason == "grid"


def test_beyond_the_edge_only_with_a_frame_of_reference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    contour = box_outline((-3.5, 0.5), (0.5, 7.5), IMAGE.affine, across=2, position=0)
    path = write_rtstruct(tmp_path / "rt.dcm", {"Couch": [contour]})
    with caplog.at_level(logging.WARNING, "boltzformer_monai"):
        drawn = read_segmentation(path, IMAGE)
    expected = np.zeros(IMAGE.shape)
    expected[0, 1:, 0] = 1
    assert np.array_equal(drawn.volume.array, expected)
    assert '"Couch" reaches beyond the image' in caplog.text
    error = refusal(path, replace(IMAGE, frame_of_reference=""))
    assert error.reason == "grid"
    assert '"Couch"' in str(error)
    whole = box_outline((-0.5, -0.5), (2.5, 3.5), IMAGE.affine, across=2, position=0)  # up to the edge is inside
    path = write_rtstruct(tmp_path / "rt.dcm", {"Body": [whole]})
    assert read_segmentation(path, replace(IMAGE, frame_of_reference="")).volume.array[:, :, 0].all()


def test_frame_of_reference_decides_where_both_are_known(tmp_path: Path) -> None:
    path = write_rtstruct(tmp_path / "rt.dcm", outlines(IMAGE.affine), frame_of_reference="1.2.3.10")
    error = refusal(path)
    assert error.reason == "grid"
    assert "frame of reference" in str(error)
    assert np.array_equal(read_segmentation(path, replace(IMAGE, frame_of_reference="")).volume.array, LABEL)


def lose_contours(dataset: Any) -> None:
    del dataset.ROIContourSequence


def lose_regions(dataset: Any) -> None:
    del dataset.StructureSetROISequence


def lose_one_region(dataset: Any) -> None:
    del dataset.StructureSetROISequence[0]


def lose_all_regions(dataset: Any) -> None:
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []


def spoil_points(dataset: Any) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = list(contour.ContourData)[:-1]


def spoil_count(dataset: Any) -> None:
    dataset.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 5


def spoil_number(dataset: Any) -> None:
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData[2] = "1e999"


@pytest.mark.parametrize(
    "spoil",
    [lose_contours, lose_regions, lose_one_region, lose_all_regions, spoil_points, spoil_count, spoil_number],
)
def test_damaged_objects_are_refused(tmp_path: Path, spoil: Callable[[Any], None]) -> None:
    assert refusal(write_rtstruct(tmp_path / "rt.dcm", outlines(IMAGE.affine), change=spoil)).reason == "damaged"


def test_a_part_that_lacks_is_told_in_words(tmp_path: Path) -> None:
    line = str(refusal(write_rtstruct(tmp_path / "rt.dcm", outlines(IMAGE.affine), change=lose_contours)))
    assert "ends early" in line
    assert "truncated?" in line
    assert "AttributeError" not in line


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom on the values that are cut off
def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole = write_rtstruct(tmp_path / "rt.dcm", outlines(IMAGE.affine)).read_bytes()
    cut = tmp_path / "cut.dcm"
    for size in range(0, len(whole), 31):
        cut.write_bytes(whole[:size])
        refusal(cut)


def test_real_structures(shared_data: Path) -> None:
    folder = shared_data / "rt_utils_mock"
    image = read_volume(folder)
    error = refusal(folder / "rt.dcm", image)
    assert "frame of reference" in str(error)
    assert "exactly one" in str(refusal(folder, image))
    assert "neither SEG nor RTSTRUCT" in str(refusal(folder / "ct_1.dcm", image))
    drawn = read_segmentation(folder / "rt.dcm", replace(image, frame_of_reference=""))
    assert drawn.names == {"1": "ROI-1"}
    # a square of 24 mm with an octagon cut out of it, on the first slice only
    slices = drawn.volume.array.sum(axis=(0, 1))
    assert slices[1] == 0
    assert 0 < slices[0] * image.spacing[0] * image.spacing[1] < 24 * 24
    # these were drawn on a third slice too, at 70 mm, which the series lacks
    assert '"ROI-1" lies on no slice' in str(refusal(folder / "invalid_reference_rt.dcm", image))
    longer = replace(image, array=np.zeros((512, 512, 3), np.float32))
    drawn = read_segmentation(folder / "invalid_reference_rt.dcm", longer)
    assert drawn.names == {str(number): f"ROI-{number}" for number in range(1, 5)}
    assert all((drawn.volume.array == number).any(axis=(0, 1)).all() for number in range(1, 5))


def drawn_on(tmp_path: Path, positions: list[int], **kwargs: Any) -> tuple[np.ndarray, dict[str, str]]:
    image = Volume(np.zeros((9, 9, 9), np.float32), IMAGE.affine, frame_of_reference=FRAME_OF_REFERENCE)
    contours = [box_outline((0.5, 0.5), (5.5, 5.5), image.affine, across=2, position=at) for at in positions]
    volume = read_segmentation(write_rtstruct(tmp_path / "rt.dcm", {"GTV": contours}, **kwargs), image).volume
    return volume.array.sum(axis=(0, 1)), {caveat.kind: caveat.text for caveat in volume.caveats}


def test_slices_between_contours_are_named_and_not_filled(tmp_path: Path) -> None:
    areas, caveats = drawn_on(tmp_path, [1, 3, 5, 7])
    assert areas.tolist() == [0, 25, 0, 25, 0, 25, 0, 25, 0]
    assert list(caveats) == ["slices without contours"]
    assert caveats["slices without contours"].startswith('"GTV": 4 of the 7 slices')
    assert "(every 2 slices)" in caveats["slices without contours"]
    _, caveats = drawn_on(tmp_path, [1, 2, 5])
    assert caveats["slices without contours"].startswith('"GTV": 3 of the 5 slices')
    assert "every" not in caveats["slices without contours"]
    assert drawn_on(tmp_path, [2, 3, 4])[1] == {}


def test_copies_are_told_and_cancel_by_the_standards_rule_only_with_xor(tmp_path: Path) -> None:
    areas, caveats = drawn_on(tmp_path, [1, 2, 2, 3])
    assert areas[1:4].tolist() == [25, 25, 25]
    assert caveats == {"repeated contours": '"GTV": 1 contours are drawn twice and count once'}
    areas, caveats = drawn_on(tmp_path, [1, 2, 2, 3], kind="CLOSEDPLANAR_XOR")
    assert areas[1:4].tolist() == [25, 0, 25]
    assert list(caveats) == ["cancelling contours"]
