from __future__ import annotations

import dataclasses
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.findings import structured_report
from boltzformer_monai.findings.lesions import Lesion, find_lesions
from boltzformer_monai.findings.structured_report import ReportedTarget, check_can_be_report, write_structured_report
from boltzformer_monai.io.dicom.seg_writer import LESION, SegmentCode, write_dicom_seg
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.volume import Volume
from tests.needs import need_module, need_program

need_module("highdicom")

LIVER = SegmentCode("10200004", "Liver")
CODES = {
    "left kidney": SegmentCode("64033007", "Kidney", side="left"),
    "liver lesion": dataclasses.replace(LESION, site=LIVER),
    "left pleural effusion": SegmentCode("60046008", "Pleural effusion", side="left", category=LESION.category),
}
Place = tuple[Path, Volume, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A series, the scan, and masks of three targets."""
    image, _ = make_phantom("abdomen", seed=1, size=(36, 32, 5))
    folder = write_phantom_dicom(image, tmp_path_factory.mktemp("scan"), seed=1)
    grid = read_volume(folder)
    masks = {name: np.zeros(grid.shape, bool) for name in CODES}
    masks["left kidney"][15:20, 5:12, 2:5] = True
    masks["liver lesion"][2:9, 3:8, 1:3] = masks["liver lesion"][20:22, 20, 2] = True
    masks["left pleural effusion"][30, 28, 0] = True
    return folder, grid, masks


def _seg(path: Path, place: Place) -> Path:
    folder, grid, masks = place
    named = [(name, CODES[name], mask) for name, mask in masks.items()]
    write_dicom_seg(path, scan=folder, masks=named, grid=grid, algorithm="BoltzFormer", version="0")
    return path


def _targets(place: Place, *, segments: bool) -> list[ReportedTarget]:
    _, grid, masks = place
    return [
        ReportedTarget(name, find_lesions(mask, grid), CODES[name], number if segments else None)
        for number, (name, mask) in enumerate(masks.items(), 1)
    ]


def _write(path: Path, place: Place, targets: Sequence[ReportedTarget], **options: Any) -> Path:
    write_structured_report(
        path, scan=place[0], grid=place[1], targets=targets, algorithm="BoltzFormer", version="0.1", model="abcdef",
        **options,
    )  # fmt: skip
    return path


def objections(path: Path) -> list[str]:
    """What dciodvfy calls an error or warns of."""
    done = subprocess.run([need_program("dciodvfy", "dicom3tools"), str(path)], capture_output=True, text=True)
    return [line for line in done.stderr.splitlines() if line.startswith(("Error", "Warning"))]


def dumped(path: Path) -> list[list[str]]:
    """Numbers with their units of each measurement group, as dsrdump shows them."""
    done = subprocess.run([need_program("dsrdump", "dcmtk"), "+Pl", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    groups = done.stdout.split("Measurement Group")[1:]
    return [re.findall(r'NUM:.*?"\)="([^"]+)" \(([^,]+),UCUM', group) for group in groups]


def numbers(lesion: Lesion) -> list[tuple[float, str]]:
    found: list[tuple[float | None, str]] = [
        (lesion.volume_ml, "ml"), (lesion.long_axis_mm, "mm"), (lesion.short_axis_mm, "mm"), (lesion.diameter_mm, "mm"),
        (lesion.mean_hu, "[hnsf'U]"), (lesion.sd_hu, "[hnsf'U]"), (lesion.min_hu, "[hnsf'U]"),
        (lesion.max_hu, "[hnsf'U]"),
    ]  # fmt: skip
    if lesion.confidence is not None:
        found.append((100 * lesion.confidence, "%"))
    return [(value, unit) for value, unit in found if value is not None]


def _groups(path: Path) -> list[Any]:
    from highdicom.sr import srread

    content = srread(path).content
    return [*content.get_volumetric_roi_measurement_groups(), *content.get_image_measurement_groups()]


@pytest.mark.parametrize("segments", [True, False])
def test_other_programs_read_the_numbers_and_object_to_nothing(place: Place, tmp_path: Path, segments: bool) -> None:
    targets = _targets(place, segments=segments)
    sure = [dataclasses.replace(lesion, confidence=0.8125) for lesion in targets[0].lesions]
    targets[0] = dataclasses.replace(targets[0], lesions=sure)
    seg = _seg(tmp_path / "seg.dcm", place) if segments else None
    path = _write(tmp_path / "a.sr.dcm", place, targets, seg=seg, remarks=["in doubt: ü 病変"])
    assert objections(path) == []
    found = [[(float(value), unit) for value, unit in group] for group in dumped(path)]
    assert found == [numbers(lesion) for target in targets for lesion in target.lesions]


def test_findings_sites_and_references_as_the_seg_has_them(place: Place, tmp_path: Path) -> None:
    seg = _seg(tmp_path / "seg.dcm", place)
    plain = [dataclasses.replace(each, code=SegmentCode("1", "other")) for each in _targets(place, segments=True)]
    groups = _groups(_write(tmp_path / "a.sr.dcm", place, plain, seg=seg))
    assert [group.tracking_identifier for group in groups] == [
        "left kidney 1", "liver lesion 1", "liver lesion 2", "left pleural effusion 1",
    ]  # fmt: skip
    assert len({group.tracking_uid for group in groups}) == 4
    assert [group.finding_type.meaning for group in groups] == ["Kidney", "Lesion", "Lesion", "Pleural effusion"]
    sites = [
        [(site.value.meaning, site.laterality and site.laterality.meaning) for site in g.finding_sites] for g in groups
    ]
    assert sites == [[("Kidney", "Left")], [("Liver", None)], [("Liver", None)], []]
    evaluations = [  # after the category, which highdicom counts as one
        [(each.name.meaning, each.value.meaning) for each in g.get_qualitative_evaluations()][1:] for g in groups
    ]
    assert evaluations == [[], [], [], [("Laterality", "Left")]]
    header = pydicom.dcmread(seg)
    for group, number in zip(groups, (1, 2, 2, 3), strict=True):
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == header.SOPInstanceUID
        assert segment.referenced_segment_numbers == [number]


def test_lesions_of_segments_with_one_name_are_tracked_apart(place: Place, tmp_path: Path) -> None:
    folder, grid, masks = place
    named = [("Lesion", CODES["liver lesion"], mask) for mask in masks.values()]
    write_dicom_seg(tmp_path / "seg.dcm", scan=folder, masks=named, grid=grid, algorithm="a", version="0")
    targets = [dataclasses.replace(each, name="Lesion") for each in _targets(place, segments=True)]
    groups = _groups(_write(tmp_path / "a.sr.dcm", place, targets, seg=tmp_path / "seg.dcm"))
    assert len({group.tracking_uid for group in groups}) == len(groups) == 4
    assert [group.tracking_identifier for group in groups] == [
        "Lesion (segment 1) 1", "Lesion (segment 2) 1", "Lesion (segment 2) 2", "Lesion (segment 3) 1",
    ]  # fmt: skip


def test_without_a_seg_a_lesion_refers_to_its_images_and_lies_where_it_is(place: Place, tmp_path: Path) -> None:
    folder, grid, masks = place
    targets = _targets(place, segments=False)
    groups = _groups(_write(tmp_path / "a.sr.dcm", place, targets))
    heights = {
        header.SOPInstanceUID: float(header.ImagePositionPatient[2])
        for header in map(pydicom.dcmread, sorted(folder.iterdir()))
    }
    lesions = [lesion for target in targets for lesion in target.lesions]
    for group, lesion in zip(groups, lesions, strict=True):
        seen = {heights[str(image.referenced_sop_instance_uid)] for image in group.source_images}
        first, last = lesion.slices
        assert seen == {float(grid.affine[2, 2] * k + grid.affine[2, 3]) for k in range(first, last + 1)}
        items = group[0].ContentSequence
        (centre,) = [item for item in items if item.ValueType == "SCOORD3D"]
        x, y, z = lesion.centre_mm
        np.testing.assert_allclose(centre.GraphicData, (-x, -y, z), rtol=1e-5, atol=1e-3)
        axes = [each for each in items if each.ValueType == "NUM" and "axis" in each.name.meaning]
        for axis in axes:
            (image,) = [each for each in axis.ContentSequence if each.ValueType == "IMAGE"]
            height = heights[image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID]
            assert height == float(grid.affine[2, 2] * lesion.axial_slice + grid.affine[2, 3])


@pytest.mark.parametrize("codes", ["RAS", "SPL", "IRA"])
def test_any_order_of_the_axes_means_the_same_images(place: Place, tmp_path: Path, codes: str) -> None:
    folder, grid, masks = place
    turned = grid.reoriented(codes)
    for name, at in (("as read", grid), (codes, turned)):
        mask = Volume(masks["liver lesion"].astype(np.uint8), grid.affine).reoriented(codes if at is turned else "LPS")
        at = at if at is turned else grid.reoriented("LPS")
        target = ReportedTarget("liver lesion", find_lesions(mask.array > 0, at), CODES["liver lesion"])
        write_structured_report(
            tmp_path / f"{name}.dcm", scan=folder, grid=at, targets=[target], algorithm="a", version="0"
        )
    one, other = (
        [{str(image.referenced_sop_instance_uid) for image in group.source_images} for group in _groups(path)]
        for path in (tmp_path / "as read.dcm", tmp_path / f"{codes}.dcm")
    )
    assert one == other
    assert [len(each) for each in one] == [2, 1]


def test_nothing_found_is_a_valid_report_that_says_so(place: Place, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.sr.dcm", place, [ReportedTarget("liver lesion", [])])
    assert objections(path) == []
    assert dumped(path) == []
    assert _groups(path) == []
    texts = [item.TextValue for item in pydicom.dcmread(path).ContentSequence[-1].ContentSequence]
    assert texts == ["liver lesion: no lesions found"]


def test_no_more_of_the_patient_than_an_archive_needs(tmp_path: Path, place: Place) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    for file in sorted(place[0].iterdir()):
        dataset = pydicom.dcmread(file)
        for keyword in ("PatientComments", "AdditionalPatientHistory", "StudyDescription", "SeriesDescription",
                        "InstitutionName", "OperatorsName", "PatientAddress", "ImageComments", "Occupation",
                        "RequestedProcedureDescription", "EthnicGroup", "ProtocolName"):  # fmt: skip
            setattr(dataset, keyword, "SECRET")
        dataset.private_block(0x0011, "SECRET MAKER", create=True).add_new(1, "LO", "SECRET")
        dataset.save_as(folder / file.name)
    targets = _targets(place, segments=False)
    path = tmp_path / "a.sr.dcm"
    write_structured_report(path, scan=folder, grid=place[1], targets=targets, algorithm="a", version="0")
    assert b"SECRET" not in path.read_bytes()
    written, scan = pydicom.dcmread(path), pydicom.dcmread(next(folder.iterdir()))
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert written[keyword].value == scan[keyword].value
    assert [each.keyword for each in written if each.tag.is_private] == []


def test_of_very_many_lesions_the_largest_are_listed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(structured_report, "MOST", 20)
    targets = _targets(place, segments=False)
    small = dataclasses.replace(targets[2].lesions[0], volume_ml=1e-3)
    many = [dataclasses.replace(small, number=number) for number in range(1, 10_001)]
    started = time.monotonic()
    path = _write(tmp_path / "a.sr.dcm", place, [dataclasses.replace(targets[0], lesions=many), *targets[1:]])
    assert time.monotonic() - started < 30
    assert len(_groups(path)) == 20
    texts = [item.TextValue for item in pydicom.dcmread(path).ContentSequence[-1].ContentSequence]
    assert texts[0] == "left kidney: 10000 lesions, of which the 17 largest are listed here"
    assert texts[1] == "liver lesion: 2 lesions"
    count = 10_000 + sum(len(each.lesions) for each in targets[1:])
    assert f"a.sr.dcm: the DICOM SR lists the 20 largest of {count} lesions" in caplog.text


def test_what_cannot_be_referred_to_is_refused(place: Place, tmp_path: Path, write_bad: Callable[[Path], Path]) -> None:
    check_can_be_report(place[0])
    with pytest.raises(VolumeError, match="SOPInstanceUID"):
        check_can_be_report(write_bad(tmp_path / "scan"))
    target = ReportedTarget("liver", find_lesions(place[2]["left kidney"], place[1]), segment=9)
    with pytest.raises(VolumeError, match="no segment 9"):
        _write(tmp_path / "a.sr.dcm", place, [target], seg=_seg(tmp_path / "seg.dcm", place))
    with pytest.raises(VolumeError, match="cannot be written"):
        _write(tmp_path / "none" / "a.sr.dcm", place, [])
    assert not (tmp_path / "a.sr.dcm").exists()


@pytest.fixture
def write_bad(place: Place) -> Callable[[Path], Path]:
    """Writes the series with the same UID in all its files."""

    def write(folder: Path) -> Path:
        folder.mkdir()
        for file in place[0].iterdir():
            dataset = pydicom.dcmread(file)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
            dataset.save_as(folder / file.name)
        return folder

    return write
