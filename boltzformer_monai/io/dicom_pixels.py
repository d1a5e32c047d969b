"""The pixels of one DICOM slice, decoded by pydicom or, where it lacks the codec, by SimpleITK (GDCM)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom_files import BROKEN_DICOM, SliceHeader, one_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Everything a codec needs to know, and nothing about the patient.
_PIXEL_TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)


def decode_slice(header: SliceHeader) -> np.ndarray:
    """Return the rescaled values of a slice, float32 (rows, columns).

    Raises:
        VolumeError: the pixel data are missing, cut off or compressed in a way that no decoder here knows.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(header.path, force=True)
        stored = _stored_values(dataset)
    except BROKEN_DICOM as error:
        msg = f"{header.path}: its pixels cannot be decoded ({one_line(error)}); is the file complete?"
        raise VolumeError(msg) from error
    if stored.shape != (header.rows, header.columns):
        msg = f"{header.path}: decodes to {stored.shape} pixels, its header says {(header.rows, header.columns)}"
        raise VolumeError(msg)
    # In double precision: MR slopes are fractions, and each slice may have its own.
    return (stored * np.float64(header.slope) + header.intercept).astype(np.float32)


def _stored_values(dataset: Dataset) -> np.ndarray:
    if "PixelData" not in dataset:  # also where the compressed data end early
        msg = "it has no complete pixel data"
        raise ValueError(msg)
    syntax = dataset.file_meta.get("TransferSyntaxUID")  # absent from old files without preamble
    try:
        return np.asarray(dataset.pixel_array)
    except BROKEN_DICOM as error:
        if syntax is None or not syntax.is_compressed:
            raise
        try:
            return _decode_with_itk(dataset)
        except RuntimeError:  # neither decoder's own text tells a missing codec from damaged data
            msg = f"neither pydicom nor SimpleITK can decode this {syntax.name}"
            raise ValueError(msg) from error


def _decode_with_itk(dataset: Dataset) -> np.ndarray:
    """Decode the stored values by way of a temporary file without patient data.

    The copy has no rescale tags either: GDCM applies them for some kinds of image and not for others.
    """
    import pydicom
    import SimpleITK

    bare = pydicom.Dataset()
    for name in _PIXEL_TAGS:
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
    return decoded[0] if decoded.ndim == 3 else decoded
