"""DICOM series of phantoms, and what an archive's DICOM SEG shows on them, read without this package."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom
from boltzformer_monai.io.read import read_volume, write_label_map
from tests.label.orthanc import Orthanc

NAMES = {"label_info": [{"name": "left kidney", "idx": 3}, {"name": "Böser Fleck", "idx": 7}]}
"""What 3D Slicer sends along with :func:`drawn`."""


def add_phantom(
    archive: Orthanc, folder: Path, kind: str, *, seed: int, slices: int = 8, without: int | None = None
) -> str:
    """Store a phantom, one slice of it missing if told so; returns its SeriesInstanceUID."""
    image, _ = make_phantom(kind, seed=seed, size=(48, 40, max(slices, 8)))
    write_phantom_dicom(image, folder, seed=seed)
    for file in sorted(folder.iterdir())[slices:]:
        file.unlink()
    if without is not None:
        sorted(folder.iterdir())[without].unlink()
    archive.add(folder)
    return str(pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID)


def stored(archive: Orthanc, *, modality: str) -> list[Any]:
    """All objects of a modality in the archive, by QIDO and WADO."""
    from dicomweb_client import DICOMwebClient

    session = None
    if archive.user:
        from dicomweb_client.session_utils import create_session_from_user_pass

        session = create_session_from_user_pass(*archive.user)
    client = DICOMwebClient(archive.url, session=session)
    found = []
    for each in client.search_for_series(search_filters={"Modality": modality}):
        study, series = each["0020000D"]["Value"][0], each["0020000E"]["Value"][0]
        found += client.retrieve_series(study, series)
    return found


def masks_by_highdicom(seg: Any, folder: Path, affine: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Segment label → boolean mask ``(I, J, K)`` in the axes of a volume of this affine (RAS+)."""
    import highdicom

    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(folder.glob("*.dcm"))]
    by_index = {}
    for each in slices:
        position = np.array([*each.ImagePositionPatient, 1.0], float) * [-1, -1, 1, 1]
        by_index[round((np.linalg.inv(affine) @ position)[2])] = str(each.SOPInstanceUID)
    uids = [by_index[index] for index in range(shape[2])]
    with io.BytesIO() as file:
        seg.save_as(file)
        file.seek(0)
        opened = highdicom.seg.segread(file)
    pixels = opened.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    labels = [str(each.SegmentLabel) for each in opened.SegmentSequence]
    return {label: pixels[..., number].transpose(2, 1, 0) > 0 for number, label in enumerate(labels)}


def drawn(store: Any, image: str, path: Path) -> tuple[Path, np.ndarray]:
    """A label map of two blocks on an image, stored back to front as other programs do."""
    volume = read_volume(store.image_folder(image))
    labels = np.zeros(volume.shape, np.uint8)
    labels[4:20, 6:18, 2:5] = 3
    labels[30:33, 20:22, 5] = 7
    turned = volume.reoriented("RAS")
    codes = "".join(volume.axis_codes)
    like = type(volume)(labels, volume.affine).reoriented("RAS")
    write_label_map(like.array, turned, path)
    assert codes != "RAS"
    return path, labels
