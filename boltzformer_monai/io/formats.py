"""Single-file images: NIfTI by nibabel, NRRD and MetaImage by SimpleITK, both as (array, RAS+ affine).

Neither reader is trusted with an orientation that the file does not state: a guess may swap left and right.
"""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.atomic import atomic_path

logger = logging.getLogger(__name__)

_NIFTI = (".nii", ".nii.gz")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
_WRITABLE = (".nii", ".nii.gz", ".nrrd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_image_file(path: Path) -> bool:
    """Tell, by its name, whether a file is NIfTI, NRRD or MetaImage."""
    return path.name.lower().endswith(_NIFTI + _ITK)


def read_image_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels (I, J, K), as stored after the file's own scaling, and the affine (4, 4) voxel → RAS+ mm.

    Raises:
        VolumeError: unknown format, broken file, not three-dimensional, or no stated orientation.
    """
    if not is_image_file(path):
        msg = f"{path}: unknown format; a scan is a DICOM folder or a file ending in {', '.join(_NIFTI + _ITK)}"
        raise VolumeError(msg)
    array, affine = _read_nifti(path) if path.name.lower().endswith(_NIFTI) else _read_itk(path)
    if array.dtype.kind not in "biuf":
        msg = f"{path}: has colour or complex voxels; a scan or label map has one real number per voxel"
        raise VolumeError(msg)
    return array, affine


def write_image_file(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write an integer array (I, J, K) with its RAS+ affine to .nii, .nii.gz or .nrrd, atomically.

    Raises:
        VolumeError: another suffix, a missing folder, or a file system that refuses.
    """
    if not path.name.lower().endswith(_WRITABLE):
        msg = f"{path}: a label map can be written as {', '.join(_WRITABLE)}; choose one of these endings"
        raise VolumeError(msg)
    try:
        with atomic_path(path) as temporary:
            (_write_nrrd if path.name.lower().endswith(".nrrd") else _write_nifti)(array, affine, temporary)
    except (OSError, RuntimeError) as error:  # SimpleITK reports everything as RuntimeError
        msg = f"{path}: cannot be written ({_one_line(error)}); does its folder exist and have room?"
        raise VolumeError(msg) from error


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel
    from nibabel.spatialimages import HeaderDataError, ImageDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):
            msg = f"{path}: its content is not NIfTI; convert it to NIfTI, or give it the right ending"
            raise VolumeError(msg)
        _check_nifti_header(image.header, path)
        shape = _three_dimensions(tuple(image.shape), path)
        array = np.asanyarray(image.dataobj).reshape(shape)
    except (
        nibabel.filebasedimages.ImageFileError,
        HeaderDataError,
        ImageDataError,
        WrapStructError,
        OSError,
        EOFError,
        ValueError,
        MemoryError,
        zlib.error,
    ) as error:
        msg = f"{path}: cannot be read as NIfTI ({_one_line(error)}); is the file complete?"
        raise VolumeError(msg) from error
    return array, np.asarray(image.affine, dtype=np.float64)


def _check_nifti_header(header: object, path: Path) -> None:
    """Refuse a header that leaves the place of the voxels open."""
    unit = header.get_xyzt_units()[0]  # type: ignore[attr-defined]
    if unit not in ("mm", "unknown"):  # nibabel ignores the unit, others do not
        msg = f"{path}: its voxel size is given in {unit}; convert the file to millimetres first"
        raise VolumeError(msg)
    sform, sform_code = header.get_sform(coded=True)  # type: ignore[attr-defined]
    qform, qform_code = header.get_qform(coded=True)  # type: ignore[attr-defined]
    if not sform_code and not qform_code:
        msg = f"{path}: states no orientation (qform and sform codes are 0), so left and right are unknown; set one"
        raise VolumeError(msg)
    if sform_code and qform_code and np.isfinite(sform).all() and np.isfinite(qform).all():
        # Software disagrees which of the two counts; that must not decide between left and right.
        if ((sform[:3, :3] * qform[:3, :3]).sum(axis=0) < 0).any():
            msg = f"{path}: its qform and sform point in opposite directions; correct the header before use"
            raise VolumeError(msg)
        if not np.allclose(sform, qform, atol=0.1):
            logger.warning("%s: qform and sform differ; the sform is used", path)


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        msg = f"{path}: cannot be read as {path.suffix[1:].upper()} ({_one_line(error)}); is the file complete?"
        raise VolumeError(msg) from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        layers = image.GetNumberOfComponentsPerPixel()
        what = "time frames, colours or overlapping segments"
        msg = f"{path}: is a 4-D image with {layers} frames ({what}); export one of them as a 3-D image"
        raise VolumeError(msg)
    shape = _three_dimensions(tuple(image.GetSize()), path)
    if path.suffix.lower() in (".nrrd", ".nhdr") and (
        # SimpleITK has turned RAS and LAS into LPS; any other space has no left and right.
        not image.HasMetaDataKey("NRRD_space") or image.GetMetaData("NRRD_space") != "left-posterior-superior"
    ):
        msg = f"{path}: its header has no patient space (LPS, RAS or LAS), so left and right are unknown; add 'space:'"
        raise VolumeError(msg)
    if image.GetDimension() > 3:
        size = list(image.GetSize())
        image = SimpleITK.Extract(image, size[:3] + [0] * (len(size) - 3), [0] * len(size))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    return array.reshape(shape), _LPS_TO_RAS @ affine


def _three_dimensions(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """Return (I, J, K) of a shape whose further axes are all 1."""
    if len(shape) < 3:
        msg = f"{path}: is a {len(shape)}-D image; a scan has three dimensions"
        raise VolumeError(msg)
    frames = int(np.prod(shape[3:], dtype=np.int64))
    if frames != 1:
        msg = f"{path}: is a {len(shape)}-D image with {frames} frames; export the one frame you need as a 3-D image"
        raise VolumeError(msg)
    return shape[0], shape[1], shape[2]


def _write_nifti(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        image.set_qform(affine, code=1)
    else:  # the quaternion cannot hold a gantry tilt; better none than a wrong one
        image.set_qform(None, code=0)
    nibabel.save(image, path)


def _write_nrrd(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    import SimpleITK

    lps = _LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing([float(value) for value in spacing])
    image.SetDirection([float(value) for value in (lps[:3, :3] / spacing).ravel()])
    image.SetOrigin([float(value) for value in lps[:3, 3]])
    SimpleITK.WriteImage(image, str(path), True)


def _one_line(error: BaseException) -> str:
    """Return the most telling line of an error; SimpleITK puts it last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
