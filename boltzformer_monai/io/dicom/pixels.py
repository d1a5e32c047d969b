"""The stored values of DICOM slices, decoded so that they depend on the file alone and on no installed plug-in.

Plain cells are taken as they are, RLE is unpacked by pydicom, and the JPEG family by SimpleITK (GDCM) or, what that
lacks, by pydicom. A decoder of the JPEG family is told what the compressed image says of itself, because headers that
disagree are read differently by each; then :mod:`~boltzformer_monai.io.dicom.bits` applies the header.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom import claims
from boltzformer_monai.io.dicom.bits import BITS_TAGS, OVERLAY_TAGS, PixelBits
from boltzformer_monai.io.dicom.files import SliceHeader, broken_dicom, damage_as_volume_error
from boltzformer_monai.io.dicom.open import read_dicom
from boltzformer_monai.io.dicom.padding import PADDING_TAGS, padding_mask

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

# Everything a codec needs to know, and nothing about the patient.
_FORMAT_TAGS = ["SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", *BITS_TAGS]


def decode_slices(slices: Sequence[SliceHeader]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the rescaled values of slices of one size, and where they are padding; each file is decoded once.

    Returns:
        float32 (slices, rows, columns), and booleans of the same shape, or None where there is no padding.

    Raises:
        VolumeError: pixel data are missing, cut off, damaged, compressed in a way that no decoder here knows, or their
            bits are not what the header says.
    """
    by_file: dict[Path, list[int]] = {}
    for index, header in enumerate(slices):
        by_file.setdefault(header.path, []).append(index)
    if slices:
        claims.check_room_for_slices(slices)
    stack, padding = None, None
    for indices in by_file.values():
        frames, is_padding = _decode_file(slices[indices[0]])
        if stack is None:  # only now: a damaged header may ask for more memory than there is
            stack = np.empty((len(slices), *frames.shape[1:]), dtype=np.float32)
        if is_padding is not None and padding is None:
            padding = np.zeros(stack.shape, dtype=bool)
        for index in indices:
            scale, frame = slices[index].geometry, slices[index].frame or 0
            # In double precision: MR slopes are fractions, and each slice may have its own.
            with np.errstate(over="ignore"):  # the caller refuses infinite values
                stack[index] = frames[frame] * np.float64(scale.slope) + scale.intercept
            if is_padding is not None and padding is not None:
                padding[index] = is_padding[frame]
    if stack is None:
        raise ValueError("there are no slices to decode")
    return stack, padding


def _decode_file(header: SliceHeader) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the stored values of all frames of a file (frames, rows, columns), and which of them are padding."""
    tags: list[str | int] = [*_FORMAT_TAGS, *claims.VALUE_TAGS, *PADDING_TAGS, *OVERLAY_TAGS]
    with damage_as_volume_error(header.path, "its pixels cannot be decoded"):
        dataset = read_dicom(header.path, tags=tags)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if syntax is not None and syntax.is_private:
            msg = f"{header.path}: its pixels have a private transfer syntax ({syntax}), which no decoder here knows; "
            msg += "convert it to an uncompressed DICOM file or to NIfTI"
            raise VolumeError(msg, reason="codec")
        claims.check_not_cut_off(dataset, header.path)
        claims.check_compressed_claim(dataset, header.path)
        cells, bits = _cells(dataset, header.path)
        stored = cells if bits is None else bits.values(cells)
        padding = padding_mask(cells, stored, bits, dataset, header.path)
    shape = (header.frames, header.rows, header.columns)
    if stored.size != math.prod(shape):
        msg = f"{header.path}: decodes to {stored.shape} pixels, its header says {shape}; the file is damaged"
        raise VolumeError(msg, reason="damaged")
    return stored.reshape(shape), None if padding is None else padding.reshape(shape)


def stored_values(dataset: Dataset, path: Path) -> np.ndarray:
    """Return the stored values of all frames, (frames, rows, columns), integers or floats, before any rescaling.

    The length of pixels that are not compressed must have been checked; ``path`` is for messages.

    Raises:
        VolumeError: no decoder here knows the compression, the pixels are damaged, or their bits are not what the
            header says.
    """
    cells, bits = _cells(dataset, path)
    return cells if bits is None else bits.values(cells)


def _cells(dataset: Dataset, path: Path) -> tuple[np.ndarray, PixelBits | None]:
    """Return what the decoder gives, (frames, rows, columns), and which of its bits are pixel; None for floats."""
    from pydicom import uid

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # old files without file meta information; pydicom has found out by itself
        dataset.file_meta.TransferSyntaxUID = syntax = _found_syntax(dataset)
    for name, kind in (("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")):
        if name in dataset:
            return _framed(dataset, np.frombuffer(dataset[name].value, _byte_order(syntax) + kind)), None
    bits = PixelBits.of(dataset, path)
    if syntax.is_transfer_syntax and not syntax.is_compressed:
        cells = _plain_cells(dataset, bits, syntax)
        rows, columns, frames = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
        if cells.size - rows * columns * frames >= max(16, min(rows, columns)):  # a few bytes may fill up the last word
            msg = f"{path}: has more pixels than the {frames} x {rows} x {columns} of its header; export it again"
            raise VolumeError(msg, reason="damaged")
        return _framed(dataset, cells), bits
    if syntax == uid.RLELossless:
        return _framed(dataset, np.asarray(_bare(dataset, replace(bits.whole, signed=False)).pixel_array)), bits
    return _decompressed(dataset, bits, path), bits


def _framed(dataset: Dataset, cells: np.ndarray) -> np.ndarray:
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
    return cells.reshape(-1)[: shape[0] * shape[1] * shape[2]].reshape(shape)  # the last byte may be one to even them


def _byte_order(syntax: UID) -> Literal["<", ">"]:
    return "<" if syntax.is_little_endian else ">"


def _plain_cells(dataset: Dataset, bits: PixelBits, syntax: UID) -> np.ndarray:
    data = np.frombuffer(dataset.PixelData, np.uint8)
    if bits.allocated <= 8 and not syntax.is_little_endian and dataset["PixelData"].VR == "OW":
        data = data[: data.size // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()  # bytes in words of the other byte order
    if bits.allocated == 1:
        return np.unpackbits(data, bitorder="little")
    size = bits.dtype.itemsize
    return data[: data.size // size * size].view(bits.dtype.newbyteorder(_byte_order(syntax)))


def _decompressed(dataset: Dataset, bits: PixelBits, path: Path) -> np.ndarray:
    """Return the values of images of the JPEG family, integers of any width."""
    from pydicom import uid

    syntax = dataset.file_meta.TransferSyntaxUID
    own = {_image_bits(image.precision, signed=image.signed) for image in claims.images_in(dataset.PixelData)}
    if len(own) > 1:
        msg = f"{path}: its frames are compressed with different numbers of bits; export it again"
        raise VolumeError(msg, reason="damaged")
    image = own.pop() if own else None
    if image is not None:
        _check_agreement(image, bits, path)
        values = _decode(_bare(dataset, image))
        if values is not None:
            values = values[None] if values.ndim == 2 else values
            lossless = (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless)
            _check_values(values, image, bits, path, exact=syntax in lossless)
            return values
    # Neither decoder's own text tells a missing codec from damaged data; GDCM has all of these.
    common = (uid.JPEGTransferSyntaxes, uid.JPEGLSTransferSyntaxes, uid.JPEG2000TransferSyntaxes)
    known = any(syntax in family for family in common)
    msg = f"{path}: neither pydicom nor SimpleITK can decode its pixels ({syntax.name}); "
    msg += "is the file complete?" if known else "convert it to an uncompressed DICOM file or to NIfTI"
    raise VolumeError(msg, reason="damaged" if known else "codec")


def _check_agreement(image: PixelBits, bits: PixelBits, path: Path) -> None:
    if bits.high != bits.stored - 1:
        msg = f"{path}: is compressed, and its HighBit {bits.high} is not BitsStored {bits.stored} - 1; export it again"
        raise VolumeError(msg, reason="damaged")
    if image.stored > max(bits.allocated, 8):
        msg = f"{path}: is compressed with {image.stored} bits per pixel, its header says BitsAllocated "
        msg += f"{bits.allocated}; export it again"
        raise VolumeError(msg, reason="damaged")


def _check_values(values: np.ndarray, image: PixelBits, bits: PixelBits, path: Path, *, exact: bool) -> None:
    """Refuse what the header and the compressed image understand differently, where that changes a value."""
    if image.stored < bits.stored and image.signed != bits.signed:
        doubtful = (values >> (image.stored - 1)) & 1 == 1  # whether the highest bit is a sign is unknown
    elif image.stored > bits.stored and not exact:
        doubtful = ~bits.holds(values)  # bits beside the pixel survive no lossy compression
    else:
        return
    if doubtful.any():
        sign = ("unsigned", "signed")
        msg = f"{path}: is compressed with {image.stored} {sign[image.signed]} bits per pixel, its header says "
        msg += f"{bits.stored} {sign[bits.signed]}, so its values are uncertain; export it again"
        raise VolumeError(msg, reason="damaged")


def _image_bits(precision: int, *, signed: bool) -> PixelBits | None:
    allocated = next((width for width in (8, 16, 32) if 1 <= precision <= width), None)
    return None if allocated is None else PixelBits(allocated, precision, precision - 1, signed)


def _found_syntax(dataset: Dataset) -> UID:
    from pydicom import uid

    implicit, little = getattr(dataset, "original_encoding", (None, None))  # pydicom 3
    if implicit is None:
        implicit, little = dataset.read_implicit_vr, dataset.read_little_endian
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _bare(dataset: Dataset, bits: PixelBits) -> Dataset:
    """Return the pixels as a dataset of their own, with these bits and without patient data.

    It has no rescale tags either: GDCM applies them for some kinds of image and not for others.
    """
    import pydicom

    bare = pydicom.Dataset()
    for name in [*_FORMAT_TAGS, "PixelData"]:
        if name in dataset:
            bare[name] = dataset[name]
    bare.BitsAllocated, bare.BitsStored, bare.HighBit = bits.allocated, bits.stored, bits.high
    bare.PixelRepresentation = int(bits.signed)
    bare.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture: plain pixels, no geometry
    bare.SOPInstanceUID = pydicom.uid.generate_uid()
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    if _pydicom_is_2():  # later versions read these two off the syntax
        bare.is_little_endian, bare.is_implicit_VR = True, False
    return bare


def _decode(bare: Dataset) -> np.ndarray | None:
    """Return the values of a compressed image as it states them, or None where no decoder reads it."""
    import SimpleITK

    complete = {"write_like_original": False} if _pydicom_is_2() else {"enforce_file_format": True}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slice.dcm")
        bare.save_as(path, **complete)
        try:
            return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))
        except RuntimeError:
            pass
    try:
        return np.asarray(bare.pixel_array)
    except broken_dicom():
        return None


def _pydicom_is_2() -> bool:
    import pydicom

    return int(pydicom.__version__.split(".")[0]) < 3
