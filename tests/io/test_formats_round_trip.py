"""From slices to a volume, into a file and back: exact in all orientations and planes, and left stays left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.planes import PLANE_AXES, extract_slices, slice_spacing, slices_to_volume
from boltzformer_monai.io import Volume, read_label_map, read_volume, reorient_label, write_label_map
from tests.io.cases import ORIENTATIONS, TILT, make_volume

OBLIQUE = TILT @ np.array([[1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [0.0, 0.6, 0.8]])  # turned about two axes


def save_image(volume: Volume, path: Path) -> Path:
    """Write a scan with the library that owns the format, not with ours."""
    if path.suffix == ".nii":
        import nibabel

        nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), path)
        return path
    import SimpleITK

    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    image.SetSpacing(volume.spacing)
    image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("tilt", [None, OBLIQUE], ids=["plain", "oblique"])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_image_and_label_go_through_files_and_slices(
    tmp_path: Path, codes: str, tilt: np.ndarray | None, suffix: str
) -> None:
    reference = make_volume(tilt=tilt)
    reference_label = Volume((reference.array.astype(np.int64) % 5).astype(np.uint8), reference.affine)
    other = ORIENTATIONS[(ORIENTATIONS.index(codes) * 7 + 13) % 48]  # the label is stored in another way
    image = read_volume(save_image(reference.reoriented(codes), tmp_path / f"image{suffix}"))
    stored = reference_label.reoriented(other)
    ending = ".nrrd" if suffix == ".nrrd" else ".nii.gz"
    written = tmp_path / f"label{ending}"
    write_label_map(stored.array, stored, written)
    assert "".join(read_label_map(written).axis_codes) == other
    label = reorient_label(read_label_map(written), image)
    assert "".join(image.axis_codes) == codes
    assert label.shape == image.shape
    assert label.array.dtype == np.uint8
    for plane in PLANE_AXES:
        pictures, masks = extract_slices(image, plane), extract_slices(label, plane)
        assert np.array_equal(pictures, extract_slices(reference, plane))  # the storage does not show
        assert np.array_equal(masks, extract_slices(reference_label, plane))
        assert np.array_equal(masks, pictures.astype(np.int64) % 5)
        assert slice_spacing(image, plane) == pytest.approx(slice_spacing(reference, plane), rel=1e-6)
        assert np.array_equal(slices_to_volume(pictures, image, plane), image.array)
        back = slices_to_volume(masks, image, plane)
        write_label_map(back, image, tmp_path / f"back{ending}")
        final = reorient_label(read_label_map(tmp_path / f"back{ending}"), reference)
        assert np.array_equal(final.array, reference_label.array)  # and where it was in the patient


@pytest.fixture(scope="module")
def real(shared_data: Path) -> tuple[Volume, Volume, dict[str, int]]:
    """A DICOM series, its label map on the grid of the series, and the values of the organs."""
    folder = shared_data / "ts_ct_dicom"
    image, label = read_volume(folder / "dicom"), read_label_map(folder / "label.nii.gz")
    assert label.axis_codes != image.axis_codes  # stored flipped
    names = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["labels"]
    return image, reorient_label(label, image), {name: int(value) for value, name in names.items()}


def centres(label: Volume, values: dict[str, int], plane: str) -> dict[str, np.ndarray]:
    """Return the mean (slice, row, column) of each organ in a plane."""
    slices = extract_slices(label, plane)
    found = {name: np.argwhere(slices == value) for name, value in values.items()}
    return {name: voxels.mean(axis=0) for name, voxels in found.items() if len(voxels)}


def test_real_organs_are_on_their_right_side(real: tuple[Volume, Volume, dict[str, int]]) -> None:
    _, label, values = real
    axial = centres(label, values, "axial")
    width = extract_slices(label, "axial").shape[2]
    assert axial["liver"][2] < width / 2 < axial["spleen"][2]  # the patient's right is on the left of the picture
    assert axial["liver"][2] < axial["inferior vena cava"][2] < axial["aorta"][2] < axial["spleen"][2]
    assert axial["stomach"][1] < axial["aorta"][1] < axial["vertebrae T12"][1] < axial["autochthon left"][1]
    coronal = centres(label, values, "coronal")
    assert coronal["liver"][2] < width / 2 < coronal["spleen"][2]
    assert coronal["vertebrae T11"][1] < coronal["vertebrae T12"][1]  # above
    assert coronal["stomach"][0] < coronal["spinal cord"][0]  # slices rise towards the back
    sagittal = centres(label, values, "sagittal")
    assert sagittal["liver"][0] < sagittal["spinal cord"][0] < sagittal["spleen"][0]  # slices rise towards the left
    assert sagittal["vertebrae T11"][1] < sagittal["vertebrae T12"][1]
    assert sagittal["stomach"][2] < sagittal["spinal cord"][2]  # the front is on the left of the picture


def test_real_pairs_of_left_and_right(real: tuple[Volume, Volume, dict[str, int]]) -> None:
    _, label, values = real
    for plane, axis in (("axial", 2), ("coronal", 2), ("sagittal", 0)):
        places = centres(label, values, plane)
        pairs = [(name, name.replace("left", "right")) for name in places if "left" in name]
        pairs = [pair for pair in pairs if pair[1] in places]
        assert len(pairs) >= 7
        for left, right in pairs:
            assert places[right][axis] < places[left][axis], (plane, left)


def test_real_image_and_label_meet_in_every_plane(real: tuple[Volume, Volume, dict[str, int]]) -> None:
    """What is labelled liver has the Hounsfield units of liver, which no flip would leave so; ribs are bone."""
    image, label, values = real
    for plane in PLANE_AXES:
        pictures, masks = extract_slices(image, plane), extract_slices(label, plane)
        liver = pictures[masks == values["liver"]]
        assert 40 < float(np.median(liver)) < 180
        assert float(np.mean((liver > -50) & (liver < 250))) > 0.98
        flipped = pictures[masks[:, :, ::-1] == values["liver"]]
        assert float(np.mean((flipped > -50) & (flipped < 250))) < 0.95  # the check can fail
        assert float(np.median(pictures[masks == values["rib left 9"]])) > 150
