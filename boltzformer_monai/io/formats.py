"""Single-file images: NIfTI, NRRD and MetaImage as (array, RAS+ affine), and label maps back to disk.

No reader is trusted with an orientation that the file does not state: a guess may swap left and right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from boltzformer_monai.errors import VolumeError, why
from boltzformer_monai.io.grids import GRID_TOLERANCE, distance, right_angled
from boltzformer_monai.io.nifti import PAIRS, last_line, other_half, read_nifti, three_dimensions
from boltzformer_monai.io.nrrd_meta_header import check_is_scan, check_metaimage, check_nrrd, metaimage_modality
from boltzformer_monai.io.orientation import LPS_TO_RAS_AFFINE
from boltzformer_monai.storage import atomic_path

_NIFTI = (".nii", ".nii.gz", *PAIRS)
_NRRD = (".nrrd", ".nhdr")
_META = (".mha", ".mhd")
_WRITABLE = (".nii", ".nii.gz", ".nrrd")
_LPS = "left-posterior-superior"


def is_image_file(path: Path) -> bool:
    """Tell, by its name, whether a file is NIfTI, NRRD or MetaImage; DICOM slices are named .img too."""
    name = path.name.lower()
    if name.endswith(tuple(PAIRS.values())):
        header = other_half(path)
        return header is not None and header.is_file()
    return name.endswith(_NIFTI + _NRRD + _META)


def read_image_file(path: Path, *, dtype: type | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels (I, J, K), as stored after the file's own scaling, and the affine (4, 4) voxel → RAS+ mm.

    Args:
        path: the file.
        dtype: of the result; default: as stored or scaled. What does not fit into it becomes infinite.

    Raises:
        VolumeError: unknown format, too large, broken file, not three-dimensional, or no stated orientation.
    """
    if not is_image_file(path):
        known = ", ".join(_NIFTI + _NRRD + _META)
        msg = f"{path}: unknown format; a scan is a DICOM folder or a file ending in {known}"
        raise VolumeError(msg, reason="unsupported format")
    itk = path.name.lower().endswith(_NRRD + _META)
    return _read_itk(path, dtype=dtype)[:2] if itk else read_nifti(path, dtype=dtype)


def read_scan_file(path: Path, *, channel: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a scan, float32, as :func:`read_image_file` does; of a 4-D NIfTI file one ``channel``, counted from 0.

    Raises:
        VolumeError: also for a segmentation of 3D Slicer, and for a channel that the file lacks.
    """
    if channel is not None:
        array, affine = read_nifti(path, layers=True)
        if array.ndim != 4 or not 0 <= channel < array.shape[3]:
            there = f"only 0 to {array.shape[3] - 1}" if array.ndim == 4 else f"its shape is {array.shape}"
            raise VolumeError(f"{path}: has no channel {channel}, {there}", reason="dimensions")
        with np.errstate(over="ignore"):  # what is not finite is refused later
            return array[..., channel].astype(np.float32), affine
    if path.name.lower().endswith(_NRRD):
        check_is_scan(path)
    return read_image_file(path, dtype=np.float32)


def stated_modality(path: Path) -> str:
    """Return what a file's header states, as DICOM codes it; ``""`` for nothing, which is all that most can state."""
    return metaimage_modality(path) if path.name.lower().endswith(_META) else ""


def read_layers(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Read an image file of one or several layers: a fourth axis, or several numbers per voxel.

    Returns:
        The voxels (I, J, K, S), the affine (4, 4) voxel → RAS+ mm, and the text fields of an NRRD or MetaImage header.

    Raises:
        VolumeError: as :func:`read_image_file`, or more than four axes.
    """
    itk = path.name.lower().endswith(_NRRD + _META)
    array, affine, fields = _read_itk(path, layers=True) if itk else (*read_nifti(path, layers=True), {})
    if len(array.shape) < 3 or sum(length > 1 for length in array.shape[3:]) > 1:
        msg = f"{path}: is a {array.ndim}-D image; a label map has three axes, or four when its segments overlap"
        raise VolumeError(msg, reason="dimensions")
    return array.reshape((*array.shape[:3], -1)), affine, fields


def write_image_file(array: np.ndarray, affine: np.ndarray, path: Path, *, fast: bool = False) -> None:
    """Write an integer array (I, J, K) with its RAS+ affine to .nii, .nii.gz or .nrrd, atomically.

    Args:
        array: the voxels.
        affine: voxel → RAS+ mm (4, 4). A hair off right angles it is put at right angles (see
            :func:`~boltzformer_monai.io.grids.right_angled`), since ITK opens no other NIfTI file; a gantry tilt stays.
        path: of the file.
        fast: for files that are read once: an NRRD is compressed no more than is quick, as .nii.gz always is, and
            nothing waits for the disk.

    Raises:
        VolumeError: another suffix, a missing folder, or a file system that refuses.
    """
    if not path.name.lower().endswith(_WRITABLE):
        msg = f"{path}: a label map can be written as {', '.join(_WRITABLE)}; choose one of these endings"
        raise VolumeError(msg, reason="unsupported format")
    if not path.parent.is_dir():
        msg = f"{path}: cannot be written (its folder does not exist); make it, or choose another place"
        raise VolumeError(msg, reason="write")
    upright = right_angled(affine, array.shape)
    affine = affine if upright is None else upright
    try:
        with atomic_path(path, durable=not fast) as temporary:
            if path.name.lower().endswith(".nrrd"):
                _write_nrrd(array, affine, temporary, level=1 if fast else -1)
            else:
                _write_nifti(array, affine, temporary)
    except (OSError, RuntimeError) as error:
        # SimpleITK reports everything as RuntimeError, in many lines about the temporary file.
        cause = why(error) if isinstance(error, OSError) else "the disk does not take it"
        msg = f"{path}: cannot be written ({cause}); does its folder have room, and may you write there?"
        raise VolumeError(msg, reason="write") from error


def _read_itk(
    path: Path, *, layers: bool = False, dtype: type | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    import SimpleITK

    nrrd = path.name.lower().endswith(_NRRD)
    if nrrd:
        check_nrrd(path, layers=layers)
    else:
        check_metaimage(path)
    try:
        image = SimpleITK.ReadImage(str(path), imageIO="NrrdImageIO" if nrrd else "MetaImageIO")
    except (RuntimeError, MemoryError) as error:
        msg = f"{path}: cannot be read as {path.suffix[1:].upper()} ({last_line(error)}); is the file complete?"
        raise VolumeError(msg, reason="damaged") from error
    components = image.GetNumberOfComponentsPerPixel()
    if components != 1 and not layers:
        what = "time frames, colours or overlapping segments"
        msg = f"{path}: is a 4-D image with {components} frames ({what}); export one of them as a 3-D image"
        raise VolumeError(msg, reason="dimensions")
    if len(image.GetSize()) < 3 or not layers:
        three_dimensions(tuple(image.GetSize()), path)
    # SimpleITK has turned RAS and LAS into LPS; any other space has no left and right.
    if nrrd and (not image.HasMetaDataKey("NRRD_space") or image.GetMetaData("NRRD_space") != _LPS):
        msg = f"{path}: its header has no patient space (LPS, RAS or LAS), so left and right are unknown; add 'space:'"
        raise VolumeError(msg, reason="no orientation")
    stored = SimpleITK.GetArrayViewFromImage(image)
    if stored.dtype.kind not in "iuf":
        msg = f"{path}: has complex voxels; a scan or label map has one real number per voxel"
        raise VolumeError(msg, reason="unsupported format")
    with np.errstate(over="ignore"):  # what is not finite is refused later
        array = np.array(stored, dtype=dtype or stored.dtype)
    axes = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(axes, axes) * np.array(image.GetSpacing()))[:3, :3]
    affine[:3, 3] = image.GetOrigin()[:3]
    array = array.transpose(*reversed(range(axes)), *range(axes, array.ndim))  # components come last in both
    # Headers are not always UTF-8: SimpleITK hands on what it cannot decode as surrogates, and does not take them back.
    fields = {
        key: image.GetMetaData(key).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for key in image.GetMetaDataKeys()
        if key.isascii()
    }
    return array if layers else array.reshape(array.shape[:3]), LPS_TO_RAS_AFFINE @ affine, fields


def _write_nifti(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    import nibabel

    # In the order of the file: nibabel would turn every slice on its own, which takes five times as long.
    image = nibabel.Nifti1Image(np.asfortranarray(array), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if distance(image.get_qform(), affine, array.shape).voxels > GRID_TOLERANCE:
        # No quaternion holds a gantry tilt, nor precisely a turn by nearly 180 degrees. Software that prefers it would
        # silently show another place; so only the sform is left, which ITK takes unless it is sheared.
        image.set_qform(None, code=0)
    nibabel.save(image, path)


def _write_nrrd(array: np.ndarray, affine: np.ndarray, path: Path, *, level: int) -> None:
    import SimpleITK

    lps = LPS_TO_RAS_AFFINE @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing([float(value) for value in spacing])
    image.SetDirection([float(value) for value in (lps[:3, :3] / spacing).ravel()])
    image.SetOrigin([float(value) for value in lps[:3, 3]])
    SimpleITK.WriteImage(image, str(path), useCompression=True, compressionLevel=level)
