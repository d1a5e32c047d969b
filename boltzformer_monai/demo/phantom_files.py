"""Phantoms as files: NIfTI pairs and DICOM series."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.read import write_label_map
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.storage import atomic_path

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

__all__ = ["write_phantom_dicom", "write_phantom_nifti"]

_INTERCEPT = -1024


def write_phantom_nifti(image: Volume, label: Volume, folder: str | os.PathLike[str], stem: str) -> tuple[Path, Path]:
    """Write `<stem>.nii.gz` (int16 HU) and `<stem>_label.nii.gz` (uint8) into `folder`, which is created.

    Returns:
        The paths of the image and of the label map.

    Raises:
        VolumeError: image and label are not of one shape, or a file cannot be written.
    """
    import nibabel as nib

    if image.shape != label.shape:
        raise VolumeError(f"phantom {stem}: image {image.shape} and label {label.shape} differ in shape")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    image_path, label_path = target / f"{stem}.nii.gz", target / f"{stem}_label.nii.gz"
    nifti = nib.Nifti1Image(np.rint(image.array).astype(np.int16), image.affine)
    nifti.set_sform(image.affine, code=1)
    nifti.set_qform(image.affine, code=1)
    nifti.header.set_xyzt_units("mm")
    with atomic_path(image_path, durable=False) as temporary:
        nib.save(nifti, temporary)
    write_label_map(label.array, label, label_path)
    return image_path, label_path


def write_phantom_dicom(image: Volume, folder: str | os.PathLike[str], *, seed: int) -> Path:
    """Write a CT series of uncompressed axial slices, one file each, of the fictitious patient `PHANTOM^<seed>`.

    Identifiers are derived from the seed and the phantom's source, so the files are reproducible.

    Args:
        image: HU, any axis order; slices go from inferior to superior.
        folder: created; must be empty, so that two series are not mixed.
        seed: the patient's number.

    Returns:
        The folder.

    Raises:
        VolumeError: the folder is not empty, or a density lies outside −1024 … 64511 HU.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        msg = f"{target}: a DICOM series is written into an empty folder, and this one is not; choose another"
        raise VolumeError(msg)
    volume = image.reoriented("LPS")
    stored = np.rint(volume.array) - _INTERCEPT
    if stored.min() < 0 or stored.max() > np.iinfo(np.uint16).max:
        msg = f"{target}: HU from {volume.array.min():g} to {volume.array.max():g} do not fit a CT with intercept −1024"
        raise VolumeError(msg)
    pixels = stored.astype("<u2")
    identity = f"{image.source}:{seed}"
    for k in range(volume.shape[2]):
        _save(_slice_dataset(volume, pixels[:, :, k].T, k, seed, identity), target / f"slice_{k + 1:04d}.dcm")
    return target


def _uid(identity: str, role: str) -> UID:
    """A valid UID of the UUID kind (root 2.25), determined by identity and role."""
    from pydicom.uid import UID

    digest = hashlib.blake2b(f"{identity}|{role}".encode(), digest_size=16).digest()
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


def _slice_dataset(volume: Volume, pixels: np.ndarray, k: int, seed: int, identity: str) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    # RAS+ of nibabel to the LPS of DICOM: x and y change sign.
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    position = lps @ np.array([0.0, 0.0, k, 1.0])
    column_mm, row_mm, slice_mm = volume.spacing  # axis 0 runs along a row of the image
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(identity, f"image {k}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("boltzformer-monai", "implementation")
    dataset = Dataset()
    dataset.file_meta = meta
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": _uid(identity, "study"),
        "SeriesInstanceUID": _uid(identity, "series"),
        "FrameOfReferenceUID": _uid(identity, "frame of reference"),
        "PositionReferenceIndicator": "",
        "PatientName": f"PHANTOM^{seed}",
        "PatientID": f"PHANTOM-{seed}",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "PatientPosition": "HFS",
        "StudyDate": "20000101",
        "StudyTime": "000000",
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyDescription": "Synthetic phantom, not a patient",
        "SeriesDescription": "Synthetic phantom, not a patient",
        "SeriesNumber": 1,
        "InstanceNumber": k + 1,
        "AcquisitionNumber": 1,
        "Modality": "CT",
        "Manufacturer": "boltzformer-monai",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "KVP": "120",
        "ImagePositionPatient": [_decimal(v) for v in position[:3]],
        "ImageOrientationPatient": [_decimal(v) for v in (*lps[:3, 0] / column_mm, *lps[:3, 1] / row_mm)],
        "PixelSpacing": [_decimal(row_mm), _decimal(column_mm)],
        "SliceThickness": _decimal(slice_mm),
        "SliceLocation": _decimal(float(position[2])),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleIntercept": str(_INTERCEPT),
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "WindowCenter": "40",
        "WindowWidth": "400",
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.add_new(0x7FE00010, "OW", np.ascontiguousarray(pixels).tobytes())
    return dataset


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters, and no negative zero."""
    text = f"{value:.8f}"[:16].rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _save(dataset: Dataset, path: Path) -> None:
    import pydicom

    with atomic_path(path, durable=False) as temporary:
        if int(pydicom.__version__.split(".")[0]) >= 3:
            pydicom.dcmwrite(temporary, dataset, enforce_file_format=True)  # type: ignore[call-arg, unused-ignore]
        else:  # pydicom 2 takes the encoding from the data set and knows no enforce_file_format
            dataset.is_little_endian = True
            dataset.is_implicit_VR = False
            pydicom.dcmwrite(temporary, dataset, write_like_original=False)
