"""NIfTI-1 and NIfTI-2, single files and pairs, plain or gzipped: the header judged first, then the voxels.

The header is parsed by nibabel, but without its extensions (which may hold anything), and no byte is allocated for a
grid that the file cannot hold.
"""

from __future__ import annotations

import gzip
import itertools
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from boltzformer_monai.errors import VolumeError, cannot_open
from boltzformer_monai.io.grids import Misfit, distance, right_angled
from boltzformer_monai.io.payload import check_deflated, check_raw, read_blocks
from boltzformer_monai.limits import open_file, require_room

logger = logging.getLogger(__name__)

PAIRS = {".hdr": ".img", ".hdr.gz": ".img.gz"}
"""Endings of a NIfTI pair: header → voxels."""
_GZIP = b"\x1f\x8b"
_HEADER_BYTES = {348: "NIfTI-1", 540: "NIfTI-2"}
_SPACES = range(6)  # what sform and qform codes may be
_QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_ROUNDING = 3 * float(np.finfo(np.float32).eps)  # of what three squares in single precision leave of 1, see _qforms
_LONG = 1e-3  # beside an sform: four decimals and more
_STEPS = 65  # tried in what rounding leaves open: 0.02 voxels each over 512
_APART = 0.45  # of the smallest voxel size: half a voxel is a mistake of centres and corners, a registration is more
_SINGLE = (b"n+1", b"n+2")
_PAIR = (b"ni1", b"ni2")
_LABEL_BYTES = 4  # of a voxel of the label map that is made of an array of another type, at most


def read_nifti(path: Path, *, layers: bool = False, dtype: type | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels (I, J, K), scaled as the header says, and the affine (4, 4) voxel → RAS+ mm.

    Args:
        path: a single file, or either file of a pair.
        layers: also read what has more than three dimensions, in the shape that it has.
        dtype: of the result, to which the voxels are converted while they are read, so that there is one copy of them
            in memory; default: as stored, or as scaled. What does not fit becomes infinite.

    Raises:
        VolumeError: damaged, truncated, too large, Analyze 7.5 (no orientation), no or two contradicting orientations,
            colour or complex voxels, lengths that are not millimetres.
    """
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    header_path, data_path = _files(path)
    try:
        with _opened(header_path) as file:
            header, single = _parse(path, file.read(540))
        if single == (header_path != data_path):
            kind = "a single file" if single else "one of a pair (.hdr and .img)"
            msg = f"{path}: its header says that it is {kind}, its name says otherwise; rename or convert it"
            raise VolumeError(msg, reason="damaged")
        affine = _affine(path, header)
        return _voxels(path, header, data_path, _shape(path, header, layers=layers), dtype), affine
    except (HeaderDataError, WrapStructError, EOFError, OSError, OverflowError, ValueError, zlib.error) as error:
        if (closed := cannot_open(path, error)) is not None:
            raise closed from error
        msg = f"{path}: cannot be read as NIfTI ({last_line(error)}); is the file complete?"
        raise VolumeError(msg, reason="truncated" if isinstance(error, EOFError) else "damaged") from error
    except MemoryError as error:
        msg = f"{path}: does not fit into memory; crop or resample the scan first"
        raise VolumeError(msg, reason="too large") from error


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text, which is the most telling one for the libraries used here."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "it contradicts its own header"


def three_dimensions(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """Return (I, J, K) of a shape whose further axes are all 1.

    Raises:
        VolumeError: it has fewer axes, or several frames.
    """
    if len(shape) < 3:
        raise VolumeError(f"{path}: is a {len(shape)}-D image; a scan has three dimensions", reason="dimensions")
    frames = int(np.prod(shape[3:], dtype=object))
    if frames != 1:
        msg = f"{path}: is a {len(shape)}-D image with {frames} frames; export the one frame you need as a 3-D image"
        raise VolumeError(msg, reason="dimensions")
    return shape[0], shape[1], shape[2]


def other_half(path: Path) -> Path | None:
    """Return the header or the voxels that make a pair with a file, to be there or not; None for a single file."""
    for endings in PAIRS.items():
        for own, other in (endings, endings[::-1]):
            if path.name.lower().endswith(own):
                names = [path.name[: -len(own)] + end for end in (other, other.upper())]
                if own.upper() in path.name:  # the partner of SCAN.HDR is SCAN.IMG, if both are there
                    names.reverse()
                places = [path.with_name(name) for name in names]
                return next((place for place in places if os.path.isfile(place)), places[0])
    return None


def _files(path: Path) -> tuple[Path, Path]:
    """Return the file of the header and the file of the voxels."""
    other = other_half(path)
    if other is None:
        return path, path
    if missing := next((place for place in (path, other) if not os.path.isfile(place)), None):
        msg = f"{path}: is half of a pair, {missing.name} is not beside it; copy both files"
        raise VolumeError(msg, reason="missing")
    return (path, other) if path.name.lower().endswith(tuple(PAIRS)) else (other, path)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, through gzip if it begins like that, whatever its name says."""
    with open_file(path) as file:
        compressed = file.read(2) == _GZIP
        file.seek(0)
        if not compressed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as inflated:
            yield inflated  # type: ignore[misc]


def _parse(path: Path, block: bytes) -> tuple[Any, bool]:
    """Return the header, and whether the voxels follow in the same file."""
    from nibabel import nifti1, nifti2

    size, order = int.from_bytes(block[:4], "little"), "<"
    if size not in _HEADER_BYTES:
        size, order = int.from_bytes(block[:4], "big"), ">"
    if size not in _HEADER_BYTES or len(block) < size:
        msg = f"{path}: cannot be read as NIfTI (it does not begin with a NIfTI header); convert it to NIfTI"
        raise VolumeError(msg, reason="damaged")
    magic = block[344:347] if size == 348 else block[4:7]
    if size == 348 and magic not in _SINGLE + _PAIR:
        msg = f"{path}: is Analyze 7.5, which states no orientation, so left and right are unknown; use NIfTI"
        raise VolumeError(msg, reason="no orientation")
    if size == 348:
        kind = nifti1.Nifti1Header if magic in _SINGLE else nifti1.Nifti1PairHeader
    else:
        kind = nifti2.Nifti2Header if magic in _SINGLE else nifti2.Nifti2PairHeader
    header = kind(block[:size], endianness=order, check=False)  # nibabel's check would silently mend what it finds
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # what the standard means by 0: no reflection
    return header, magic in _SINGLE


def _affine(path: Path, header: Any) -> np.ndarray:
    """Return the affine, or refuse a header that leaves the place of the voxels open."""
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        unit = f"an unknown unit ({header['xyzt_units']})"
    if unit not in ("mm", "unknown"):  # nibabel ignores the unit, others do not
        msg = f"{path}: its voxel size is given in {unit}; convert the file to millimetres first"
        raise VolumeError(msg, reason="units")
    for name in ("sform_code", "qform_code"):
        if int(header[name]) not in _SPACES:
            msg = f"{path}: its header has the {name} {header[name]}, which does not exist; correct the header"
            raise VolumeError(msg, reason="damaged")
    sform, sform_code = header.get_sform(coded=True)
    qform_code = int(header["qform_code"])
    if not sform_code and not qform_code:
        msg = f"{path}: states no orientation (qform and sform codes are 0), so left and right are unknown; set one"
        raise VolumeError(msg, reason="no orientation")
    if not sform_code:
        return next(_qforms(path, header))
    if qform_code and np.isfinite([*sform.ravel(), *(float(header[name]) for name in _QFORM)]).all():
        _check_agreement(path, header, sform, same_space=int(sform_code) == qform_code)
    return np.asarray(sform, dtype=np.float64)


def _qforms(path: Path, header: Any, *, beside: bool = False) -> Iterator[np.ndarray]:
    """Yield the affines that a quaternion may stand for, first the one that software makes of it.

    Of the four parts of a unit quaternion the file holds three, in single precision. What they leave for the square of
    the fourth is lost in their rounding where it is nearly 0, and software takes it for 0 there. So for turns by about
    180 degrees, as many scans are stored, the angle is known to 0.1 degrees only: 0.6 voxels over 512.

    Args:
        path: of the file.
        header: its header.
        beside: whether an sform says the same, so that a quaternion that is longer than 1 by more than rounding (of
            text with few decimals, say) may stand.
    """
    from nibabel.quaternions import quat2mat

    *parts, x, y, z = (float(header[name]) for name in _QFORM)
    sizes = np.array([float(header["pixdim"][axis]) for axis in range(4)])
    left = 1 - float(np.dot(parts, parts))
    usable = left >= -(_LONG if beside else _ROUNDING) and (sizes[1:] >= 0).all() and abs(sizes[0]) == 1
    if not usable:  # false for NaN as well
        what = f"its quaternion {parts} is no rotation or its pixdim {sizes.tolist()} no voxel size"
        raise VolumeError(f"{path}: {what}; correct the header", reason="damaged")
    unknown = max(_ROUNDING, -left)
    lowest, highest = np.sqrt(np.maximum((left - unknown, left + unknown), 0))
    taken = np.sqrt(left) if left > _ROUNDING else 0.0
    for scalar in (taken, *np.linspace(lowest, highest, _STEPS)):
        quaternion = np.array([scalar, *parts])
        affine = np.eye(4)
        affine[:3, :3] = quat2mat(quaternion / np.linalg.norm(quaternion)) * (sizes[1:] * (1, 1, sizes[0]))
        affine[:3, 3] = x, y, z
        yield affine


def _check_agreement(path: Path, header: Any, sform: np.ndarray, *, same_space: bool) -> None:
    """Refuse two orientations of which software would choose one or the other.

    Two spaces (say scanner and template) may differ by what a registration does, never by which way an axis points.
    """
    shape, more = (*header.get_data_shape(), 1, 1, 1)[:3], _qforms(path, header, beside=True)
    first = next(more)
    lengths = np.linalg.norm(sform[:3, :3], axis=0) * np.linalg.norm(first[:3, :3], axis=0)
    if ((sform[:3, :3] * first[:3, :3]).sum(axis=0) < 0.5 * lengths).any():  # more than 60 degrees apart
        msg = f"{path}: its qform and sform point in opposite or different directions; correct the header before use"
        raise VolumeError(msg, reason="conflicting orientation")
    sizes = np.linalg.norm(sform[:3, :3], axis=0)
    if np.linalg.matrix_rank(sform[:3, :3] / np.maximum(sizes, 1e-9)) < 3:
        return  # no affine at all; Volume refuses it
    sforms = [sform]
    if (upright := right_angled(sform, shape)) is not None:  # the quaternion has no shear, and begins at the same voxel
        sforms.append(np.hstack([upright[:, :3], sform[:, 3:]]))
    apart = Misfit(mm=np.inf)
    for qform in itertools.chain([first], more):
        apart = min(apart, *(distance(qform, each, shape) for each in sforms), key=lambda found: found.mm)
        if apart.mm <= _APART * sizes.min():
            return
    if same_space:
        msg = f"{path}: its qform and sform claim the same space but lie {apart} apart; correct the header"
        raise VolumeError(msg, reason="conflicting orientation")
    logger.warning("%s: qform and sform differ by %s (two spaces); the sform is used", path, apart)


def _shape(path: Path, header: Any, *, layers: bool) -> tuple[int, ...]:
    shape = tuple(int(length) for length in header.get_data_shape())
    if not 1 <= int(header["dim"][0]) <= 7 or min(shape) < 1:
        what = f"the shape {shape} in {header['dim'][0]} dimensions"
        msg = f"{path}: its header gives it {what}; a scan has three of at least one voxel, export it again"
        raise VolumeError(msg, reason="dimensions")
    return shape if layers else three_dimensions(shape, path)


def _dtype(path: Path, header: Any) -> np.dtype:
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        msg = f"{path}: its header has the data type {header['datatype']}, which does not exist; export the scan again"
        raise VolumeError(msg, reason="damaged") from error
    if int(header["bitpix"]) not in (0, 8 * dtype.itemsize):
        msg = f"{path}: its header says {header['bitpix']} bits per voxel and the type {dtype}; export the scan again"
        raise VolumeError(msg, reason="damaged")
    if dtype.kind not in "iuf":
        msg = f"{path}: has colour or complex voxels; a scan or label map has one real number per voxel"
        raise VolumeError(msg, reason="unsupported format" if dtype.kind == "c" else "colour")
    return dtype


def _voxels(path: Path, header: Any, data_path: Path, shape: tuple[int, ...], wanted: type | None) -> np.ndarray:
    from nibabel.volumeutils import apply_read_scaling

    dtype, offset = _dtype(path, header), int(header.get_data_offset())
    if offset < (int(header.sizeof_hdr) if header.is_single else 0):
        msg = f"{path}: its voxels cannot begin at byte {offset}; the header is damaged, export the scan again"
        raise VolumeError(msg, reason="damaged")
    stated = [float(header[name]) for name in ("scl_slope", "scl_inter")]
    scales = stated[0] != 0 and not np.isnan(stated[0])  # 0 and NaN say that the values are stored as they are
    if np.isinf(stated).any() or (scales and np.isnan(stated[1])):
        msg = (
            f"{path}: its scl_slope is {stated[0]:g} and its scl_inter {stated[1]:g}, so its values are unknown; if "
            "they are stored as they are, set scl_slope to 1 and scl_inter to 0, else export it again"
        )
        raise VolumeError(msg, reason="damaged")
    slope, intercept = header.get_slope_inter()

    def scaled(block: bytes) -> np.ndarray:
        stored = np.frombuffer(block, dtype)
        return stored if slope is None else np.asarray(apply_read_scaling(stored, slope, intercept))

    voxels = int(np.prod(shape, dtype=object))
    with _opened(data_path) as file:
        available = data_path.stat().st_size
        if isinstance(file, gzip.GzipFile):
            check_deflated(str(path), available, offset + voxels * dtype.itemsize)
        else:
            check_raw(str(path), available - offset, voxels * dtype.itemsize)
        result = np.dtype(wanted or scaled(bytes(dtype.itemsize)).dtype)
        require_room(voxels, result.itemsize + (0 if wanted else _LABEL_BYTES), path)
        array, place = np.empty(voxels, result), 0
        file.seek(offset)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            for block in read_blocks(str(path), file, voxels * dtype.itemsize):
                values = scaled(block)
                array[place : place + values.size] = values
                place += values.size
    return array.reshape(shape, order="F")
