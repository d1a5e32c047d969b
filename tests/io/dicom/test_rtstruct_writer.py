from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom import rtstruct_writer
from boltzformer_monai.io.dicom.rtstruct_writer import check_can_be_rtstruct, write_rtstruct
from boltzformer_monai.io.dicom.seg_writer import LESION, SegmentCode
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.segmentation import read_segmentation
from boltzformer_monai.io.volume import Volume
from tests.io.conftest import FileWriter, SeriesWriter
from tests.label.orthanc import orthanc
from tests.needs import need_program

KIDNEY = SegmentCode("64033007", "Kidney", side="left")
ROW, COLUMN = np.array([0.96, 0.28, 0.0]), np.array([-0.168, 0.576, 0.8])
NORMAL = np.cross(ROW, COLUMN)
Masks = Sequence[tuple[str, SegmentCode | None, np.ndarray]]


def _complete(dataset: Any, index: int) -> None:
    dataset.StudyInstanceUID = "1.2.3.4"


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.10g}") for value in values)


@pytest.fixture
def oblique(write_series: SeriesWriter) -> Path:
    stack = np.arange(5 * 9 * 8).reshape(5, 9, 8)
    cosines, step = _rounded(np.concatenate([ROW, COLUMN])), _rounded(2.5 * NORMAL)
    return write_series(stack, cosines=cosines, step=step, change=_complete)[0].parent


def _write(path: Path, scan: Path | Sequence[Path], masks: Masks, grid: Volume, **changes: Any) -> int:
    return write_rtstruct(path, scan=scan, masks=masks, grid=grid, algorithm="BoltzFormer", version="0", **changes)


def _masks(volume: Volume) -> Masks:
    """A ring with an island, touched at a corner, and a row at the edge; voxels inside it, and one in a corner."""
    first, second = (np.zeros(volume.shape, bool) for _ in range(2))
    first[1:6, 2:7, 1:3] = True
    first[2:5, 3:6, 1] = False
    first[3, 4, 1] = first[0, 1, 1] = True
    first[:, -1, 0] = True
    second[3, 4, 1:4] = second[0, -1, -1] = True
    return [("left kidney in CT", KIDNEY, first), ("lesion", LESION, second)]


def _assert_same(path: Path, volume: Volume, masks: Masks) -> None:
    """By our reader; and by pydicom and matplotlib, contour by contour."""
    read = read_segmentation(path, volume)
    assert read.segments is not None
    assert read.volume.caveats == ()
    for number, (_, _, mask) in enumerate(masks, 1):
        values = [int(value) for value in read.segments[str(number)].split("+")]
        np.testing.assert_array_equal(np.isin(read.volume.array, values), mask)
    again = _filled_by_hand(path, volume)
    assert list(again) == list(range(1, len(masks) + 1))
    for mine, (_, _, mask) in zip(again.values(), masks, strict=True):
        np.testing.assert_array_equal(mine, mask)


def _filled_by_hand(path: Path, volume: Volume) -> dict[int, np.ndarray]:
    import pydicom
    from matplotlib.path import Path as Polygon

    dataset = pydicom.dcmread(path)
    to_voxels = np.linalg.inv(volume.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    filled = {}
    for roi in dataset.ROIContourSequence:
        mask = np.zeros(volume.shape, bool)
        for contour in roi.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            across = int(np.argmin(np.ptp(voxels, axis=0)))
            assert np.abs(voxels[:, across] - np.rint(voxels[0, across])).max() < 0.01
            plane = np.moveaxis(mask, across, 0)[int(np.rint(voxels[0, across]))]
            centres = np.argwhere(plane | True)
            inside = Polygon(np.delete(voxels, across, axis=1)).contains_points(centres)
            assert not plane.ravel()[inside].any()  # no voxel is in two contours
            plane |= inside.reshape(plane.shape)
        filled[int(roi.ReferencedROINumber)] = mask
    return filled


@pytest.mark.parametrize("codes", [None, "RAS", "SPL", "IRA"])
def test_oblique_masks_in_any_axis_order_land_on_their_voxels(oblique: Path, tmp_path: Path, codes: str | None) -> None:
    volume = read_volume(oblique)
    turned = volume if codes is None else volume.reoriented(codes)
    masks = _masks(volume)
    on_turned = [(name, code, reorient_label(Volume(m, volume.affine), turned).array) for name, code, m in masks]
    assert _write(tmp_path / "rt.dcm", oblique, on_turned, turned) == 2
    _assert_same(tmp_path / "rt.dcm", turned, on_turned)
    assert [path.name for path in tmp_path.glob("*rt*")] == ["rt.dcm"]


def test_a_tilted_gantry_keeps_each_contour_on_its_slice(write_series: SeriesWriter, tmp_path: Path) -> None:
    import pydicom

    folder = write_series(np.ones((5, 9, 8)), step=(0.0, 0.9, 2.5), change=_complete)[0].parent
    volume = read_volume(folder, tilt="keep")
    masks = _masks(volume)
    _write(tmp_path / "rt.dcm", folder, masks, volume)
    _assert_same(tmp_path / "rt.dcm", volume, masks)
    heights = {
        str(image.SOPInstanceUID): float(image.ImagePositionPatient[2])
        for image in map(pydicom.dcmread, folder.iterdir())
    }
    for roi in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence:
        for contour in roi.ContourSequence:
            (image,) = contour.ContourImageSequence
            assert {float(z) for z in contour.ContourData[2::3]} == {heights[image.ReferencedSOPInstanceUID]}


def test_enhanced_frames_in_any_order(write_enhanced: FileWriter, tmp_path: Path) -> None:
    import pydicom

    order = [2, 0, 3, 1]
    positions = np.array([(-10.0, -20.0, 5.0 + 2.5 * k) for k in order])

    def change(dataset: Any) -> None:
        dataset.StudyInstanceUID = "1.2.3.4"

    path = write_enhanced(np.arange(4 * 9 * 8).reshape(4, 9, 8), positions, change=change)
    volume = read_volume(path)
    masks = _masks(volume)
    _write(tmp_path / "rt.dcm", path, masks, volume)
    _assert_same(tmp_path / "rt.dcm", volume, masks)
    for roi in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence:
        for contour in roi.ContourSequence:
            frame = contour.ContourImageSequence[0].ReferencedFrameNumber
            assert float(contour.ContourData[2]) == positions[frame - 1][2]


def test_what_the_object_says(oblique: Path, tmp_path: Path) -> None:
    import pydicom

    volume = read_volume(oblique)
    long = "лівая нырка " + "x" * 80
    kidney, lesion = _masks(volume)
    empty = ("spleen", None, np.zeros(volume.shape, bool))
    masks = [kidney, empty, (long, None, lesion[2])]
    remarks = {long: "Tell nobody \\ but me"}
    colours = {"left kidney in CT": "#E69F00"}
    _write(tmp_path / "rt.dcm", oblique, masks, volume, model="abcdef", remarks=remarks, colours=colours)
    rt = pydicom.dcmread(tmp_path / "rt.dcm")
    assert (rt.Modality, rt.StudyInstanceUID, rt.PatientID) == ("RTSTRUCT", "1.2.3.4", "phantom-1")
    assert (rt.ApprovalStatus, rt.StructureSetLabel) == ("UNAPPROVED", "BoltzFormer")
    one, two = rt.StructureSetROISequence
    assert (one.ROIName, one.ROIGenerationAlgorithm) == ("left kidney in CT", "AUTOMATIC")
    assert (two.ROIName, two.ROIDescription) == (long[:64].strip(), f"{long}. Tell nobody / but me")
    assert {one.ReferencedFrameOfReferenceUID, two.ReferencedFrameOfReferenceUID} == {"1.2.3.9"}
    first, second = rt.RTROIObservationsSequence
    (kind,) = first.RTROIIdentificationCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("64033007", "SCT", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert (first.RTROIInterpretedType, second.RTROIInterpretedType) == ("ORGAN", "")
    assert second.RTROIIdentificationCodeSequence[0].CodeMeaning == "Tissue"
    assert list(rt.ROIContourSequence[0].ROIDisplayColor) == [0xE6, 0x9F, 0]
    assert "ROIDisplayColor" not in rt.ROIContourSequence[1]
    (frame,) = rt.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    named = (frame.FrameOfReferenceUID, study.ReferencedSOPInstanceUID, series.SeriesInstanceUID)
    assert named == ("1.2.3.9", "1.2.3.4", "1.2.3.4.1")
    referenced = {str(item.ReferencedSOPInstanceUID) for item in series.ContourImageSequence}
    assert referenced == {f"1.2.3.4.1.{number}" for number in range(1, 6)}


def test_nothing_of_the_patient_but_what_an_archive_needs(write_series: SeriesWriter, tmp_path: Path) -> None:
    def change(dataset: Any, index: int) -> None:
        _complete(dataset, index)
        dataset.PatientName = "Known^Name"
        for keyword in (
            "PatientComments",
            "StudyDescription",
            "SeriesDescription",
            "InstitutionName",
            "PatientAddress",
        ):
            setattr(dataset, keyword, "secret")
        dataset.PatientAge = "042Y"

    folder = write_series(np.ones((5, 9, 8)), change=change)[0].parent
    volume = read_volume(folder)
    _write(tmp_path / "rt.dcm", folder, _masks(volume), volume)
    content = (tmp_path / "rt.dcm").read_bytes()
    assert b"Known^Name" in content
    assert b"secret" not in content
    assert b"042Y" not in content


def test_refusals_leave_no_file(oblique: Path, write_series: SeriesWriter, tmp_path: Path) -> None:
    import pydicom

    volume = read_volume(oblique)
    masks = _masks(volume)
    shifted = Volume(volume.array, volume.affine + 0.3 * np.eye(4, k=3), modality="CT")
    bare = tmp_path / "bare"
    write_series(np.ones((5, 9, 8)), folder=bare, uid="1.2.3.4.8")
    for path in bare.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    cases: dict[str, tuple[Path, Masks, Volume]] = {
        "no mask has a voxel": (oblique, [("a", None, np.zeros(volume.shape, bool))], volume),
        "bool array": (oblique, [("a", None, np.zeros((2, 2, 2), bool))], volume),
        "not on the grid": (oblique, masks, shifted),
        r"FrameOfReferenceUID \(0020,0052\) is missing": (bare, masks, read_volume(bare)),
        "no such folder": (tmp_path / "nothing", masks, volume),
    }
    for said, arguments in cases.items():
        with pytest.raises(VolumeError, match=said) as caught:
            _write(tmp_path / "rt.dcm", *arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(VolumeError, match="is missing"):
        check_can_be_rtstruct(bare)
    check_can_be_rtstruct(oblique, names=["лівая нырка " + "x" * 80])
    with pytest.raises(VolumeError, match="cannot be written") as caught:
        _write(tmp_path / "no" / "rt.dcm", oblique, masks, volume)
    assert caught.value.reason == "write"
    assert list(tmp_path.glob("*.dcm")) == []


def test_a_file_that_reads_back_otherwise_is_not_kept(
    oblique: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = read_volume(oblique)
    (tmp_path / "rt.dcm").write_bytes(b"older")
    for spoil in (lambda found: [each + 0.6 for each in found], lambda found: found[1:], lambda found: found * 2):
        real = rtstruct_writer.outlines
        with monkeypatch.context() as patch:
            patch.setattr(rtstruct_writer, "outlines", lambda mask, spoil=spoil, real=real: spoil(real(mask)))
            with pytest.raises(VolumeError, match="did not read back"):
                _write(tmp_path / "rt.dcm", oblique, _masks(volume), volume)
    assert (tmp_path / "rt.dcm").read_bytes() == b"older"


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Volume, Masks]:
    """Organs of a real series, of a label map stored in another direction than the series."""
    folder = shared_data / "ts_ct_dicom"
    scan = read_volume(folder / "dicom")
    on_scan = reorient_label(read_label_map(folder / "label.nii.gz"), scan).array
    masks = [(f"organ {value}", None, on_scan == value) for value in (1, 5, 7, 52, 64) if (on_scan == value).any()]
    path = tmp_path_factory.mktemp("rt") / "rt.dcm"
    _write(path, folder / "dicom", masks, scan)
    return path, scan, masks


def test_organs_of_a_real_series_come_back(real: tuple[Path, Volume, Masks]) -> None:
    path, scan, masks = real
    assert len(masks) > 3
    _assert_same(path, scan, masks)


def _errors(path: Path) -> list[str]:
    program = need_program("dciodvfy", "dicom3tools")
    said = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    assert any("RTStructureSet" in line for line in lines)
    return [line for line in lines if line.startswith("Error")]


def test_dciodvfy_finds_no_error_in_organs_of_a_real_series(real: tuple[Path, Volume, Masks]) -> None:
    assert _errors(real[0]) == []


def test_dciodvfy_finds_no_error(oblique: Path, write_enhanced: FileWriter, tmp_path: Path) -> None:
    positions = np.array([(0.0, 0.0, 2.5 * k) for k in range(4)])
    frames = write_enhanced(np.ones((4, 9, 8)), positions)
    for scan in (oblique, frames):
        volume = read_volume(scan)
        _write(tmp_path / "rt.dcm", scan, _masks(volume), volume, colours={"lesion": "#56B4E9"})
        assert _errors(tmp_path / "rt.dcm") == []


@pytest.mark.slow
def test_an_archive_keeps_it_beside_its_scan(oblique: Path, tmp_path: Path) -> None:
    volume = read_volume(oblique)
    _write(tmp_path / "rt.dcm", oblique, _masks(volume), volume)
    with orthanc(tmp_path / "archive") as server:
        server.add(oblique)
        server.ask("/instances", (tmp_path / "rt.dcm").read_bytes())
        (study,) = server.ask("/studies")
        series = [server.ask(f"/series/{each}") for each in server.ask(f"/studies/{study}")["Series"]]
        (drawn,) = [each for each in series if each["MainDicomTags"]["Modality"] == "RTSTRUCT"]
        assert len(series) == 2
        (tmp_path / "back.dcm").write_bytes(server.ask(f"/instances/{drawn['Instances'][0]}/file"))
    _assert_same(tmp_path / "back.dcm", volume, _masks(volume))
