"""What is compared in a follow-up: two annotations with their scans, and whether they are of one patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.findings.compare import CHANGE, Comparison, compare_targets, target_key
from boltzformer_monai.findings.measure import MeasuredTarget, measure_targets
from boltzformer_monai.findings.record import read_drawn
from boltzformer_monai.findings.registration import register
from boltzformer_monai.io.dicom.files import read_header
from boltzformer_monai.io.dicom.series import choose_series
from boltzformer_monai.io.read import is_dicom
from boltzformer_monai.io.volume import Volume

__all__ = ["TimePoint", "compare_time_points"]

_PATIENT = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
_DATES = ("AcquisitionDate", "SeriesDate", "StudyDate")


@dataclass(frozen=True)
class TimePoint:
    """An annotation and its scan.

    Attributes:
        labels: label map, DICOM SEG or RTSTRUCT.
        image: the scan.
        names: of label values; {}: the file's own.
        modality: of a scan that does not state it.
        series: of a folder with several.
        minimum_ml: of a lesion.
        minimum_mm: of a lesion.
        looked_for: names of targets that the annotation would hold if they had been found.
    """

    labels: Path
    image: Path
    names: Mapping[str, str] = field(default_factory=dict)
    modality: str | None = None
    series: str | None = None
    minimum_ml: float = 0.0
    minimum_mm: float = 0.0
    looked_for: Sequence[str] = ()

    def read(self) -> tuple[Volume, list[MeasuredTarget]]:
        """The scan and the measured targets.

        Raises:
            BoltzFormerError: one cannot be read, or they do not belong together.
        """
        scan, drawn = read_drawn(self.labels, self.image, names=self.names, modality=self.modality, series=self.series)
        targets = list(measure_targets(drawn, scan, minimum_ml=self.minimum_ml, minimum_mm=self.minimum_mm))
        found = {target_key(target.name) for target in targets}
        absent = [MeasuredTarget.absent(name, scan) for name in self.looked_for if target_key(name) not in found]
        return scan, targets + absent

    def header(self) -> dict[str, str]:
        """What the scan states of its patient and date; all are "" for a scan that is no DICOM."""
        names = (*_PATIENT, *_DATES)
        if not is_dicom(self.image):
            return dict.fromkeys(names, "")
        first = choose_series(self.image, self.series)[0]
        header = read_header(first.path, names)
        return {name: str(header.get(name) or "").strip() if header is not None else "" for name in names}


def compare_time_points(
    earlier: TimePoint,
    later: TimePoint,
    *,
    days: float | None = None,
    change: float = CHANGE,
    same_patient: bool = False,
) -> tuple[Comparison, tuple[Caveat, ...]]:
    """Read, register and compare two time points.

    Args:
        earlier: the one before.
        later: the one after.
        days: between them; default: by the dates in DICOM headers.
        change: share of the volume from which a lesion is grown.
        same_patient: the user vouches for it: pseudonyms of one patient may differ. Where neither the user nor the
            files state it, the scans must agree in detail; see :func:`.registration.register`.

    Returns:
        The comparison, and what must be known of it.

    Raises:
        VolumeError: the scans are of two patients, in the wrong order, or do not agree after registration.
        BoltzFormerError: a file cannot be read.
    """
    headers = earlier.header(), later.header()
    caveats = [] if same_patient else _check_patient(headers, (earlier.image, later.image))
    days = _days(headers, later.image) if days is None else days
    scan, targets = earlier.read()
    later_scan, later_targets = later.read()
    registration = register(scan, later_scan, same_patient=not caveats)
    result = compare_targets(targets, later_targets, (scan, later_scan), registration, days=days, change=change)
    return result, tuple(dict.fromkeys([*caveats, *scan.caveats, *later_scan.caveats]))


def _check_patient(headers: Sequence[Mapping[str, str]], images: Sequence[Path]) -> list[Caveat]:
    for name in _PATIENT:
        stated = [header[name] for header in headers]
        if all(stated) and stated[0] != stated[1]:
            msg = (
                f"{images[1]}: another patient than {images[0]} ({name} differs); "
                "if these are two pseudonyms of one patient, say --same-patient"
            )
            raise VolumeError(msg, reason="grid")
    if all(header["PatientID"] for header in headers):
        return []
    return [Caveat("unstated patient", "nothing in the files states that both scans are of one patient")]


def _days(headers: Sequence[Mapping[str, str]], later: Path) -> float | None:
    """Days between the scans by the most exact date that both state."""
    for name in _DATES:
        dates = [_date(header[name]) for header in headers]
        if dates[0] is not None and dates[1] is not None:
            days = (dates[1] - dates[0]).days
            if days < 0:
                raise VolumeError(f"{later}: is the earlier one by its {name}; swap the two", reason="grid")
            return float(days) or None
    return None


def _date(text: str) -> date | None:
    try:
        return datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None
