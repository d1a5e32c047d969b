"""Lesions as a DICOM structured report: Comprehensive 3D SR by template TID 1500, "Measurement Report" (PS3.16).

One measurement group a lesion: tracking identifier, finding and site in SNOMED CT, centre (SCOORD3D), volume, axes with
the image of their slice, diameter and intensities in UCUM units, and the algorithm. A group refers to a segment of the
DICOM SEG (TID 1411) where there is one, else to the images of the lesion (TID 1501). What has no number stands in the
"Qualitative Evaluations" as text: how many lesions each target has, none included, and what must be known of them.
Of very many lesions the largest :data:`MOST` are listed, and the text says so: no archive or viewer is made for more.

Patient and study are those that a DICOM SEG repeats, see :mod:`boltzformer_monai.io.dicom.seg_source`.
"""

from __future__ import annotations

import functools
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.findings.lesions import Lesion, acquisition_axis, tracking_uid
from boltzformer_monai.io.dicom.files import damage_as_volume_error, one_line
from boltzformer_monai.io.dicom.open import read_dicom
from boltzformer_monai.io.dicom.seg_source import SegSource, making, seg_source
from boltzformer_monai.io.dicom.seg_writer import SIDES, TISSUE, SegmentCode
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.storage import atomic_path

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["MOST", "ReportedTarget", "check_can_be_report", "shortened", "write_structured_report"]

_log = logging.getLogger(__name__)
MOST = 1000
"""Measurement groups in a report."""
_LO = 64  # characters of a short text in DICOM
_ANATOMY = ("91723000", "T-D000A")  # category of a segment that is an anatomical structure: SCT, SRT
_LATERALITIES = ("7771000", "24028007", "51440002", "G-A101", "G-A100", "G-A102")  # of CID 244: SCT, SRT
_PROCEDURES = {"CT": ("77477000", "Computed tomography"), "MR": ("113091000", "Magnetic resonance imaging")}
_IMAGING = ("363679005", "Imaging")
_SEG_TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SegmentSequence")


@dataclass(frozen=True)
class ReportedTarget:
    """A target and its lesions.

    Attributes:
        name: of the target.
        lesions: of it; none says that it was looked for and not found.
        code: of the finding, where no segment has codes.
        segment: its number in the DICOM SEG.
    """

    name: str
    lesions: Sequence[Lesion]
    code: SegmentCode = TISSUE
    segment: int | None = None


def check_can_be_report(scan: Path | Sequence[Path], *, series: str | None = None) -> None:
    """Check that :func:`write_structured_report` can refer to a scan, by its headers alone.

    Raises:
        VolumeError: it is no DICOM series, or one that no DICOM object can refer to.
    """
    source = seg_source(scan, series)
    with making("DICOM SR", source.grid.source, instead=".html"):
        _document(source, [], [], _Maker("BoltzFormer", "0", "")).save_as(io.BytesIO())


def shortened(lesions: int) -> str | None:
    """What to say of a report of so many lesions that it does not list all of them; ``None`` where it does."""
    return f"the DICOM SR lists the {MOST} largest of {lesions} lesions" if lesions > MOST else None


def write_structured_report(
    path: str | os.PathLike[str],
    *,
    scan: Path | Sequence[Path],
    grid: Volume,
    targets: Sequence[ReportedTarget],
    algorithm: str,
    version: str,
    model: str = "",
    series: str | None = None,
    seg: Path | None = None,
    remarks: Sequence[str] = (),
) -> None:
    """Write a report of lesions, atomically.

    Args:
        path: an existing file is replaced; its folder must exist.
        scan: what was measured on: a folder with one series, an enhanced multi-frame file, or all files of the series.
        grid: the scan as read, whose slices the lesions name; any order and flip of the series' own.
        targets: what was looked for, with lesions or without.
        algorithm: name of what made the masks or, where others made them, the measurements; with its ``version``.
        model: identifies the weights, e.g. the start of their hash.
        series: the SeriesInstanceUID, where the folder holds several.
        seg: DICOM SEG with the segments of the targets; their codes are taken from it.
        remarks: what a reader must know, one text each.

    Raises:
        VolumeError: the scan is no DICOM series, the SEG cannot be read or lacks a segment, or the file cannot be
            written.
    """
    target = Path(path)
    source = seg_source(scan, series)
    references = _References(source, grid, None if seg is None else _segment_header(seg))
    maker = _Maker(algorithm, version, model)
    listed = [replace(each, lesions=lesions) for each, lesions in zip(targets, _largest(targets), strict=True)]
    counts = [_count(*pair) for pair in zip(targets, listed, strict=True)]
    if (text := shortened(sum(len(each.lesions) for each in targets))) is not None:
        _log.warning("%s: %s, as the report itself says", target.name, text)
    texts = [("Finding", text) for text in counts] + [("Comment", text) for text in remarks]
    try:
        with making("DICOM SR", target, instead=".html"):
            titles = _titles(targets)
            groups = [
                group
                for each, title in zip(listed, titles, strict=True)
                for group in _groups(each, title, references, maker)
            ]
            dataset = _document(source, groups, texts, maker, references.seg)
            with atomic_path(target) as temporary:
                dataset.save_as(temporary)
    except OSError as error:
        msg = f"{target}: cannot be written ({one_line(error)}); does its folder exist and have room?"
        raise VolumeError(msg, reason="write") from error


@dataclass(frozen=True)
class _Maker:
    """What made the measurements."""

    algorithm: str
    version: str
    model: str


def _segment_header(seg: Path) -> Dataset:
    with damage_as_volume_error(seg):
        header = read_dicom(seg, tags=_SEG_TAGS, pixels=False)
        if any(keyword not in header for keyword in _SEG_TAGS):
            raise VolumeError(f"{seg}: is no DICOM SEG, which the report could refer to", reason="unsupported format")
    return header


class _References:
    """What of the study a lesion is seen in: images of its slices, and its segment."""

    def __init__(self, source: SegSource, grid: Volume, seg: Dataset | None) -> None:
        self.source = source
        self.seg = seg
        to_source = np.linalg.inv(source.grid.affine) @ grid.affine
        self.world_to_slice = np.linalg.inv(source.grid.affine)[2]
        along = to_source[2, :3]
        across = acquisition_axis(grid)
        others = np.delete(along * np.array(grid.shape), across)
        # Whether the lesions' slices are those of the series, and not others through an isotropic scan.
        self.same_slices = bool(np.abs(others).max() < 0.5)
        self.step, self.start = float(along[across]), float(to_source[2, 3])

    def segment(self, number: int) -> Dataset:
        """The segment's description in the SEG."""
        for item in self.seg.SegmentSequence if self.seg is not None else ():
            if item.get("SegmentNumber") == number:
                return item
        raise VolumeError(f"the DICOM SEG has no segment {number}, which the report is to refer to", reason="labels")

    def of_slice(self, lesion: Lesion) -> list[tuple[str, str, list[int] | None]]:
        """The image (SOP class, SOP instance, frames) of the slice of the axes; none where it cuts many images."""
        return self._images([self._index(lesion.axial_slice)]) if self.same_slices else []

    def of_lesion(self, lesion: Lesion) -> list[tuple[str, str, list[int] | None]]:
        """The images with a voxel of the lesion, or the one of its centre where its slices are no images."""
        if not self.same_slices:
            return self._images([round(float(self.world_to_slice @ (*lesion.centre_mm, 1)))])
        ends = sorted(self._index(index) for index in lesion.slices)
        return self._images(range(ends[0], ends[1] + 1))

    def _index(self, index: int) -> int:
        return round(self.step * index + self.start)

    def _images(self, slices: Iterable[int]) -> list[tuple[str, str, list[int] | None]]:
        order, images = self.source.order, self.source.images
        places = [order[min(max(index, 0), len(order) - 1)] for index in slices]
        if len(images) == 1 and len(order) > 1:
            return [(images[0].SOPClassUID, images[0].SOPInstanceUID, [place + 1 for place in places])]
        return [(images[place].SOPClassUID, images[place].SOPInstanceUID, None) for place in places]


def _largest(targets: Sequence[ReportedTarget]) -> list[list[Lesion]]:
    """The lesions of each target that are among the largest of all."""
    found: list[list[Lesion]] = [[] for _ in targets]
    every = [(index, lesion) for index, each in enumerate(targets) for lesion in each.lesions]
    for index, lesion in sorted(every, key=lambda pair: -pair[1].volume_ml)[:MOST]:
        found[index].append(lesion)
    return found


def _count(target: ReportedTarget, listed: ReportedTarget) -> str:
    number, shown = len(target.lesions), len(listed.lesions)
    text = f"{target.name}: {number or 'no'} lesion{'s' * (number != 1)}{'' if number else ' found'}"
    return text if shown == number else f"{text}, of which the {shown} largest are listed here"


def _titles(targets: Sequence[ReportedTarget]) -> list[str]:
    """The targets' names; of several with one name (segments that are one lesion each) with what tells them apart."""
    names = Counter(each.name for each in targets)
    return [
        each.name if names[each.name] == 1 else f"{each.name} (segment {each.segment or number})"
        for number, each in enumerate(targets, 1)
    ]


def _groups(target: ReportedTarget, title: str, references: _References, maker: _Maker) -> Iterator[Any]:
    """The measurement groups of a target, tracked by its title."""
    from highdicom import sr

    segment = None if references.seg is None or target.segment is None else references.segment(target.segment)
    codes = _Codes.of(target.code) if segment is None else _Codes.of_segment(segment)
    shared: dict[str, Any] = {
        "algorithm_id": sr.AlgorithmIdentification(
            maker.algorithm, maker.version, [f"model {maker.model}"] if maker.model else None
        ),
        **codes.arguments(),
    }
    if segment is not None and references.seg is not None:
        shared["referenced_segment"] = sr.ReferencedSegment(
            str(references.seg.SOPClassUID),
            str(references.seg.SOPInstanceUID),
            int(segment.SegmentNumber),
            source_series=sr.SourceSeriesForSegmentation(str(references.source.images[0].SeriesInstanceUID)),
        )
    frame_of_reference = str(references.source.images[0].FrameOfReferenceUID)
    for lesion in target.lesions:
        own: dict[str, Any] = {
            "tracking_identifier": sr.TrackingIdentifier(
                tracking_uid(str(references.source.images[0].SeriesInstanceUID), title, lesion.number),
                f"{title} {lesion.number}",
            ),
            "measurements": list(_measurements(lesion, references)),
        }
        if segment is not None:
            group: Any = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(**shared, **own)
        else:
            images = [sr.SourceImageForMeasurementGroup(*image) for image in references.of_lesion(lesion)]
            group = sr.MeasurementsAndQualitativeEvaluations(**shared, **own, source_images=images)
        x, y, z = lesion.centre_mm
        centre = sr.Scoord3DContentItem(
            name=_concept("111010", "Center", "DCM"),
            graphic_type="POINT",
            graphic_data=np.array([[-x, -y, z]]),  # LPS
            frame_of_reference_uid=frame_of_reference,
            relationship_type="CONTAINS",
        )
        group[0].ContentSequence.append(centre)
        yield group[0]


def _measurements(lesion: Lesion, references: _References) -> Iterator[Any]:
    from highdicom import sr

    millimetre = _concept("mm", "millimeter", "UCUM")
    images = [sr.SourceImageForMeasurement(*image) for image in references.of_slice(lesion)]
    yield sr.Measurement(_concept("118565006", "Volume"), lesion.volume_ml, _concept("ml", "milliliter", "UCUM"))
    for value, meaning, length in (
        ("103339001", "Long axis", lesion.long_axis_mm),
        ("103340004", "Short axis", lesion.short_axis_mm),
    ):
        yield sr.Measurement(_concept(value, meaning), length, millimetre, referenced_images=images or None)
    largest = _concept("56851009", "Maximum")
    yield sr.Measurement(_concept("81827009", "Diameter"), lesion.diameter_mm, millimetre, derivation=largest)
    hounsfield = _concept("[hnsf'U]", "Hounsfield unit", "UCUM")
    for number, derivation in (
        (lesion.mean_hu, _concept("373098007", "Mean")),
        (lesion.sd_hu, _concept("386136009", "Standard Deviation")),
        (lesion.min_hu, _concept("255605001", "Minimum")),
        (lesion.max_hu, largest),
    ):
        if number is not None:
            name = _concept("112031", "Attenuation Coefficient", "DCM")
            yield sr.Measurement(name, number, hounsfield, derivation=derivation)
    if lesion.confidence is not None:
        percent = _concept("%", "Percent", "UCUM")
        yield sr.Measurement(_concept("111012", "Certainty of Finding", "DCM"), _percent(lesion.confidence), percent)


def _percent(share: float) -> float:
    return float(f"{100 * share:.6g}")


@functools.cache
def _concept(value: str, meaning: str, scheme: str = "SCT") -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(value, scheme, meaning)


@dataclass(frozen=True)
class _Codes:
    """Coded concepts of a target.

    Attributes:
        category: anatomy, or a kind of finding.
        kind: the finding.
        sites: (location, laterality or None).
        side: laterality of a finding without a site.
    """

    category: Any
    kind: Any
    sites: Sequence[tuple[Any, Any]] = ()
    side: Any = None

    @classmethod
    def of(cls, code: SegmentCode) -> _Codes:
        """Of this package's code."""
        kind = _concept(code.value, code.meaning)
        side = None if code.side is None else _concept(*SIDES[code.side])
        sites = [] if code.site is None else [code.site]
        if code.category[0] in _ANATOMY:
            sites = [code]
        found = [
            (_concept(site.value, site.meaning), None if site.side is None else _concept(*SIDES[site.side]))
            for site in sites
        ]
        return cls(_concept(*code.category), kind, found, None if found else side)

    @classmethod
    def of_segment(cls, segment: Dataset) -> _Codes:
        """As a DICOM SEG has them."""
        category = _first(segment, "SegmentedPropertyCategoryCodeSequence")
        kind = _first(segment, "SegmentedPropertyTypeCodeSequence")
        if category is None or kind is None:
            return cls.of(TISSUE)
        types = segment.SegmentedPropertyTypeCodeSequence[0]
        side = _laterality(types, "SegmentedPropertyTypeModifierCodeSequence")
        regions = [
            (region, _laterality(item, "AnatomicRegionModifierSequence"))
            for item in segment.get("AnatomicRegionSequence") or []
            if (region := _coded(item)) is not None
        ]
        if str(category.value) in _ANATOMY and not regions:
            regions = [(kind, side)]
        return cls(category, kind, regions, None if regions else side)

    def arguments(self) -> dict[str, Any]:
        """For a measurement group of highdicom."""
        from highdicom import sr

        found: dict[str, Any] = {
            "finding_category": self.category,
            "finding_type": self.kind,
            "finding_sites": [sr.FindingSite(place, laterality=side) for place, side in self.sites],
        }
        if self.side is not None:
            found["qualitative_evaluations"] = [
                sr.QualitativeEvaluation(_concept("272741003", "Laterality"), self.side)
            ]
        return found


def _laterality(dataset: Dataset, keyword: str) -> Any:
    """The modifier that is a side; None for others, such as a kind of tissue."""
    code = _first(dataset, keyword)
    return code if code is not None and str(code.value) in _LATERALITIES else None


def _first(dataset: Dataset, keyword: str) -> Any:
    return next((code for item in dataset.get(keyword) or [] if (code := _coded(item)) is not None), None)


def _coded(item: Dataset) -> Any:
    """A code as a new concept, without what else the item holds; None where it is incomplete."""
    from highdicom.sr import CodedConcept

    value = next((item.get(name) for name in ("CodeValue", "LongCodeValue", "URNCodeValue") if item.get(name)), None)
    scheme, meaning = item.get("CodingSchemeDesignator"), item.get("CodeMeaning")
    return CodedConcept(str(value), str(scheme), str(meaning)[:_LO]) if value and scheme and meaning else None


def _document(
    source: SegSource,
    groups: Sequence[Any],
    texts: Sequence[tuple[str, str]],
    maker: _Maker,
    seg: Dataset | None = None,
) -> Any:
    """The SR of measurement groups, (concept, text) and references."""
    import highdicom
    from highdicom import sr
    from pydicom.uid import generate_uid

    first = source.images[0]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[maker.algorithm, maker.version, maker.model]),
        name=maker.algorithm,
        manufacturer_name="boltzformer-monai",
        model_name=maker.version,
    )
    observer = sr.ObserverContext(_concept("121007", "Device", "DCM"), device)
    procedure = _PROCEDURES.get(str(first.Modality), _IMAGING)
    # highdicom wants a group; the real ones take its place in the finished document, which copies its content deeply.
    place = sr.MeasurementsAndQualitativeEvaluations(sr.TrackingIdentifier(generate_uid(), "place"))
    report = sr.MeasurementReport(sr.ObservationContext(observer), _concept(*procedure), [place])
    dataset = sr.Comprehensive3DSR(
        evidence=[*source.images, *([] if seg is None else [seg])],
        content=report,
        series_instance_uid=highdicom.UID(),
        series_number=source.series_number,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="boltzformer-monai",
        manufacturer_model_name=maker.algorithm[:_LO],
        software_versions=maker.version[:_LO],
        device_serial_number=maker.model[:_LO] or "unknown",
        series_description="Lesion measurements",
        is_complete=True,
    )
    dataset.SpecificCharacterSet = "ISO_IR 192"  # prompts come in any script, whatever the scan's texts are written in
    # All is of the study and belongs to what was asked for; an older highdicom puts what nothing refers to elsewhere.
    if "PertinentOtherEvidenceSequence" in dataset:
        dataset.CurrentRequestedProcedureEvidenceSequence = dataset.PertinentOtherEvidenceSequence
        del dataset.PertinentOtherEvidenceSequence
    measured = dataset.ContentSequence[-1]
    if groups:
        measured.ContentSequence = sr.ContentSequence(groups)
    else:
        del dataset.ContentSequence[-1]  # a container without content is none
    if texts:
        evaluated = sr.ContainerContentItem(
            name=_concept("C0034375", "Qualitative Evaluations", "UMLS"), relationship_type="CONTAINS"
        )
        names = {"Finding": _concept("121071", "Finding", "DCM"), "Comment": _concept("121106", "Comment", "DCM")}
        evaluated.ContentSequence = sr.ContentSequence(
            [sr.TextContentItem(names[name], text, relationship_type="CONTAINS") for name, text in texts]
        )
        dataset.ContentSequence.append(evaluated)
    return dataset
