"""One scan with its annotation, as recipes list them and as slicing takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from boltzformer_monai.data.windows import GreyScale
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.grids import GRID_TOLERANCE
from boltzformer_monai.io.pictures import is_picture, read_picture
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.scan_list import files_of
from boltzformer_monai.io.segmentation import Segmentation, read_segmentation
from boltzformer_monai.io.volume import Volume


class Annotation(Protocol):
    """Something that draws targets on a scan; must be picklable, because scans are sliced in other processes."""

    def draw_on(self, image: Volume, *, tolerance: float = GRID_TOLERANCE) -> Segmentation:
        """Return the annotation on the grid of the scan; one with a grid of its own may lie off by the tolerance.

        Raises:
            VolumeError: it cannot be read, or does not lie on the scan's grid.
            DatasetError: its names and its values contradict each other.
        """
        ...

    def files(self) -> tuple[Path, ...]:
        """Return the files that it is made of."""
        ...


@dataclass(frozen=True)
class LabelFile:
    """An annotation that is one file: a label map, overlapping layers, DICOM SEG or RTSTRUCT.

    ``names`` are value → name; None takes the names that the file carries.
    """

    path: Path
    names: Mapping[str, str] | None = None

    def draw_on(self, image: Volume, *, tolerance: float = GRID_TOLERANCE) -> Segmentation:
        """Return the annotation on the grid of the scan."""
        found = read_segmentation(self.path, image, tolerance=tolerance)
        return found if self.names is None else found.named(self.names)

    def files(self) -> tuple[Path, ...]:
        """Return the file."""
        return (self.path,)


@dataclass(frozen=True)
class Case:
    """One scan to be sliced. Picklable.

    Attributes:
        volume_id: id in the slice data set; from a public data set the published one, e.g. ``"hippocampus_001"``.
        patient: identity of the patient (only its pseudonym is stored).
        image: path of the scan: a file or a DICOM folder.
        annotation: what is drawn on it, None for a scan without targets.
        site: body site, ``""`` when unknown.
        modality: ``"CT"`` or ``"MR"``, of a picture also ``"other"``; None leaves it to the DICOM header.
        series: SeriesInstanceUID, where a DICOM folder holds several.
        channel: which channel of a four-dimensional NIfTI scan, None for an ordinary one.
        split: pins the patient to ``"train"``, ``"val"`` or ``"test"``; None: drawn.
        public: whether ids are published ones, which a recipe must know for certain; those of other scans are hashed.
        window: how the data set defines grey values; None chooses by modality and site.
        files: the DICOM files of the series, where its folder holds others too; empty takes all of the folder.
        problem: why it cannot be sliced, where listing it has shown that already; one line. Reading it raises that.
        reason: the kind of the problem, of :data:`~boltzformer_monai.errors.REASONS`.
    """

    volume_id: str
    patient: str
    image: Path
    annotation: Annotation | None
    site: str
    modality: str | None = None
    series: str | None = None
    channel: int | None = None
    split: str | None = None
    public: bool = False
    window: GreyScale | None = None
    files: tuple[Path, ...] = ()
    problem: str = ""
    reason: str = "layout"

    def read_image(self, *, tilt: str = "refuse") -> Volume:
        """Read the scan; ``tilt`` as in :func:`~boltzformer_monai.io.read.read_volume`.

        Raises:
            VolumeError: it cannot be read; the message names its path.
        """
        if self.problem:
            raise VolumeError(self.problem, reason=self.reason)
        if is_picture(self.image):
            return read_picture(self.image, self.modality or "unknown")
        return read_volume(
            self.image, modality=self.modality, series=self.series, files=self.files, channel=self.channel, tilt=tilt
        )


def used_files(case: Case) -> list[Path]:
    """Return the files that a case is read from."""
    places = [*(case.files or (case.image,)), *(case.annotation.files() if case.annotation else ())]
    return [path for place in places for path in files_of(place)]
