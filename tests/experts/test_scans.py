"""Scans of a slice dataset as stacks, from its slices and from the original volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.slices.format import scan_of
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.experts.prepare import Prepared, normalised, prepare, resampled, take_fingerprint
from boltzformer_monai.experts.scans import choose_plane, list_scans, read_stack
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.slicing.originals import Reading, find_originals
from boltzformer_monai.slicing.recipes import load_recipe
from tests.experts.cases import SCANS, slice_task
from tests.experts.test_plan import planned


def originals(task: Path, reader: SliceReader) -> dict[str, Reading]:
    """Of the task's scans."""
    scans = {scan_of(name, entry) for name, entry in reader.volumes.items()}
    return find_originals(load_recipe("msd")(task), scans)


def test_slices_and_originals_are_the_same_voxels(task: Path, slices: Path) -> None:
    reader = SliceReader(slices)
    stored, original = list_scans(reader), list_scans(reader, originals(task, reader))
    assert [scan.volume for scan in stored] == [f"hippocampus_{number:03d}" for number in range(1, SCANS + 1)]
    assert sorted(scan.split for scan in stored) == ["train"] * (SCANS - 1) + ["val"]
    for one, other in zip(stored, original, strict=True):
        grey, values = read_stack(one, whole=True), read_stack(other, whole=True)
        np.testing.assert_array_equal(grey.label, values.label)
        assert grey.spacing == values.spacing == (1.5, 1.0, 1.0)
        assert np.corrcoef(grey.image.ravel(), values.image.ravel())[0, 1] > 0.99
        assert values.image.max() > 255 or values.image.std() != grey.image.std()  # the scan's own units


def test_originals_that_are_others_are_refused(task: Path, slices: Path) -> None:
    reader = SliceReader(slices)
    found = originals(task, reader)
    image, label = found["hippocampus_001"]()
    assert label is not None

    def first(read: Reading) -> list[Reading]:
        (scan, *_) = list_scans(reader, {**found, "hippocampus_001": read})
        read_stack(scan, whole=True)
        return []

    with pytest.raises(DatasetError, match="another grid"):
        first(lambda: (Volume(image.array, image.affine * 1.01 + np.diag([0, 0, 0, -0.01]), "MR"), label))
    with pytest.raises(DatasetError, match="hippocampus has [0-9]+ voxels, and [0-9]+ in the slice dataset"):
        first(lambda: (image, replace(label, array=np.roll(label.array, 1, 0) * (np.indices(label.shape)[0] > 12))))
    with pytest.raises(DatasetError, match="has no annotation"):
        first(lambda: (image, None))
    with pytest.raises(DatasetError, match="the original of hippocampus_002 is not among the scans"):
        list_scans(reader, {"hippocampus_001": found["hippocampus_001"]})
    with pytest.raises(DatasetError, match="none of the scans given"):
        find_originals(load_recipe("msd")(task), {"liver_001"})


def test_a_dataset_of_some_slices_is_no_volume(task: Path, tmp_path: Path) -> None:
    reader = SliceReader(slice_task(task, tmp_path / "slices", "--every", "3"))
    scan = list_scans(reader)[0]
    stack = read_stack(scan, whole=False)
    assert stack.indices == range(0, 20, 3)
    assert stack.image.shape == (7, 28, 24)
    with pytest.raises(DatasetError, match="every 3th slice only.*dimensions 2"):
        read_stack(scan, whole=True)


def test_one_plane_is_chosen(task: Path, tmp_path: Path) -> None:
    reader = SliceReader(slice_task(task, tmp_path / "slices", "--plane", "sagittal,axial"))
    assert {row.plane for row in choose_plane(reader, "").rows} == {"axial"}
    sagittal = choose_plane(reader, "sagittal")
    assert read_stack(list_scans(sagittal)[0], whole=True).image.shape == (24, 20, 28)
    original = list_scans(sagittal, originals(task, sagittal))[0]
    np.testing.assert_array_equal(
        read_stack(original, whole=True).label, read_stack(list_scans(sagittal)[0], whole=True).label
    )


def test_resampling_keeps_places() -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 6, 6)).copy()
    for smooth in (False, True):
        finer = resampled(ramp, (16, 12, 6), smooth=smooth, thick=False)
        np.testing.assert_allclose(finer[2:-2, 3, 3], (np.arange(16) + 0.5)[2:-2] / 2 - 0.5, atol=0.05)
    thick = resampled(ramp, (16, 6, 6), smooth=True, thick=True)
    np.testing.assert_array_equal(thick[:, 0, 0], np.repeat(np.arange(8), 2))
    assert resampled(ramp, (8, 6, 6), smooth=True, thick=False) is ramp


def test_grey_values_are_scaled() -> None:
    image = np.array([[[-2000.0, 5.0, 500.0, 995.0, 3000.0]]], np.float32)
    plan = planned((36, 50, 35), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(normalised(image, plan) * plan.std + plan.mean, [[[5, 5, 500, 995, 995]]], atol=1e-3)
    found = normalised(image, replace(plan, hounsfield=False))
    assert (float(found.mean()), float(found.std())) == pytest.approx((0, 1), abs=1e-6)


def test_scans_are_prepared_once(slices: Path, tmp_path: Path) -> None:
    scans = list_scans(SliceReader(slices))
    targets = ("anterior hippocampus", "posterior hippocampus")
    fingerprint = take_fingerprint(scans, targets, whole=True)
    assert not fingerprint.ct
    assert fingerprint.shapes == [(20, 28, 24)] * SCANS
    assert len(fingerprint.intensities) == sum(int((read_stack(scan, whole=True).label > 0).sum()) for scan in scans)
    plan = replace(planned((20, 28, 24), (1.5, 1.0, 1.0)), targets=targets, hounsfield=False)
    prepared = prepare(scans, plan, tmp_path / "prepared")
    one = prepared[0]
    assert one.image().shape == (20, 28, 24)
    label = read_stack(scans[0], whole=True).label
    np.testing.assert_array_equal(one.masks(), np.stack([label == 1, label == 2]))
    assert all(one.masks()[channel][tuple(places.T)].all() for channel, places in enumerate(one.centres()))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").iterdir()}
    assert prepare(scans, plan, tmp_path / "prepared") == prepared
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").iterdir()} == before
    coarse = prepare(scans, replace(plan, spacing=(3.0, 2.0, 2.0)), tmp_path / "prepared")
    assert coarse[0].image().shape == (10, 14, 12)
    assert Prepared(tmp_path / "prepared", scans[0].volume) == coarse[0]
