"""Volumes: exact reorientation, trustworthy geometry, label maps that come back as they went out."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.io import Volume, read_label_map, read_volume, reorient_label, write_label_map
from tests.io.cases import ORIENTATIONS, TILT, make_volume


def refusal(path: Path, **settings: Any) -> str:
    """Return the one-line message with which a file is refused."""
    with pytest.raises(VolumeError) as caught:
        read_volume(path, **settings)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 3, 1]) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".NII.GZ"])
@pytest.mark.parametrize("codes", ORIENTATIONS[::5])
def test_label_maps_come_back_as_they_went_out(tmp_path: Path, suffix: str, codes: str) -> None:
    image = make_volume(tilt=TILT).reoriented(codes)
    label = np.arange(60).reshape(image.shape) % 7
    path = tmp_path / f"mask{suffix}"
    write_label_map(label, image, path)
    back = read_label_map(path)
    assert back.array.dtype == np.uint8
    assert np.array_equal(back.array, label)
    assert np.allclose(back.affine, image.affine, rtol=0, atol=1e-5)
    assert np.array_equal(reorient_label(back, image).affine, image.affine)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_other_software_sees_the_same_place(tmp_path: Path, suffix: str) -> None:
    import SimpleITK

    image = make_volume(tilt=TILT)
    write_label_map(np.ones(image.shape, bool), image, tmp_path / f"mask{suffix}")
    seen = SimpleITK.ReadImage(str(tmp_path / f"mask{suffix}"))
    lps = np.array(seen.TransformIndexToPhysicalPoint((2, 3, 4)))
    assert np.allclose(lps * (-1, -1, 1), (image.affine @ (2, 3, 4, 1))[:3], atol=1e-4)


def test_large_labels_and_tilted_grids(tmp_path: Path) -> None:
    shear = np.eye(4)
    shear[1, 2] = 0.4  # a gantry tilt
    image = Volume(np.zeros((3, 4, 5), np.float32), shear)
    label = np.full(image.shape, 300)
    for name in ("mask.nii.gz", "mask.nrrd"):
        write_label_map(label, image, tmp_path / name)
        back = read_label_map(tmp_path / name)
        assert back.array.dtype == np.uint16
        assert np.array_equal(back.array, label)
        assert np.allclose(back.affine, shear, atol=1e-6)


def test_what_is_no_mask_is_not_written(tmp_path: Path) -> None:
    image = make_volume()
    whole = np.zeros(image.shape, np.int64)
    for array, name, words in [
        (whole[1:], "a.nii", "does not fit"),
        (whole + 0.5, "a.nii", "integers"),
        (whole - 1, "a.nii", "0 to 65535"),
        (whole + 70000, "a.nii", "0 to 65535"),
        (whole, "a.mha", "endings"),
        (whole, "missing/a.nii.gz", "folder"),
        (whole, "missing/a.nrrd", "folder"),
    ]:
        with pytest.raises(VolumeError, match=words):
            write_label_map(array, image, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_label_values_are_whole_numbers(tmp_path: Path) -> None:
    values = np.zeros((2, 2, 2), np.float32)
    values[0, 0, 0] = 3
    assert read_label_map(save_nifti(tmp_path / "a.nii", values)).array[0, 0, 0] == 3
    for wrong in (0.5, np.nan, np.inf, -1):
        values[0, 0, 0] = wrong
        with pytest.raises(VolumeError, match="whole numbers"):
            read_label_map(save_nifti(tmp_path / "a.nii", values))
    with pytest.raises(VolumeError, match="folder"):
        read_label_map(tmp_path)


@pytest.mark.parametrize(
    ("slope", "intercept", "result"),
    [
        (0, 0, "stored"),
        (0, 5, "stored"),
        (np.nan, np.nan, "stored"),
        (1, 0, "stored"),
        (1.0000001, 0, "stored"),
        (2, 0, "doubled"),
        (0.5, 0, "store them unscaled"),
        (-1, 0, "at least 0"),
        (1, np.nan, "set scl_slope to 1"),
        (np.inf, 0, "set scl_slope to 1"),
    ],
)
def test_scaled_labels(tmp_path: Path, slope: float, intercept: float, result: str) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 6
    path = save_nifti(tmp_path / "a.nii", values)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(content)
    if result in ("stored", "doubled"):
        assert np.array_equal(read_label_map(path).array, values * (2 if result == "doubled" else 1))
    else:
        with pytest.raises(VolumeError, match=result):
            read_label_map(path)


def test_labels_that_nibabel_scaled_into_16_bits(tmp_path: Path) -> None:
    import nibabel

    values = (np.arange(200, dtype=np.float64) % 118).reshape(5, 8, 5)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.int16)
    image.header.set_slope_inter(117 / 65535, 58.5)
    nibabel.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    stored = np.rint((values - 58.5) / (117 / 65535)).clip(-32768, 32767).astype("<i2")
    content[112:120] = np.array([117 / 65535, 58.5], "<f4").tobytes()
    content[352:] = stored.tobytes(order="F")
    (tmp_path / "a.nii").write_bytes(content)
    assert np.array_equal(read_label_map(tmp_path / "a.nii").array, values)


def test_wrong_paths_and_formats(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.nii.gz")
    (tmp_path / "a.txt").write_text("hello")
    assert "unknown format" in refusal(tmp_path / "a.txt")
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"):
        for content in (b"", b"no image", gzip.compress(b"no image")):
            (tmp_path / f"a{suffix}").write_bytes(content)
            assert "cannot be read" in refusal(tmp_path / f"a{suffix}")
    path = save_nifti(tmp_path / "b.nii", np.zeros((2, 2, 2), np.float32))
    assert "series" in refusal(path, series="1.2.3")
    with pytest.raises(ConfigError, match="modality"):
        read_volume(path, modality="X-ray")
    assert read_volume(path, modality="mri").modality == "MR"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    image = Volume(np.zeros((9, 9, 9), np.float32), np.eye(4))
    write_label_map(np.random.default_rng(0).integers(0, 9, image.shape), image, path)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        refusal(path)


def test_frames_and_colours_are_refused(tmp_path: Path) -> None:
    import SimpleITK

    assert "7 frames" in refusal(save_nifti(tmp_path / "a.nii", np.zeros((2, 3, 4, 7), np.float32)))
    assert read_volume(save_nifti(tmp_path / "b.nii", np.zeros((2, 3, 4, 1), np.float32))).shape == (2, 3, 4)
    assert "2-D" in refusal(save_nifti(tmp_path / "c.nii", np.zeros((2, 3), np.float32)))
    colour = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colour" in refusal(save_nifti(tmp_path / "d.nii", colour))
    layers = SimpleITK.GetImageFromArray(np.zeros((4, 3, 2, 5), np.uint8), isVector=True)
    SimpleITK.WriteImage(layers, str(tmp_path / "e.nrrd"))
    assert "5 frames" in refusal(tmp_path / "e.nrrd")
    SimpleITK.WriteImage(SimpleITK.Image([2, 3, 4, 6], SimpleITK.sitkInt16), str(tmp_path / "f.mha"))
    assert "6 frames" in refusal(tmp_path / "f.mha")


def test_a_header_must_say_where_left_is(tmp_path: Path) -> None:
    import nibabel

    array = np.zeros((2, 3, 4), np.float32)
    nibabel.save(nibabel.Nifti1Image(array, None), tmp_path / "a.nii")
    assert "no orientation" in refusal(tmp_path / "a.nii")
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.set_qform(np.diag([-1.0, 1, 1, 1]), code=1)
    nibabel.save(image, tmp_path / "b.nii")
    assert "opposite" in refusal(tmp_path / "b.nii")
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "c.nii")
    assert "micron" in refusal(tmp_path / "c.nii")
    for bad in (np.nan, 0.0):
        affine = np.eye(4)
        affine[1, 1] = bad
        image = nibabel.Nifti1Image(array, np.eye(4))
        image.header["srow_y"] = affine[1]
        nibabel.save(image, tmp_path / "d.nii")
        raw = bytearray((tmp_path / "d.nii").read_bytes())
        raw[296:312] = affine[1].astype("<f4").tobytes()
        (tmp_path / "d.nii").write_bytes(raw)
        assert "affine" in refusal(tmp_path / "d.nii")
    header = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
    (tmp_path / "e.nrrd").write_bytes(header.encode() + b"\n" + bytes(8))
    assert "patient space" in refusal(tmp_path / "e.nrrd")
    header += "space: RAS\nspace directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (0,0,0)\n"
    (tmp_path / "f.nrrd").write_bytes(header.encode() + b"\n" + bytes(8))
    assert read_volume(tmp_path / "f.nrrd").axis_codes == ("R", "A", "S")


def test_voxels_must_be_finite(tmp_path: Path) -> None:
    array = np.zeros((2, 3, 4), np.float64)
    array[0, 0, 0], array[1, 1, 1] = np.nan, 1e300
    assert "2 voxels" in refusal(save_nifti(tmp_path / "a.nii", array))


def test_readers_are_imported_only_when_a_scan_is_read() -> None:
    code = "import sys, boltzformer_monai.io, boltzformer_monai.data.planes; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "boltzformer_monai.io.volume" in modules
    assert not {"SimpleITK", "pydicom", "nibabel", "torch"} & set(modules)


def test_real_abdomen(shared_data: Path) -> None:
    image = read_volume(shared_data / "amos_0018" / "image.nii.gz", modality="CT")
    assert image.shape == (512, 512, 63)
    assert image.array.dtype == np.float32
    assert image.axis_codes == ("L", "A", "S")
    assert image.spacing == pytest.approx((0.846, 0.846, 5), abs=1e-3)
    label = reorient_label(read_label_map(shared_data / "amos_0018" / "label.nii.gz"), image)
    turned = label.reoriented("LPS")
    spleen, liver, aorta = (np.argwhere(turned.array == value).mean(axis=0) for value in (1, 6, 8))
    assert liver[0] < spleen[0]  # the liver lies to the patient's right
    assert aorta[1] > liver[1]  # and in front of the aorta


def test_real_chest_nrrd(shared_data: Path) -> None:
    image = read_volume(shared_data / "slicerio" / "CTChest4.nrrd")
    assert image.shape == (128, 128, 34)
    assert image.axis_codes == ("R", "A", "S")
    label = read_label_map(shared_data / "slicerio" / "Segmentation.seg.nrrd")
    assert reorient_label(label, image).array.any()
    with pytest.raises(VolumeError, match="2 frames"):
        read_label_map(shared_data / "slicerio" / "SegmentationOverlapping.seg.nrrd")


@pytest.mark.parametrize("name", ["lung1_001", "sts_001_ct", "ts_ct_3mm", "ts_mr_3mm"])
def test_real_pairs_share_a_grid(shared_data: Path, name: str) -> None:
    image = read_volume(shared_data / name / "image.nii.gz")
    assert reorient_label(read_label_map(shared_data / name / "label.nii.gz"), image).array.any()


def test_real_non_axial_storage(shared_data: Path) -> None:
    image = read_volume(shared_data / "sct" / "t2" / "t2.nii.gz")
    assert image.axis_codes == ("P", "S", "R")
    assert image.reoriented("LPS").shape == (52, 60, 55)
