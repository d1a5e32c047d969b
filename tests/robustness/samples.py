"""Small sound scans in every format that is read, as bytes, for tests that spoil them."""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from typing import Any

import numpy as np

SHAPE = (13, 17, 19)
ARRAY = np.random.default_rng(0).integers(-900, 900, SHAPE).astype("<i2")
ARRAY.flags.writeable = False
_TURN = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = _TURN * (-0.75, 0.875, 2.5), (-60.5, 20.25, 7.0)
AFFINE.flags.writeable = False

Files = dict[str, bytes]
"""File name → content; the first is the one to read."""


def nifti(*, version: int = 1, pair: bool = False, compressed: bool = False, codes: tuple[int, int] = (1, 1)) -> Files:
    """Return a NIfTI image; ``codes`` are those of sform and qform."""
    import nibabel

    kinds = {(1, False): nibabel.Nifti1Image, (2, False): nibabel.Nifti2Image}
    kinds |= {(1, True): nibabel.Nifti1Pair, (2, True): nibabel.Nifti2Pair}
    image = kinds[version, pair](ARRAY, AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE if codes[0] else None, code=codes[0])
    image.set_qform(AFFINE if codes[1] else None, code=codes[1])
    files = {key: io.BytesIO() for key in image.file_map}
    for key, stream in files.items():
        image.file_map[key].fileobj = stream
    image.to_file_map()
    if pair:
        return {"scan.hdr": files["header"].getvalue(), "scan.img": files["image"].getvalue()}
    raw = files["image"].getvalue()
    return {"scan.nii.gz": gzip.compress(raw, mtime=0)} if compressed else {"scan.nii": raw}


def nrrd(*, compressed: bool = False, detached: bool = False) -> Files:
    """Return an NRRD image in RAS."""
    vectors = " ".join("(" + ",".join(f"{value!r}" for value in column.tolist()) + ")" for column in AFFINE[:3, :3].T)
    lines = ["NRRD0004", "# made here", "type: short", "dimension: 3", "space: right-anterior-superior"]
    lines += ["sizes: 13 17 19", f"space directions: {vectors}", "kinds: domain domain domain", "endian: little"]
    lines += [f"encoding: {'gzip' if compressed else 'raw'}", "space origin: (-60.5,20.25,7.0)"]
    voxels = ARRAY.tobytes(order="F")
    voxels = gzip.compress(voxels, mtime=0) if compressed else voxels
    if detached:
        return {"scan.nhdr": "\n".join([*lines, "data file: scan.raw", ""]).encode(), "scan.raw": voxels}
    return {"scan.nrrd": "\n".join([*lines, "", ""]).encode() + voxels}


def metaimage(*, compressed: bool = False, detached: bool = False) -> Files:
    """Return a MetaImage, whose world is LPS."""
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    voxels = ARRAY.tobytes(order="F")
    voxels = zlib.compress(voxels) if compressed else voxels
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed),
        **({"CompressedDataSize": str(len(voxels))} if compressed else {}),
        "TransformMatrix": " ".join(f"{value!r}" for value in (lps[:3, :3] / spacing).T.ravel().tolist()),
        "Offset": " ".join(f"{value!r}" for value in lps[:3, 3].tolist()),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": " ".join(f"{value!r}" for value in spacing.tolist()),
        "DimSize": "13 17 19",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "scan.raw" if detached else "LOCAL",
    }
    header = "".join(f"{key} = {value}\n" for key, value in fields.items()).encode()
    return {"scan.mhd": header, "scan.raw": voxels} if detached else {"scan.mha": header + voxels}


def ct_slice(index: int, *, syntax: str = "explicit") -> Any:
    """Return one slice of a classic CT series as a pydicom data set.

    Args:
        index: the slice.
        syntax: ``"explicit"``, ``"implicit"``, ``"rle"`` or ``"deflated"``.
    """
    import pydicom
    from pydicom import uid

    syntaxes = {"implicit": uid.ImplicitVRLittleEndian, "deflated": uid.DeflatedExplicitVRLittleEndian}
    dataset = _dataset("1.2.840.10008.5.1.4.1.1.2", syntaxes.get(syntax, uid.ExplicitVRLittleEndian), index)
    dataset.is_implicit_VR = syntax == "implicit"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber = index + 1
    dataset.PixelSpacing, dataset.SliceThickness = ["0.875", "0.75"], "2.5"
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.ImagePositionPatient = ["-60.5", "20.25", str(7 + 2.5 * index)]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "2", "-1000", "HU"
    dataset.PixelData = ARRAY[:, :, index].T.tobytes()
    if syntax == "rle":
        dataset.compress(pydicom.uid.RLELossless, ARRAY[:, :, index].T.copy())
    return dataset


def enhanced_ct(frames: int = 4) -> Any:
    """Return a multi-frame CT whose positions stand in its functional groups."""
    import pydicom
    from pydicom import uid

    def item(**fields: Any) -> pydicom.Dataset:
        made = pydicom.Dataset()
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    dataset = _dataset("1.2.840.10008.5.1.4.1.1.2.1", uid.ExplicitVRLittleEndian, 0)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = frames
    orientation = item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])
    values = item(RescaleSlope="2", RescaleIntercept="-1000", RescaleType="HU")
    measures = item(PixelSpacing=["0.875", "0.75"], SliceThickness="2.5")
    groups = {"PixelMeasuresSequence": [measures], "PixelValueTransformationSequence": [values]}
    shared = item(PlaneOrientationSequence=[orientation], **groups)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[item(InStackPositionNumber=index + 1, StackID="1")],
            PlanePositionSequence=[item(ImagePositionPatient=["-60.5", "20.25", str(7 + 2.5 * index)])],
        )
        for index in range(frames)
    ]
    dataset.PixelData = ARRAY[:, :, :frames].tobytes(order="F")
    return dataset


def dicom_bytes(dataset: Any) -> bytes:
    """Return a data set as a file, however wrong its values are."""
    import pydicom

    stream, mode = io.BytesIO(), pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.save_as(stream, write_like_original=False)
    finally:
        pydicom.config.settings.writing_validation_mode = mode
    return stream.getvalue()


def _dataset(sop_class: str, syntax: str, index: int) -> Any:
    import pydicom

    dataset = pydicom.Dataset()
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.4.{index + 1}"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = "1.2.3.4", "1.2.3", "CT"
    dataset.FrameOfReferenceUID, dataset.PatientID = "1.2.3.9", "phantom"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = SHAPE[1], SHAPE[0], 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    return dataset
