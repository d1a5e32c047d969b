"""LIDC-IDRI: nodules in chest CT, outlined by up to four readers who did not have to agree.

Layout as published: ``LIDC-IDRI-0001/<study>/<series>/*.dcm`` and, in the folder of a CT series, one XML file with its
reading sessions (XML files that lie elsewhere are found by the series they name). Only CT series with readings are
listed; the chest X-rays of some patients are not.

The target is "lung nodule": a voxel belongs to it when at least ``agreement`` readers (2 of 4 by default)
drew a nodule of 3 mm or more over it. So drawings of different readers that overlap are one nodule, seen by several.
A scan in which nobody, or too few readers, drew anything is a scan without nodules.

Only scans of patients called ``LIDC-IDRI-0001`` and so on, by folder or PatientID, keep that name.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boltzformer_monai.errors import ConfigError, DatasetError, VolumeError
from boltzformer_monai.io.dicom.files import damage_as_volume_error
from boltzformer_monai.io.dicom.open import read_dicom
from boltzformer_monai.io.folder_tree import read_tree
from boltzformer_monai.io.grids import GRID_TOLERANCE
from boltzformer_monai.io.orientation import LPS_TO_RAS
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.recipes import Option
from boltzformer_monai.slicing.recipes.lidc_xml import Outline, fill_outline, read_readings, read_series_uid

logger = logging.getLogger(__name__)

OPTIONS = (Option("agreement", "2", "how many of the four readers must have drawn a voxel", ("1", "2", "3", "4")),)

TARGET = "lung nodule"
_PUBLISHED = re.compile(r"LIDC-IDRI-\d{4}")
# In columns, rows and slices: what still counts as the very pixel and slice, given that positions are never quite even.
_SAME_PLACE = (0.5, 0.5, 0.25)


@dataclass(frozen=True)
class LidcConsensus:
    """What at least ``agreement`` (1 to 4) readers drew, by the XML file ``path``.

    The headers in the ``folder`` of the CT series give the place of each slice; ``series`` is its SeriesInstanceUID.
    """

    path: Path
    folder: Path
    series: str
    agreement: int

    def draw_on(self, image: Volume, *, tolerance: float = GRID_TOLERANCE) -> Segmentation:  # noqa: ARG002
        """Return the consensus, value 1, on the grid of the CT, whose first two axes are the DICOM columns and rows.

        Raises:
            DatasetError: the XML is broken, about another series, or has too few readers.
            VolumeError: an outline lies on no slice of the scan.
        """
        readings = read_readings(self.path)
        if readings.series and self.series and readings.series != self.series:
            raise DatasetError(f"{self.path}: is about another series than {self.folder}")
        if len(readings.readers) < self.agreement:
            msg = f"{self.path}: has {len(readings.readers)} readers, an agreement of {self.agreement} is impossible"
            raise DatasetError(msg)
        positions = _slice_positions(self.folder)
        votes = np.zeros(image.shape, np.uint8)
        for nodules in readings.readers:
            drawn: dict[int, np.ndarray] = {}  # by slice: two nodules of one reader that touch are one vote
            for nodule in nodules:
                for index, mask in self._fill(nodule, image, positions).items():
                    drawn[index] = drawn[index] | mask if index in drawn else mask
            for index, mask in drawn.items():
                votes[:, :, index] += mask
        label = Volume((votes >= self.agreement).astype(np.uint8), image.affine, source=str(self.path))
        return Segmentation(label, {"1": TARGET})

    def files(self) -> tuple[Path, ...]:
        """Return the XML file."""
        return (self.path,)

    def _fill(
        self, nodule: tuple[Outline, ...], image: Volume, positions: dict[str, np.ndarray]
    ) -> dict[int, np.ndarray]:
        """Return the masks (columns, rows) of one nodule by slice: its outlines filled, then its holes cut out."""
        masks: dict[int, np.ndarray] = {}
        for outline in sorted(nodule, key=lambda outline: not outline.included):
            index = self._slice_of(outline, image, positions)
            try:
                filled = fill_outline(outline, image.shape[:2])
            except ValueError as error:
                msg = f"{self.path}: {error}; it is not the annotation of this scan"
                raise VolumeError(msg, reason="grid") from None
            mask = masks.setdefault(index, np.zeros(image.shape[:2], bool))
            masks[index] = mask | filled if outline.included else mask & ~filled
        return masks

    def _slice_of(self, outline: Outline, image: Volume, positions: dict[str, np.ndarray]) -> int:
        """Return the slice (index on the third axis) that an outline was drawn on."""
        position = positions.get(outline.image_uid)
        if position is None:  # only the z that the XML repeats is left; LIDC-IDRI is axial throughout
            position = np.append(image.affine[:2, 3] * LPS_TO_RAS[:2], outline.z)
        voxel = np.linalg.solve(image.affine, np.append(position * LPS_TO_RAS, 1.0))[:3]
        index = round(float(voxel[2])) if np.isfinite(voxel).all() else -1
        # The corner of the slice must be a corner of the grid, or columns and rows would mean other pixels.
        if not 0 <= index < image.shape[2] or (np.abs(voxel - (0, 0, index)) > _SAME_PLACE).any():
            msg = f"{self.path}: has an outline at z {outline.z:g} mm, where {self.folder} has no slice"
            raise VolumeError(msg, reason="grid")
        return index


def cases(folder: Path, *, modality: str | None, site: str | None, channel: int | None, agreement: str) -> list[Case]:
    """List the CT series that have readings, of a folder with patients or of one patient.

    Raises:
        DatasetError: there is no CT series with readings.
        ConfigError: a setting does not fit.
    """
    if channel is not None or modality not in (None, "CT"):
        raise ConfigError("LIDC-IDRI is CT without channels; leave --modality and --channel out")
    folders = _folders(folder)
    elsewhere = {read_series_uid(xml): xml for _, scans, xmls in folders if not scans for xml in xmls}  # "": of no CT
    found = []
    for place, scans, xmls in folders:
        if not scans:
            continue
        kind, patient, series = _first_header(scans[0])
        own = [xml for xml in xmls if len(xmls) == 1 or read_series_uid(xml) == series]
        xml = own[0] if own else elsewhere.get(series) if series else None
        if xml is not None and kind in ("CT", ""):  # a damaged file is still a scan: one that fails when it is read
            named = next((part for part in reversed(place.parts) if _PUBLISHED.fullmatch(part)), patient)
            annotation = LidcConsensus(xml, place, series, int(agreement))
            found.append((named or place.name, place, annotation))
    if not found:
        raise DatasetError(f"{folder}: holds no CT series (folders of .dcm files) with an XML of reading sessions")
    counts, numbers = Counter(patient for patient, *_ in found), Counter[str]()
    listed = []
    for patient, place, annotation in found:
        numbers[patient] += 1
        volume_id = patient if counts[patient] == 1 else f"{patient}_{numbers[patient]}"
        public = bool(_PUBLISHED.fullmatch(patient))
        listed.append(Case(volume_id, patient, place, annotation, site or "chest", modality="CT", public=public))
    return listed


def _folders(folder: Path) -> list[tuple[Path, list[Path], list[Path]]]:
    """Return every folder with its DICOM and its XML files, sorted."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give the one with LIDC-IDRI-0001 and so on")
    found = []
    for place, names in read_tree(folder).folders:
        files = [place / name for name in names]
        scans, xmls = ([file for file in files if file.suffix.lower() == suffix] for suffix in (".dcm", ".xml"))
        found.append((place, scans, xmls))
    return sorted(found)


def _first_header(path: Path) -> tuple[str, str, str]:
    """Return modality, PatientID and SeriesInstanceUID of a file; "" for what cannot be read."""
    tags = ["Modality", "PatientID", "SeriesInstanceUID"]
    try:
        with damage_as_volume_error(path):
            header = read_dicom(path, tags=tags, pixels=False, force=False)
            kind, patient, series = (str(header.get(tag) or "") for tag in tags)
    except VolumeError as error:
        logger.warning("%s", error)
        return "", "", ""
    return kind, patient, series


def _slice_positions(folder: Path) -> dict[str, np.ndarray]:
    """Return SOPInstanceUID → position (mm, LPS) of the first pixel's centre, from the headers of the series."""
    positions = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() == ".dcm"):
        with damage_as_volume_error(path):
            header = read_dicom(path, tags=["SOPInstanceUID", "ImagePositionPatient"], pixels=False, force=False)
            positions[str(header.SOPInstanceUID)] = np.array(header.ImagePositionPatient, dtype=np.float64)
    return positions
