"""NIfTI, NRRD and MetaImage: every kind of file that is read is read alike, and every refusal has its reason."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import Volume, read_volume
from tests.robustness.explore import put
from tests.robustness.samples import AFFINE, ARRAY, Files, metaimage, nifti, nrrd


def reason(path: Path) -> str:
    """Return the reason for which a file is refused."""
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert len(str(caught.value).splitlines()) == 1
    assert path.name in str(caught.value)
    return caught.value.reason


def is_right(volume: Volume) -> bool:
    return np.array_equal(volume.array, ARRAY) and np.allclose(volume.affine, AFFINE, rtol=0, atol=1e-5)


def nifti_with(change: Callable[..., None], *, version: int = 1, codes: tuple[int, int] = (1, 1)) -> Files:
    """Return a NIfTI file whose header was changed."""
    import nibabel

    content = nifti(version=version, codes=codes)["scan.nii"]
    kind, length = ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540))[version - 1]
    header = kind(content[:length], check=False)
    change(header)
    return {"scan.nii": header.binaryblock + content[length:]}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (2, 0), (4, 1)])
def test_nifti_single_files_and_pairs(tmp_path: Path, version: int, codes: tuple[int, int]) -> None:
    single = put(nifti(version=version, codes=codes), tmp_path)
    assert is_right(read_volume(single))
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(single.read_bytes()))
    assert is_right(read_volume(tmp_path / "scan.nii.gz"))
    pair = nifti(version=version, pair=True, codes=codes)
    assert is_right(read_volume(put(pair, tmp_path)))
    assert is_right(read_volume(tmp_path / "scan.img"))
    for name, content in pair.items():
        (tmp_path / name).unlink()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    assert is_right(read_volume(tmp_path / "scan.hdr.gz"))


def test_the_content_decides_what_is_compressed(tmp_path: Path) -> None:
    plain, compressed = nifti()["scan.nii"], nifti(compressed=True)["scan.nii.gz"]
    assert is_right(read_volume(put({"wrong.nii.gz": plain}, tmp_path)))
    assert is_right(read_volume(put({"wrong.nii": compressed}, tmp_path)))


def test_big_endian_files(tmp_path: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(ARRAY.astype(">i2"), AFFINE, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    assert is_right(read_volume(tmp_path / "big.nii"))


def test_nifti_scaling_is_applied(tmp_path: Path) -> None:
    def scale(header: dict) -> None:
        header["scl_slope"], header["scl_inter"] = 0.5, -1024

    assert np.array_equal(read_volume(put(nifti_with(scale), tmp_path)).array, ARRAY * np.float32(0.5) - 1024)


def test_half_a_pair_and_analyze(tmp_path: Path) -> None:
    import nibabel

    put(nifti(pair=True), tmp_path)
    (tmp_path / "scan.img").unlink()
    assert reason(tmp_path / "scan.hdr") == "missing"
    old = nibabel.AnalyzeImage(ARRAY, None)
    old.to_filename(tmp_path / "old.img")
    assert reason(tmp_path / "old.img") == "no orientation"
    assert reason(tmp_path / "old.hdr") == "no orientation"
    (tmp_path / "mixed.hdr").write_bytes(nifti()["scan.nii"])
    (tmp_path / "mixed.img").write_bytes(b"")
    assert reason(tmp_path / "mixed.hdr") == "damaged"
    (tmp_path / "half.nii").write_bytes(nifti(pair=True)["scan.hdr"])
    assert reason(tmp_path / "half.nii") == "damaged"


def test_a_dicom_slice_named_img_is_not_taken_for_half_a_pair(tmp_path: Path) -> None:
    from tests.robustness.samples import ct_slice, dicom_bytes

    put({f"{index}.img": dicom_bytes(ct_slice(index)) for index in range(3)}, tmp_path)
    assert read_volume(tmp_path).shape == (13, 17, 3)
    assert "slice" in str(pytest.raises(VolumeError, read_volume, tmp_path / "1.img").value)


def _set(field: str, value: float, element: int | None = None) -> Callable[..., None]:
    def change(header: dict) -> None:
        if element is None:
            header[field] = value
        else:
            header[field][element] = value

    return change


@pytest.mark.parametrize(
    ("field", "element", "value", "expected"),
    [
        ("dim", 0, 2, "dimensions"),
        ("dim", 0, 9, "dimensions"),
        ("dim", 2, 0, "dimensions"),
        ("dim", 3, -5, "dimensions"),
        ("dim", 1, 30000, "truncated"),
        ("srow_x", 0, np.nan, "singular affine"),
        ("srow_z", 2, 0, "singular affine"),
        ("srow_z", 2, 1e6, "pixel spacing"),
        ("datatype", None, 128, "damaged"),  # the bits per voxel say otherwise
        ("datatype", None, 999, "damaged"),
        ("bitpix", None, 8, "damaged"),
        ("vox_offset", None, 100, "damaged"),
        ("vox_offset", None, 1e6, "truncated"),
        ("sform_code", None, 0, "no orientation"),
        ("sform_code", None, 17, "damaged"),
        ("xyzt_units", None, 3, "units"),
        ("xyzt_units", None, 1, "units"),
        ("scl_slope", None, np.inf, "damaged"),
        ("magic", None, b"xyz", "no orientation"),
        ("sizeof_hdr", None, 349, "damaged"),
    ],
)
def test_reasons_of_nifti(tmp_path: Path, field: str, element: int | None, value: float, expected: str) -> None:
    assert reason(put(nifti_with(_set(field, value, element), codes=(1, 0)), tmp_path)) == expected


def test_two_orientations_must_agree(tmp_path: Path) -> None:
    import nibabel

    def saved(sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int]) -> Path:
        image = nibabel.Nifti1Image(ARRAY, None)
        image.set_sform(sform, code=codes[0])
        image.set_qform(qform, code=codes[1])
        nibabel.save(image, tmp_path / "two.nii")
        return tmp_path / "two.nii"

    mirrored, turned = AFFINE @ np.diag([-1.0, 1, 1, 1]), AFFINE[:, [1, 0, 2, 3]]
    for codes in ((1, 1), (4, 1)):
        assert reason(saved(AFFINE, mirrored, codes)) == "conflicting orientation"
        assert reason(saved(AFFINE, turned, codes)) == "conflicting orientation"
    shifted, stretched = AFFINE.copy(), AFFINE @ np.diag([1, 1, 1.1, 1])
    shifted[0, 3] += 5
    for other in (shifted, stretched):
        assert reason(saved(AFFINE, other, (1, 1))) == "conflicting orientation"
        assert is_right(read_volume(saved(AFFINE, other, (4, 1))))  # two spaces, of which the sform counts
    shifted[0, 3] = AFFINE[0, 3] + 0.01
    assert is_right(read_volume(saved(AFFINE, shifted, (1, 1))))


def test_colour_complex_and_trailing_bytes(tmp_path: Path) -> None:
    import nibabel

    colour = np.zeros(ARRAY.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for array, expected in ((colour, "colour"), (ARRAY.astype(np.complex64), "unsupported format")):
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "a.nii.gz")
        assert reason(tmp_path / "a.nii.gz") == expected
    raw = nifti()["scan.nii"]
    assert is_right(read_volume(put({"b.nii": raw + bytes(512)}, tmp_path)))  # padding to a block
    assert reason(put({"b.nii": raw + bytes(100_000)}, tmp_path)) == "damaged"  # a header of another grid
    assert reason(put({"b.nii.gz": gzip.compress(raw + bytes(100_000))}, tmp_path)) == "damaged"


def test_a_gzip_stream_is_checked_to_its_end(tmp_path: Path) -> None:
    content = nifti(compressed=True)["scan.nii.gz"]
    assert reason(put({"a.nii.gz": content[:-6]}, tmp_path)) == "truncated"
    assert reason(put({"a.nii.gz": content[:-8] + bytes(4) + content[-4:]}, tmp_path)) == "damaged"  # the checksum


def test_not_finite_voxels(tmp_path: Path) -> None:
    import nibabel
    import SimpleITK

    array = ARRAY.astype(np.float32)
    array[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "a.nii")
    for suffix in (".nrrd", ".mha"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / f"a{suffix}"))
    assert {reason(tmp_path / f"a{suffix}") for suffix in (".nii", ".nrrd", ".mha")} == {"not finite"}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("make", [nrrd, metaimage])
def test_nrrd_and_metaimage_alike(tmp_path: Path, make: Callable[..., Files], detached: bool, compressed: bool) -> None:
    files = make(compressed=compressed, detached=detached)
    path = put(files, tmp_path)
    assert is_right(read_volume(path))
    if detached:
        (tmp_path / "scan.raw").unlink()
        assert reason(path) == "missing"


@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_simpleitk_writes_is_read_where_it_reads_it(tmp_path: Path, suffix: str, compressed: bool) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(ARRAY.transpose(2, 1, 0).astype(np.float32))
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(tmp_path / f"a.{suffix}"), compressed)
    assert is_right(read_volume(tmp_path / f"a.{suffix}"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("sizes: 13 17 19", "sizes: 13 17 0", "dimensions"),
        ("sizes: 13 17 19", "sizes: 13 17", "dimensions"),
        ("sizes: 13 17 19", "sizes: 13 17 20", "truncated"),
        ("sizes: 13 17 19", "sizes: 13 17 3", "damaged"),
        ("type: short", "type: block", "damaged"),
        ("type: short", "type: double", "truncated"),
        ("encoding: raw", "encoding: bzip2", "unsupported format"),
        ("encoding: raw", "encoding: gzip", "damaged"),
        ("space: right-anterior-superior", "space: scanner-xyz", "no orientation"),
        ("space: right-anterior-superior\n", "", "no orientation"),
        ("space origin:", 'space units: "cm" "cm" "cm"\nspace origin:', "units"),
        ("space origin: (-60.5", "space origin: (nan", "damaged"),
        ("endian: little", "data file: LIST", "unsupported format"),
        ("dimension: 3", "dimension: 3\ndimension: 3", "damaged"),
        ("NRRD0004", "NRRD", "damaged"),
    ],
)
def test_reasons_of_nrrd(tmp_path: Path, old: str, new: str, expected: str) -> None:
    content = nrrd()["scan.nrrd"]
    assert old.encode() in content
    assert reason(put({"a.nrrd": content.replace(old.encode(), new.encode(), 1)}, tmp_path)) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("DimSize = 13 17 19", "DimSize = 13 -17 19", "dimensions"),
        ("DimSize = 13 17 19", "DimSize = 130 170 190", "truncated"),
        ("MET_SHORT", "MET_STRING", "damaged"),
        ("TransformMatrix", "TransformMatrixes", "no orientation"),
        ("CenterOfRotation", "Orientation = 1 0 0 0 1 0 0 0 1\nCenterOfRotation", "damaged"),
        ("CenterOfRotation", "DistanceUnits = cm\nCenterOfRotation", "units"),
        ("ElementSpacing = ", "ElementSpacing = -", "pixel spacing"),
        ("ElementSpacing = ", "ElementSpacing = nan ", "damaged"),
        ("ElementDataFile = LOCAL", "ElementDataFile = a%03d.raw 1 3 1", "unsupported format"),
        ("BinaryData = True", "BinaryData = maybe", "damaged"),
        ("NDims = 3", "NDims = 4", "dimensions"),
        ("Offset = ", "Offset = inf ", "damaged"),
        ("ObjectType", "HeaderSize = 10\nObjectType", "unsupported format"),
    ],
)
def test_reasons_of_metaimage(tmp_path: Path, old: str, new: str, expected: str) -> None:
    content = metaimage()["scan.mha"]
    assert old.encode() in content
    assert reason(put({"a.mha": content.replace(old.encode(), new.encode(), 1)}, tmp_path)) == expected


def test_a_compressed_metaimage_states_its_true_size(tmp_path: Path) -> None:
    """ITK inflates only what the header states, and returns the rest of the voxels as they were in memory."""
    content = metaimage(compressed=True)["scan.mha"]
    short = content.replace(b"CompressedDataSize = ", b"CompressedDataSize = 1\nComment = ")
    assert reason(put({"a.mha": short}, tmp_path)) == "damaged"


def test_header_text_in_any_encoding(tmp_path: Path) -> None:
    content = nrrd()["scan.nrrd"].replace(b"# made here", "Größe:=ä\nname:=groß".encode("latin-1"))
    assert is_right(read_volume(put({"a.nrrd": content}, tmp_path)))
    content = metaimage()["scan.mha"].replace(b"CenterOfRotation", "Größe = ä\nCenterOfRotation".encode("latin-1"))
    assert is_right(read_volume(put({"a.mha": content}, tmp_path)))
