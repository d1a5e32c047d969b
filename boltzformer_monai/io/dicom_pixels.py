"""The pixels of DICOM slices, decoded by pydicom or, where it lacks the codec, by SimpleITK (GDCM)."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom_files import SliceHeader, broken_dicom, one_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

# Everything a codec needs to know, and nothing about the patient.
_FORMAT_TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation",
]  # fmt: skip
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"  # of a fragment, and after the last
_VALUE_TAGS = ["PixelData", "FloatPixelData", "DoubleFloatPixelData"]


def decode_slices(slices: Sequence[SliceHeader]) -> np.ndarray:
    """Return the rescaled values of slices of one size, float32 (slices, rows, columns); each file is decoded once.

    Raises:
        VolumeError: pixel data are missing, cut off, damaged, or compressed in a way that no decoder here knows.
    """
    by_file: dict[Path, list[int]] = {}
    for index, header in enumerate(slices):
        by_file.setdefault(header.path, []).append(index)
    stack = None
    for indices in by_file.values():
        frames = _decode_file(slices[indices[0]])
        if stack is None:  # only now: a damaged header may ask for more memory than there is
            stack = np.empty((len(slices), *frames.shape[1:]), dtype=np.float32)
        for index in indices:
            scale = slices[index].geometry
            # In double precision: MR slopes are fractions, and each slice may have its own.
            with np.errstate(over="ignore"):  # the caller refuses infinite values
                stack[index] = frames[slices[index].frame or 0] * np.float64(scale.slope) + scale.intercept
    if stack is None:
        msg = "there are no slices to decode"
        raise ValueError(msg)
    return stack


def _decode_file(header: SliceHeader) -> np.ndarray:
    """Return the stored values of all frames of a file (frames, rows, columns)."""
    import pydicom

    try:
        dataset = pydicom.dcmread(header.path, force=True, specific_tags=_FORMAT_TAGS + _VALUE_TAGS)
        if _is_cut_off(dataset):
            msg = f"{header.path}: its pixel data are missing or end early (truncated); copy or export the file again"
            raise VolumeError(msg, reason="truncated")
        stored = _stored_values(dataset, header.path)
    except broken_dicom() as error:
        msg = f"{header.path}: its pixels cannot be decoded ({one_line(error)}); is the file complete?"
        raise VolumeError(msg, reason="truncated" if isinstance(error, EOFError) else "damaged") from error
    shape = (header.frames, header.rows, header.columns)
    if stored.shape != shape and (header.frames != 1 or stored.shape != shape[1:]):
        msg = f"{header.path}: decodes to {stored.shape} pixels, its header says {shape}; the file is damaged"
        raise VolumeError(msg, reason="damaged")
    return stored.reshape(shape)


def _is_cut_off(dataset: Dataset) -> bool:
    values = next((dataset[name].value for name in _VALUE_TAGS if name in dataset), None)
    if not values:  # pydicom leaves compressed data out altogether where they end early
        return True
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and (not syntax.is_transfer_syntax or syntax.is_compressed):
        return not _fragments_are_whole(values)
    samples = int(dataset.get("SamplesPerPixel", 1)) * int(dataset.get("NumberOfFrames") or 1)
    return len(values) * 8 < dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated


def _fragments_are_whole(data: bytes) -> bool:
    """Tell whether compressed data are items, each as long as it says; GDCM would allocate what a false one asks."""
    at = 0
    while at + 8 <= len(data):
        tag, length = struct.unpack_from("<4sI", data, at)
        if tag != _ITEM:
            return tag == _END
        at += 8 + length
    return at <= len(data)


def _stored_values(dataset: Dataset, path: Path) -> np.ndarray:
    from pydicom import uid

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # old files without a preface; the reader has found out by itself
        dataset.file_meta.TransferSyntaxUID = syntax = _found_syntax(dataset)
    try:
        return np.asarray(dataset.pixel_array)
    except broken_dicom() as error:
        if syntax.is_transfer_syntax and not syntax.is_compressed:
            raise
        # Neither decoder's own text tells a missing codec from damaged data; GDCM has all of these.
        common = (uid.JPEGTransferSyntaxes, uid.JPEGLSTransferSyntaxes, uid.JPEG2000TransferSyntaxes, [uid.RLELossless])
        known = any(syntax in family for family in common)
        try:
            return _decode_with_itk(dataset)
        except RuntimeError:
            msg = f"{path}: neither pydicom nor SimpleITK can decode its pixels ({syntax.name}); "
            msg += "is the file complete?" if known else "convert it to an uncompressed DICOM file or to NIfTI"
            raise VolumeError(msg, reason="damaged" if known else "codec") from error


def _found_syntax(dataset: Dataset) -> UID:
    from pydicom import uid

    implicit, little = getattr(dataset, "original_encoding", (None, None))  # pydicom 3
    if implicit is None:
        implicit, little = dataset.read_implicit_vr, dataset.read_little_endian
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _decode_with_itk(dataset: Dataset) -> np.ndarray:
    """Decode the stored values, (frames, rows, columns), by way of a temporary file without patient data.

    The copy has no rescale tags either: GDCM applies them for some kinds of image and not for others.
    """
    import pydicom
    import SimpleITK

    bare = pydicom.Dataset()
    for name in [*_FORMAT_TAGS, "PixelData"]:
        if name in dataset:
            bare[name] = dataset[name]
    bare.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture: plain pixels, no geometry
    bare.SOPInstanceUID = pydicom.uid.generate_uid()
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    if int(pydicom.__version__.split(".")[0]) < 3:  # later versions read these two off the syntax
        bare.is_little_endian, bare.is_implicit_VR = True, False
        complete = {"write_like_original": False}
    else:
        complete = {"enforce_file_format": True}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slice.dcm")
        bare.save_as(path, **complete)
        decoded = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return decoded[None] if decoded.ndim == 2 else decoded
