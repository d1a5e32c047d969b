from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom import seg_writer as dicom_seg_out
from boltzformer_monai.io.dicom.seg_writer import LESION, SegmentCode, write_dicom_seg
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.segmentation import read_segmentation
from boltzformer_monai.io.volume import Volume
from tests.io.conftest import FileWriter, SeriesWriter
from tests.needs import need_module, need_program

need_module("highdicom")

KIDNEY = SegmentCode("64033007", "Kidney", side="left")
# An oblique plane with stacks along its normal.
ROW, COLUMN = np.array([0.96, 0.28, 0.0]), np.array([-0.168, 0.576, 0.8])
NORMAL = np.cross(ROW, COLUMN)


def _complete(dataset: Any, index: int) -> None:
    dataset.StudyInstanceUID = "1.2.3.4"


@pytest.fixture
def oblique(write_series: SeriesWriter) -> Path:
    stack = np.arange(5 * 7 * 6).reshape(5, 7, 6)
    cosines = tuple(float(f"{value:.10g}") for value in (*ROW, *COLUMN))
    step = tuple(float(f"{value:.10g}") for value in 2.5 * NORMAL)
    return write_series(stack, cosines=cosines, step=step, change=_complete)[0].parent


def _write(path: Path, scan: Path | Sequence[Path], masks: Any, grid: Volume, **changes: Any) -> int:
    return write_dicom_seg(path, scan=scan, masks=masks, grid=grid, algorithm="BoltzFormer", version="0", **changes)


def _masks(volume: Volume) -> list[tuple[str, SegmentCode | None, np.ndarray]]:
    """Two masks that overlap, have no symmetry, and lie in different slices."""
    first, second = (np.zeros(volume.shape, bool) for _ in range(2))
    first[1:4, 2, 0:2] = first[2, 3:, 1] = True
    second[2:5, 2:4, 1:4] = second[0, -1, -1] = True
    return [("left kidney in CT", KIDNEY, first), ("lesion", LESION, second)]


def _assert_same(path: Path, volume: Volume, masks: Sequence[tuple[str, Any, np.ndarray]]) -> None:
    """By our reader, on the volume's own axes; and by position, in pydicom."""
    import pydicom

    read = read_segmentation(path, volume)
    assert read.segments is not None
    for number, (_, _, mask) in enumerate(masks, 1):
        values = [int(value) for value in read.segments[str(number)].split("+")]
        np.testing.assert_array_equal(np.isin(read.volume.array, values), mask)
    dataset = pydicom.dcmread(path)
    again = [np.zeros(volume.shape, bool) for _ in masks]
    to_voxel = np.linalg.inv(volume.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    turn = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    for frame, group in zip(np.atleast_3d(dataset.pixel_array), dataset.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.argwhere(frame).T[:, :, None]
        points = place + columns * spacing[1] * np.array(turn[:3]) + rows * spacing[0] * np.array(turn[3:])
        voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        assert np.abs(voxels - voxels.round()).max(initial=0) < 0.05
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        again[number - 1][tuple(voxels.round().astype(int).T)] = True
    for mine, (_, _, mask) in zip(again, masks, strict=True):
        np.testing.assert_array_equal(mine, mask)


@pytest.mark.parametrize("codes", [None, "RAS", "SPL", "IRA"])
def test_oblique_masks_in_any_axis_order_land_on_their_voxels(oblique: Path, tmp_path: Path, codes: str | None) -> None:
    volume = read_volume(oblique)
    turned = volume if codes is None else volume.reoriented(codes)
    masks = _masks(turned)
    assert _write(tmp_path / "seg.dcm", oblique, masks, turned) == 2
    _assert_same(tmp_path / "seg.dcm", turned, masks)
    assert [path.name for path in tmp_path.glob("*seg*")] == ["seg.dcm"]


def test_what_the_object_says(oblique: Path, tmp_path: Path) -> None:
    import highdicom
    import pydicom

    volume = read_volume(oblique)
    long = "лівая нырка " + "x" * 80
    masks = [(*_masks(volume)[0][:2], _masks(volume)[0][2]), (long, None, _masks(volume)[1][2])]
    _write(tmp_path / "seg.dcm", oblique, masks, volume, model="abcdef")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert seg.segmentation_type.value == "BINARY"
    assert seg.FrameOfReferenceUID == "1.2.3.9"
    assert seg.StudyInstanceUID == "1.2.3.4"
    one, two = seg.SegmentSequence
    assert (one.SegmentLabel, one.SegmentAlgorithmType) == ("left kidney in CT", "AUTOMATIC")
    assert one.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "BoltzFormer"
    kind = one.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("64033007", "SCT", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    assert one.TrackingID == "left kidney in CT"
    assert one.TrackingUID != two.TrackingUID
    plain = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence[1]
    assert (plain.SegmentLabel, plain.SegmentDescription) == (long[:64], long)
    assert plain.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    referenced = {
        str(item.ReferencedSOPInstanceUID) for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced == {f"1.2.3.4.1.{number}" for number in range(1, 6)}


def test_names_in_another_character_set_stay_what_they_are(write_series: SeriesWriter, tmp_path: Path) -> None:
    import pydicom

    def change(dataset: Any, index: int) -> None:
        _complete(dataset, index)
        dataset.SpecificCharacterSet = "ISO_IR 144"
        dataset.PatientName = "Люкceмбypг"

    folder = write_series(np.ones((5, 7, 6)), change=change)[0].parent
    volume = read_volume(folder)
    _write(tmp_path / "seg.dcm", folder, [("蚂蚁", None, _masks(volume)[0][2])], volume)
    read = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (str(read.PatientName), read.SegmentSequence[0].SegmentLabel) == ("Люкceмбypг", "蚂蚁")


def test_the_files_of_a_series_may_be_given(oblique: Path, tmp_path: Path) -> None:
    volume = read_volume(oblique)
    masks = _masks(volume)
    _write(tmp_path / "seg.dcm", sorted(oblique.iterdir()), masks, volume)
    _assert_same(tmp_path / "seg.dcm", volume, masks)


def test_each_frame_refers_to_the_slice_it_lies_on(oblique: Path, tmp_path: Path) -> None:
    import pydicom

    volume = read_volume(oblique)
    _write(tmp_path / "seg.dcm", oblique, _masks(volume), volume)
    places = {}
    for path in oblique.iterdir():
        image = pydicom.dcmread(path)
        places[str(image.SOPInstanceUID)] = np.array(image.ImagePositionPatient, float)
    groups = pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence
    for group in groups:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(places[source], np.array(group.PlanePositionSequence[0].ImagePositionPatient, float))


def test_blanked_uids_are_taken_from_the_preface_or_made(
    write_series: SeriesWriter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pydicom

    folder = write_series(np.ones((5, 7, 6)), change=_complete)[0].parent
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.SOPInstanceUID = dataset.SOPClassUID = ""
        dataset.save_as(path)  # leaves the preface as it is
    volume = read_volume(folder)
    for name in ("one", "two"):
        _write(tmp_path / f"{name}.dcm", folder, _masks(volume), volume)
    one, two = (pydicom.dcmread(tmp_path / f"{name}.dcm") for name in ("one", "two"))
    assert one.StudyInstanceUID == two.StudyInstanceUID != ""
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert "StudyInstanceUID and SeriesInstanceUID" in caplog.text
    _assert_same(tmp_path / "one.dcm", volume, _masks(volume))


def test_enhanced_frames_in_any_order(write_enhanced: FileWriter, tmp_path: Path) -> None:
    order = [2, 0, 3, 1]
    positions = np.array([(-10.0, -20.0, 5.0 + 2.5 * k) for k in order])

    def change(dataset: Any) -> None:
        dataset.StudyInstanceUID = "1.2.3.4"

    path = write_enhanced(np.arange(4 * 7 * 6).reshape(4, 7, 6), positions, change=change)
    volume = read_volume(path)
    masks = _masks(volume)
    _write(tmp_path / "seg.dcm", path, masks, volume)
    _assert_same(tmp_path / "seg.dcm", volume, masks)


def test_refusals_leave_no_file(
    oblique: Path, write_series: SeriesWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pydicom

    volume = read_volume(oblique)
    masks = _masks(volume)
    out = tmp_path / "seg.dcm"
    shifted = Volume(volume.array, volume.affine + np.eye(4)[:, 3:] * 0 + 0.3 * np.eye(4, k=3), modality="CT")

    bare = tmp_path / "bare"
    write_series(np.ones((5, 7, 6)), folder=bare, uid="1.2.3.4.8")
    for path in bare.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    for said, arguments in {
        "no mask has a voxel": (oblique, [("a", None, np.zeros(volume.shape, bool))], volume),
        "bool array": (oblique, [("a", None, np.zeros((2, 2, 2), bool))], volume),
        "not on the grid": (oblique, masks, shifted),
        r"FrameOfReferenceUID \(0020,0052\) is missing": (bare, masks, read_volume(bare)),
        "no such folder": (tmp_path / "nothing", masks, volume),
    }.items():
        with pytest.raises(VolumeError, match=said) as caught:
            _write(out, *arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(VolumeError, match="cannot be written") as caught:
        _write(tmp_path / "no" / "seg.dcm", oblique, masks, volume)
    assert caught.value.reason == "write"
    assert list(tmp_path.glob("*.dcm")) == []


def test_a_file_that_reads_back_otherwise_is_not_kept(
    oblique: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = read_volume(oblique)
    real = dicom_seg_out._segmentation

    def spoiled(*arguments: Any) -> Any:
        dataset = real(*arguments)
        pixels = bytearray(dataset.PixelData)
        pixels[3] ^= 4
        dataset.PixelData = bytes(pixels)
        return dataset

    monkeypatch.setattr(dicom_seg_out, "_segmentation", spoiled)
    (tmp_path / "seg.dcm").write_bytes(b"older")
    with pytest.raises(VolumeError, match="did not read back"):
        _write(tmp_path / "seg.dcm", oblique, _masks(volume), volume)
    assert (tmp_path / "seg.dcm").read_bytes() == b"older"


@pytest.fixture(scope="module")
def real_seg(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Volume, list[Any]]:
    """All organs of a real series, of a label map stored in another direction than the series."""
    folder = shared_data / "ts_ct_dicom"
    scan = read_volume(folder / "dicom")
    label = read_label_map(folder / "label.nii.gz")
    assert not np.allclose(label.affine, scan.affine)
    on_scan = reorient_label(label, scan)
    values = [value for value in (1, 5, 7, 8, 52, 64) if (label.array == value).any()]
    path = tmp_path_factory.mktemp("seg") / "seg.dcm"
    _write(path, folder / "dicom", [(f"organ {v}", KIDNEY, label.array == v) for v in values], label)
    return path, scan, [(f"organ {v}", None, on_scan.array == v) for v in values]


def test_a_real_series(real_seg: tuple[Path, Volume, list[Any]]) -> None:
    import highdicom

    path, scan, masks = real_seg
    assert len(masks) > 3
    _assert_same(path, scan, masks)
    assert highdicom.seg.segread(path).number_of_segments == len(masks)


def test_dciodvfy_finds_no_error(real_seg: tuple[Path, Volume, list[Any]]) -> None:
    program = need_program("dciodvfy", "dicom3tools")
    said = subprocess.run([program, str(real_seg[0])], capture_output=True, text=True, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    assert "Segmentation" in lines[-1] or any("Segmentation" in line for line in lines)
    assert [line for line in lines if line.startswith("Error")] == []
