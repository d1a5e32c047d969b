"""Annotations in image files: label maps, overlapping layers, 3D Slicer; and the names that users give them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from boltzformer_monai.errors import DatasetError, VolumeError
from boltzformer_monai.io.read import read_volume, write_label_map
from boltzformer_monai.io.segmentation import Segmentation, read_segmentation
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.slicing.cases import LabelFile
from tests.io.cases import ORIENTATIONS, TILT, make_volume

IMAGE = make_volume()
LABEL = np.random.default_rng(8).integers(0, 4, IMAGE.shape).astype(np.uint8)
LAYERS = np.random.default_rng(9).random((*IMAGE.shape, 3)) < 0.4


def refusal(path: Path, image: Volume = IMAGE) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_segmentation(path, image)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def write_nrrd(path: Path, array: np.ndarray, affine: np.ndarray, fields: Mapping[str, str] | None = None) -> Path:
    """Write (I, J, K) or, as several numbers per voxel, (I, J, K, S)."""
    image = SimpleITK.GetImageFromArray(
        np.ascontiguousarray(np.moveaxis(array, (0, 2), (2, 0))), isVector=array.ndim > 3
    )
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for key, text in (fields or {}).items():
        image.SetMetaData(key, text)
    SimpleITK.WriteImage(image, str(path), True)
    return path


def segment(index: int, name: str, value: int, layer: int = 0) -> dict[str, str]:
    fields = {"Name": name, "LabelValue": str(value), "Layer": str(layer), "ID": f"Segment_{index}"}
    return {f"Segment{index}_{key}": text for key, text in fields.items()}


def voxels(drawn: Segmentation, text: str) -> np.ndarray:
    return np.isin(drawn.volume.array, [int(value) for value in text.split("+")])


def moved(affine: np.ndarray, corner: tuple[float, float, float]) -> np.ndarray:
    shifted = affine.copy()
    shifted[:3, 3] = (affine @ (*corner, 1))[:3]
    return shifted


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_label_maps_in_any_orientation(tmp_path: Path, codes: str, ending: str) -> None:
    image = make_volume(tilt=TILT)
    stored = Volume(LABEL, image.affine).reoriented(codes)
    write_label_map(stored.array, stored, tmp_path / f"label.{ending}")
    drawn = read_segmentation(tmp_path / f"label.{ending}", image)
    assert np.array_equal(drawn.volume.array, LABEL)
    assert np.array_equal(drawn.volume.affine, image.affine)
    assert drawn.names is None
    assert drawn.segments is None


@pytest.mark.parametrize(("name", "write"), [("layers.nii.gz", write_nifti), ("layers.nrrd", write_nrrd)])
def test_layers_of_overlapping_segments(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    flipped = Volume(LABEL, IMAGE.affine).reoriented("PIR")
    layers = np.stack([Volume(LAYERS[..., s], IMAGE.affine).reoriented("PIR").array for s in range(3)], axis=-1)
    path = write(tmp_path / name, layers.astype(np.uint8) * 255, flipped.affine)
    drawn = read_segmentation(path, IMAGE)
    assert drawn.names is None
    assert drawn.segments is not None
    for index in range(3):
        assert np.array_equal(voxels(drawn, drawn.segments[str(index + 1)]), LAYERS[..., index])
    assert drawn.volume.array.dtype == np.uint8


def test_five_axes_as_itk_writes_vectors(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "layers.nii", LAYERS[:, :, :, None].astype(np.float32), IMAGE.affine)
    drawn = read_segmentation(path, IMAGE)
    assert drawn.segments is not None
    assert np.array_equal(voxels(drawn, drawn.segments["3"]), LAYERS[..., 2])
    path = write_nifti(tmp_path / "more.nii", np.zeros((*IMAGE.shape, 2, 2), np.uint8), IMAGE.affine)
    assert refusal(path).reason == "dimensions"


def test_names_of_the_user_are_translated(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "layers.nii", LAYERS.astype(np.uint8), IMAGE.affine)
    drawn = LabelFile(path, {"2": "vessel", "1+3": "organ", " 7": "not there"}).draw_on(IMAGE)
    assert drawn.names is not None
    by_name = {name: voxels(drawn, text) for text, name in drawn.names.items()}
    assert np.array_equal(by_name["vessel"], LAYERS[..., 1])
    assert np.array_equal(by_name["organ"], LAYERS[..., 0] | LAYERS[..., 2])
    assert not by_name["not there"].any()
    assert pickle.loads(pickle.dumps(drawn)).names == drawn.names
    with pytest.raises(DatasetError, match="same voxels"):
        drawn.named({"1+2": "a", "2+1": "b"})
    with pytest.raises(DatasetError, match="no segment number"):
        drawn.named({"liver": "a"})
    plain = read_segmentation(write_nifti(tmp_path / "label.nii", LABEL, IMAGE.affine), IMAGE)
    assert plain.named({"2": "spleen"}).names == {"2": "spleen"}
    assert plain.named({"2": "spleen"}).volume is plain.volume


def test_slicer_segments_have_names_and_numbers(tmp_path: Path) -> None:
    fields = segment(0, "liver", 3) | segment(1, "spleen", 1) | segment(2, "tumor", 2)
    drawn = read_segmentation(write_nrrd(tmp_path / "a.seg.nrrd", LABEL, IMAGE.affine, fields), IMAGE)
    assert np.array_equal(drawn.volume.array, LABEL)
    assert drawn.names == {"3": "liver", "1": "spleen", "2": "tumor"}
    assert drawn.named({"3": "hepar"}).names == {"3": "hepar"}
    layers = np.stack([LABEL, LABEL > 1], axis=-1).astype(np.uint8)
    fields |= segment(3, "both", 1, layer=1)
    drawn = read_segmentation(write_nrrd(tmp_path / "b.seg.nrrd", layers, IMAGE.affine, fields), IMAGE)
    assert drawn.names is not None
    by_name = {name: voxels(drawn, text) for text, name in drawn.names.items()}
    assert list(drawn.segments or {}) == ["1", "2", "3", "4"]  # values repeat, so the order counts
    for name, expected in (("liver", LABEL == 3), ("spleen", LABEL == 1), ("tumor", LABEL == 2), ("both", LABEL > 1)):
        assert np.array_equal(by_name[name], expected)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "IRP"])
def test_a_cropped_slicer_file_is_put_in_its_place(tmp_path: Path, codes: str) -> None:
    crop = Volume(LABEL[1:, :3, 2:4], moved(IMAGE.affine, (1, 0, 2))).reoriented(codes)
    path = write_nrrd(tmp_path / "a.seg.nrrd", crop.array, crop.affine, segment(0, "a", 1) | segment(1, "b", 2))
    drawn = read_segmentation(path, IMAGE)
    expected = np.zeros_like(LABEL)
    expected[1:, :3, 2:4] = LABEL[1:, :3, 2:4]
    expected[expected == 3] = 0  # a value without a segment
    assert np.array_equal(drawn.volume.array, expected)
    plain = write_nrrd(tmp_path / "a.nrrd", crop.array, crop.affine)
    assert refusal(plain).reason == "grid"  # only Slicer crops


def test_slicer_files_may_reach_beyond_the_image_with_nothing_in_them(tmp_path: Path) -> None:
    larger = np.zeros((5, 6, 7), np.uint8)
    larger[1:4, 1:5, 1:6] = LABEL > 0
    affine = moved(IMAGE.affine, (-1, -1, -1))
    path = write_nrrd(tmp_path / "a.seg.nrrd", larger, affine, segment(0, "a", 1))
    assert np.array_equal(read_segmentation(path, IMAGE).volume.array, LABEL > 0)
    larger[4, 5, 6] = 1
    write_nrrd(path, larger, affine, segment(0, "a", 1))
    assert "outside the image" in str(refusal(path))
    far = write_nrrd(tmp_path / "b.seg.nrrd", larger, moved(IMAGE.affine, (40, 0, 0)), segment(0, "a", 1))
    assert refusal(far).reason == "grid"


def test_other_grids_are_refused(tmp_path: Path) -> None:
    named = segment(0, "a", 1) | segment(1, "b", 2) | segment(2, "c", 3)
    for name, fields in (("a.nrrd", {}), ("a.seg.nrrd", named)):
        for affine in (
            moved(IMAGE.affine, (0.11, 0, 0)),  # of a voxel
            moved(IMAGE.affine, (0.5, 0, 0)),
            IMAGE.affine @ np.diag([2, 2, 1, 1]),
            make_volume(tilt=TILT).affine,
        ):
            assert refusal(write_nrrd(tmp_path / name, LABEL, affine, fields)).reason == "grid"


@pytest.mark.parametrize(
    "fields",
    [
        segment(0, "a", 1) | segment(1, "b", 1),
        segment(0, "a", 0),
        segment(0, "a", 1) | {"Segment0_LabelValue": "one"},
        segment(0, "a", 1, layer=1),
        segment(0, "a", 1, layer=-1),
    ],
)
def test_contradicting_slicer_headers_are_refused(tmp_path: Path, fields: dict[str, str]) -> None:
    assert refusal(write_nrrd(tmp_path / "a.seg.nrrd", LABEL, IMAGE.affine, fields)).reason == "labels"


@pytest.mark.parametrize("lacking", [("Layer",), ("Layer", "Name")])
def test_slicer_files_that_state_no_layer(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    named = segment(0, "liver", 2) | segment(1, "vessel", 1) | segment(2, "cyst", 3)
    fields = {key: text for key, text in named.items() if key.partition("_")[2] not in lacking}
    drawn = read_segmentation(write_nrrd(tmp_path / "one.seg.nrrd", LABEL, IMAGE.affine, fields), IMAGE)
    assert np.array_equal(drawn.volume.array, LABEL)
    assert drawn.names == (None if "Name" in lacking else {"1": "vessel", "2": "liver", "3": "cyst"})
    # Older still: a binary layer for each segment, in their order, with no LabelValue either.
    layers = np.stack([LABEL == 2, LABEL == 1, LABEL == 3], axis=-1).astype(np.uint8)
    for without in (lacking, (*lacking, "LabelValue")):
        fields = {key: text for key, text in named.items() if key.partition("_")[2] not in without}
        fields = {key: "1" if key.endswith("LabelValue") else text for key, text in fields.items()}
        drawn = read_segmentation(write_nrrd(tmp_path / "three.seg.nrrd", layers, IMAGE.affine, fields), IMAGE)
        for number, mask in enumerate(np.moveaxis(layers, 3, 0), 1):
            assert np.array_equal(voxels(drawn, drawn.segments[str(number)]), mask == 1)
    two = write_nrrd(tmp_path / "two.seg.nrrd", layers[..., :2], IMAGE.affine, fields)
    if "Name" not in lacking:
        assert "lists 3 segments, not all of them in its 2 layers and does not say in which" in str(refusal(two))


@pytest.mark.parametrize("name", ["plain.nii.gz", "layers.nii", "crop.seg.nrrd"])
def test_a_near_miss_is_taken_and_told(tmp_path: Path, name: str) -> None:
    affine = moved(IMAGE.affine, (0.01, 0, 0))
    path = tmp_path / name
    if name.startswith("crop"):
        write_nrrd(path, LABEL[1:], moved(affine, (1, 0, 0)), segment(0, "a", 1) | segment(1, "b", 2))
    else:
        write_nifti(
            path, LABEL if name.startswith("plain") else np.stack([LABEL == 1, LABEL == 2], -1).astype(np.uint8), affine
        )
    drawn = read_segmentation(path, IMAGE)
    assert [(caveat.kind, "0.007 mm (1 % of a voxel)" in caveat.text) for caveat in drawn.volume.caveats] == [
        ("grid", True)
    ]
    assert read_segmentation(path, IMAGE, tolerance=0.011).volume.array.any()
    with pytest.raises(VolumeError, match="0.007 mm"):
        read_segmentation(path, IMAGE, tolerance=0.009)


def test_what_is_no_annotation_is_refused(tmp_path: Path) -> None:
    assert refusal(write_nifti(tmp_path / "scan.nii", LABEL + np.float32(0.5), IMAGE.affine)).reason == "labels"
    frames = np.stack([LABEL] * 3, axis=-1)
    assert "several values" in str(refusal(write_nifti(tmp_path / "frames.nii", frames, IMAGE.affine)))
    assert "several values" in str(refusal(write_nrrd(tmp_path / "rgb.nrrd", frames, IMAGE.affine)))
    negative = write_nifti(tmp_path / "negative.nii", LABEL.astype(np.int16) - 1, IMAGE.affine)
    assert refusal(negative).reason == "labels"
    (tmp_path / "notes.txt").write_text("none")
    assert refusal(tmp_path / "notes.txt").reason == "unsupported format"
    assert refusal(tmp_path / "nowhere.nii").reason == "missing"
    (tmp_path / "empty").mkdir()
    assert "exactly one" in str(refusal(tmp_path / "empty"))


def test_layers_without_a_patient_space_are_refused(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "layers.nrrd", LAYERS.astype(np.uint8), IMAGE.affine)
    content = path.read_bytes()
    assert content.count(b"space: left-posterior-superior\n") == 1
    path.write_bytes(content.replace(b"space: left-posterior-superior\n", b"space dimension: 3\n"))
    assert refusal(path).reason == "no orientation"


def test_real_slicer_files(shared_data: Path) -> None:
    folder = shared_data / "slicerio"
    image = read_volume(folder / "CTChest4.nrrd")
    simple = read_segmentation(folder / "Segmentation.seg.nrrd", image)
    overlapping = read_segmentation(folder / "SegmentationOverlapping.seg.nrrd", image)
    stored = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "SegmentationOverlapping.seg.nrrd")))
    stored = stored.transpose(2, 1, 0, 3)
    assert simple.names is not None
    assert overlapping.names is not None
    assert len(overlapping.names) == 8
    texts = {name: text for text, name in overlapping.names.items()}
    for value, name in simple.names.items():
        assert np.array_equal(voxels(simple, value), stored[..., 0] == int(value))
        assert np.array_equal(voxels(overlapping, texts[name]), stored[..., 0] == int(value))
    assert np.array_equal(voxels(overlapping, texts["overlapping sphere"]), stored[..., 1] == 1)
    # the lungs lie on their own sides: x increases towards the right
    centre = {}
    for side in ("right lung", "left lung"):
        voxel = np.argwhere(voxels(overlapping, texts[side])).mean(axis=0)
        centre[side] = (image.affine @ (*voxel, 1))[0]
    assert centre["left lung"] < 0 < centre["right lung"]
