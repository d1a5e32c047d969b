from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from boltzformer_monai.data.size_limits import SizeLimit
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom
from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.result_manifest import is_complete, source_digest
from boltzformer_monai.inferers.results import write_results
from boltzformer_monai.inferers.run_settings import DICOM_ENDINGS, ModelRecord, RunSettings, written_paths
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.io.segmentation import read_segmentation
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.storage import file_sha256
from tests.inferers.volume_stub import StubResult
from tests.needs import need_module
from tests.sizes import count

PROMPTS = ("left kidney in CT", "Äther / лівая $x$ lesion", "flux capacitor")
SETTINGS = RunSettings(prompts=PROMPTS, seed=3)
MODEL = ModelRecord(sha256="ab" * 32)
PAIRS = count(50, thorough=150)


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    image, _ = make_phantom("abdomen", seed=1, size=(36, 32, 5))
    return Scan("series", write_phantom_dicom(image, tmp_path / "PATIENT^NAME", seed=1))


def _result(scan: Scan, *, repeats: int = 1) -> Any:
    grid = read_volume(scan.place)
    masks = {prompt: np.zeros(grid.shape, bool) for prompt in PROMPTS}
    masks[PROMPTS[0]][2:9, 3:8, 1:3] = True
    masks[PROMPTS[1]][6:15, 5:12, 2:5] = True
    return StubResult(grid, masks, repeats=repeats)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
@pytest.mark.parametrize("arbitration", ["probability", "first"])
def test_a_label_map_and_its_summary(scan: Scan, out: Path, ending: str, arbitration: str) -> None:
    result = _result(scan)
    settings = replace(SETTINGS, ending=ending, arbitration=arbitration)
    summary = write_results(result, out / "a.b", settings, model=MODEL, scan=scan)
    assert _files(out) == {f"a.b{ending}", "a.b.json"}
    labels = read_label_map(out / f"a.b{ending}")
    np.testing.assert_array_equal(labels.array, result.label_map(arbitration))
    np.testing.assert_allclose(labels.affine, result.grid.affine, atol=1e-4)
    assert json.loads((out / "a.b.json").read_text(encoding="utf-8")) == summary
    one, two, three = summary["prompts"]
    assert (one["prompt"], two["prompt"], three["prompt"]) == PROMPTS
    assert (one["label"], two["label"], three["label"]) == (1, 2, 3)
    assert (one["found"], three["found"], three["confidence"]) == (True, False, None)
    assert one["voxels"] == 7 * 5 * 2
    assert one["label_voxels"] == (one["voxels"] if arbitration == "first" else one["voxels"] - 3 * 3)
    assert one["volume_ml"] == pytest.approx(70 * np.prod(result.grid.spacing) / 1000)
    assert (summary["model"], summary["seed"], summary["threshold"], summary["planes"]) == (
        "ab" * 32,
        3,
        0.5,
        ["axial"],
    )
    assert summary["package"]


def test_the_summary_names_no_path_and_no_patient(scan: Scan, out: Path) -> None:
    write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    text = (out / "a.json").read_text(encoding="utf-8")
    for private in ("PATIENT", "PHANTOM", str(out), "slice_0001", read_volume(scan.place).frame_of_reference):
        assert private not in text


def test_a_mask_for_each_prompt(scan: Scan, out: Path) -> None:
    result = _result(scan, repeats=4)
    summary = write_results(result, out / "a", replace(SETTINGS, masks=True, repeats=4), model=MODEL, scan=scan)
    names = ["01_left_kidney_in_ct", "02_äther_лівая_x_lesion", "03_flux_capacitor"]
    assert _files(out) == {"a.json"} | {f"a/{n}{tail}.nii.gz" for n in names for tail in ("", "-uncertainty")}
    for index, name in enumerate(names):
        np.testing.assert_array_equal(read_label_map(out / "a" / f"{name}.nii.gz").array, result.mask(index))
        np.testing.assert_array_equal(
            read_label_map(out / "a" / f"{name}-uncertainty.nii.gz").array, result.entropy(index)
        )
    assert [each["label"] for each in summary["prompts"]] == [1, 1, 1]


def test_the_uncertainty_is_the_largest_of_all_prompts(scan: Scan, out: Path) -> None:
    result = _result(scan, repeats=4)
    write_results(result, out / "a", replace(SETTINGS, repeats=4, ending=".nrrd"), model=MODEL, scan=scan)
    assert _files(out) == {"a.nrrd", "a.json", "a-uncertainty.nrrd"}
    written = read_label_map(out / "a-uncertainty.nrrd").array
    np.testing.assert_array_equal(written, np.maximum(result.entropy(0), result.entropy(1)))


@pytest.mark.parametrize("ending", DICOM_ENDINGS)
def test_dicom_objects_hold_what_was_found(scan: Scan, out: Path, ending: str) -> None:
    need_module("highdicom")
    result = _result(scan, repeats=2)
    summary = write_results(result, out / "a", replace(SETTINGS, ending=ending, repeats=2), model=MODEL, scan=scan)
    assert _files(out) == {f"a{ending}", "a.json", "a-uncertainty.nii.gz"}
    read = read_segmentation(out / f"a{ending}", result.grid)
    assert read.segments is not None
    assert list(read.titles.values()) == list(PROMPTS[:2])
    for index in range(2):
        values = [int(value) for value in read.segments[str(index + 1)].split("+")]
        np.testing.assert_array_equal(np.isin(read.volume.array, values), result.mask(index))
    assert [each["label"] for each in summary["prompts"]] == [1, 2, None]


@pytest.mark.parametrize("ending", DICOM_ENDINGS)
def test_nothing_found_leaves_no_dicom_object_and_a_summary_that_says_so(
    scan: Scan, out: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    settings = replace(SETTINGS, ending=ending)
    (out / f"a{ending}").write_bytes(b"older")
    grid = read_volume(scan.place)
    empty: Any = StubResult(grid, {prompt: np.zeros(grid.shape, bool) for prompt in PROMPTS})
    summary = write_results(empty, out / "a", settings, model=MODEL, scan=scan)
    assert _files(out) == {"a.json"}
    assert [each["found"] for each in summary["prompts"]] == [False] * 3
    assert "nothing was found" in caplog.text
    assert is_complete(out / "a", settings, MODEL, scan)


def test_complete_means_these_files_of_this_scan_by_this_settings(scan: Scan, out: Path) -> None:
    settings = replace(SETTINGS, repeats=2)
    assert not is_complete(out / "a", settings, MODEL, scan)
    write_results(_result(scan, repeats=2), out / "a", settings, model=MODEL, scan=scan)
    assert is_complete(out / "a", settings, MODEL, scan)
    changes: list[dict[str, Any]] = [
        {"seed": 4}, {"threshold": 0.4}, {"prompts": PROMPTS[:2]}, {"preview": True},
        {"planes": ("axial", "coronal")}, {"in_plane": "tiles"},
    ]  # fmt: skip
    for change in changes:
        assert not is_complete(out / "a", replace(settings, **change), MODEL, scan), change
    rule = PresenceRule(high=0.5, low=0.2)
    for other in (
        replace(MODEL, sha256="cd" * 32), replace(MODEL, presence=rule), replace(MODEL, plane="coronal"),
        replace(MODEL, precision="bf16"), replace(MODEL, device="cuda"),
    ):  # fmt: skip
        assert not is_complete(out / "a", settings, other, scan), other
    uncertainty = out / "a-uncertainty.nii.gz"
    whole = uncertainty.read_bytes()
    uncertainty.write_bytes(whole[:-9])
    assert not is_complete(out / "a", settings, MODEL, scan)
    uncertainty.write_bytes(whole)
    assert is_complete(out / "a", settings, MODEL, scan)
    first = min(scan.place.iterdir())
    first.write_bytes(first.read_bytes())  # another time
    assert not is_complete(out / "a", settings, MODEL, scan)
    (out / "a.json").write_text("{", encoding="utf-8")
    assert not is_complete(out / "a", settings, MODEL, scan)


def test_files_of_an_earlier_run_go_and_others_stay(scan: Scan, out: Path) -> None:
    masks = replace(SETTINGS, masks=True)
    write_results(_result(scan, repeats=2), out / "a", replace(masks, repeats=2), model=MODEL, scan=scan)
    (out / "a" / "mine.nii.gz").touch()
    write_results(_result(scan), out / "a", masks, model=MODEL, scan=scan)
    names = {f"a/{n}.nii.gz" for n in ("01_left_kidney_in_ct", "02_äther_лівая_x_lesion", "03_flux_capacitor", "mine")}
    assert _files(out) == {"a.json", *names}
    write_results(_result(scan), out / "a", replace(SETTINGS, ending=".nrrd"), model=MODEL, scan=scan)  # another output
    assert _files(out) == {"a.json", "a.nrrd", *names}
    summary = json.loads((out / "a.json").read_text(encoding="utf-8"))
    summary["files"].append({"name": "/../../precious.nii.gz", "bytes": 0})
    (out / "a.json").write_text(json.dumps(summary), encoding="utf-8")
    precious = out.parent / "precious.nii.gz"
    precious.touch()
    write_results(_result(scan), out / "a", replace(SETTINGS, ending=".nrrd"), model=MODEL, scan=scan)
    assert precious.exists()


SEGMENTATIONS: tuple[dict[str, Any], ...] = (
    {"ending": ".nii.gz"}, {"ending": ".nrrd"}, {"masks": True}, {"masks": True, "ending": ".nrrd"},
)  # fmt: skip


def _choice(draw: random.Random, out: Path) -> tuple[RunSettings, Path | None]:
    """A set of options of ``segment``, and where its preview goes."""
    preview = draw.choice((None, None, Path("a.png"), Path("sheet.png"), Path("previews/a.png")))
    settings = replace(
        SETTINGS,
        prompts=draw.choice((PROMPTS, PROMPTS[:2])),
        repeats=draw.choice((1, 1, 2)),
        preview=preview is not None,
        **draw.choice(SEGMENTATIONS),
    )
    return settings, None if preview in (None, Path("a.png")) else out / preview


def _cut(result: Any, settings: RunSettings) -> Any:
    masks = {prompt: result.mask(index) for index, prompt in enumerate(settings.prompts)}
    return StubResult(result.grid, masks, repeats=settings.repeats)


def test_after_any_two_runs_there_is_what_the_second_one_says(
    scan: Scan, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of option sets: no preview, uncertainty map or mask of the first run stays beside another result."""
    monkeypatch.setattr("boltzformer_monai.inferers.preview.contact_sheet", lambda *_, **__: os.urandom(9))
    draw, whole, both = random.Random(0), _result(scan), 0
    for number in range(PAIRS):
        shutil.rmtree(out)
        (out / "previews").mkdir(parents=True)
        for name in ("mine.nii.gz", "a-mine.png", "previews/b.png"):
            (out / name).write_bytes(b"mine")
        (first, place), (second, other) = _choice(draw, out), _choice(draw, out)
        write_results(_cut(whole, first), out / "a", first, model=MODEL, scan=scan, preview=place)
        before = {path.relative_to(out).as_posix() for path in written_paths(out / "a", first)}
        write_results(_cut(whole, second), out / "a", second, model=MODEL, scan=scan, preview=other)
        expected = {path.relative_to(out).as_posix() for path in written_paths(out / "a", second, other)}
        if (first.prompts, first.repeats) == (second.prompts, second.repeats):  # the same result in another format
            kept = {name for name in before if "-uncertainty" not in name and not name.endswith((".png", ".json"))}
            both += bool(kept - expected)
            expected |= kept
        assert _files(out) == {*expected, "mine.nii.gz", "a-mine.png", "previews/b.png"}, (number, first, second)
        assert is_complete(out / "a", second, MODEL, scan)
        last = replace(SETTINGS, prompts=PROMPTS[:1])
        write_results(_cut(whole, last), out / "a", last, model=MODEL, scan=scan)
        left = {"a.nii.gz", "a.json", "mine.nii.gz", "a-mine.png", "previews/b.png"}
        assert _files(out) == left, (number, first, second)
        assert not (out / "a").exists()
    assert both > PAIRS / 15


def test_a_file_that_was_changed_by_hand_is_no_leftover(scan: Scan, out: Path) -> None:
    write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    (out / "a.nii.gz").write_bytes(b"corrected in 3D Slicer")
    write_results(_result(scan), out / "a", replace(SETTINGS, seed=9, ending=".nrrd"), model=MODEL, scan=scan)
    assert (out / "a.nii.gz").read_bytes() == b"corrected in 3D Slicer"


def test_a_preview_elsewhere_is_removed_only_if_it_is_the_very_one(scan: Scan, out: Path) -> None:
    place = out.parent / "sheet.png"
    settings = replace(SETTINGS, preview=True)
    write_results(_result(scan), out / "a", settings, model=MODEL, scan=scan, preview=place)
    assert str(out.parent) not in (out / "a.json").read_text(encoding="utf-8")
    picture = bytearray(place.read_bytes())
    picture[-1] ^= 1
    place.write_bytes(picture)
    write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    assert place.exists()
    write_results(_result(scan), out / "a", settings, model=MODEL, scan=scan, preview=place)
    write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    assert not place.exists()


def test_a_failed_write_leaves_nothing_of_the_earlier_result_but_its_masks(
    scan: Scan, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(
        _result(scan, repeats=2), out / "a", replace(SETTINGS, repeats=2, preview=True), model=MODEL, scan=scan
    )
    failing = MagicMock(side_effect=VolumeError("the disk is full", reason="write"))
    monkeypatch.setattr("boltzformer_monai.inferers.results.write_label_map", failing)
    with pytest.raises(VolumeError):
        write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    assert _files(out) == {"a.nii.gz"}


@pytest.mark.parametrize("files", [None, [1], [{"bytes": 1}], [{"name": 1, "bytes": 1}]])
def test_a_summary_that_lists_no_files_is_not_trusted(scan: Scan, out: Path, files: Any) -> None:
    write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    summary = json.loads((out / "a.json").read_text(encoding="utf-8"))
    (out / "a.json").write_text(json.dumps({**summary, "files": files}), encoding="utf-8")
    assert not is_complete(out / "a", SETTINGS, MODEL, scan)
    write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    assert is_complete(out / "a", SETTINGS, MODEL, scan)


def test_a_failed_write_leaves_no_summary(scan: Scan, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    result = _result(scan, repeats=2)
    full = VolumeError("the disk is full", reason="write")
    monkeypatch.setattr(result, "entropy", MagicMock(side_effect=full))
    with pytest.raises(VolumeError):
        write_results(result, out / "a", replace(SETTINGS, repeats=2), model=MODEL, scan=scan)
    assert not (out / "a.json").exists()


def test_settings_and_hash(tmp_path: Path) -> None:
    for change in ({"arbitration": "best"}, {"ending": ".png"}, {"ending": ".dcm", "masks": True}):
        with pytest.raises(ConfigError):
            replace(SETTINGS, **change)  # type: ignore[arg-type]
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_a_scan_without_dicom_cannot_become_dicom_seg(tmp_path: Path, out: Path) -> None:
    need_module("highdicom")
    (tmp_path / "scan.nii.gz").touch()
    grid = Volume(np.zeros((24, 20, 5), np.float32), np.eye(4))
    masks = {PROMPTS[0]: np.ones(grid.shape, bool)}
    result: Any = StubResult(grid, masks)
    with pytest.raises(VolumeError, match="DICOM"):
        write_results(
            result,
            out / "a",
            replace(SETTINGS, prompts=PROMPTS[:1], ending=".dcm"),
            model=MODEL,
            scan=Scan("s", tmp_path / "scan.nii.gz"),
        )
    assert _files(out) == set()


def test_the_paths_are_told_before_they_are_written(scan: Scan, out: Path) -> None:
    for settings in (
        replace(SETTINGS, repeats=2, preview=True),
        replace(SETTINGS, repeats=2, masks=True),
        replace(SETTINGS, ending=".nrrd"),
    ):
        shutil.rmtree(out)
        out.mkdir()
        write_results(_result(scan, repeats=settings.repeats), out / "a", settings, model=MODEL, scan=scan)
        assert {path.relative_to(out).as_posix() for path in written_paths(out / "a", settings)} == _files(out)
    assert written_paths(out / "a", replace(SETTINGS, preview=True), out / "p.png")[1] == out / "p.png"


def test_a_json_of_somebody_else_stays(scan: Scan, out: Path) -> None:
    (out / "a.json").write_text('{"RepetitionTime": 2}', encoding="utf-8")
    with pytest.raises(ConfigError, match="a.json: exists"):
        write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    assert _files(out) == {"a.json"}
    assert not is_complete(out / "a", SETTINGS, MODEL, scan)


def test_the_voxels_beside_a_header_belong_to_the_source(tmp_path: Path) -> None:
    header, voxels = tmp_path / "s.mhd", tmp_path / "s.raw"
    header.write_text("NDims = 3\nElementDataFile = s.raw\n", encoding="ascii")
    voxels.write_bytes(b"12")
    before = source_digest(Scan("s", header))
    voxels.write_bytes(b"1234")
    assert source_digest(Scan("s", header)) != before


def test_what_cannot_be_written_is_named_as_the_user_named_it(
    scan: Scan, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device", str(source))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(VolumeError) as caught:
        write_results(_result(scan), out / "a", SETTINGS, model=MODEL, scan=scan)
    assert str(caught.value).startswith(f"{out / 'a.nii.gz'}: cannot be written (No space left on device)")
    assert "-a.nii.gz" not in str(caught.value)


def test_lesions_are_those_of_the_file_that_is_written(scan: Scan, out: Path) -> None:
    """A label map lists what a prompt has after others took voxels; masks and SEG list the prompt's own mask."""
    result = _result(scan)
    result._masks[0][20:23, 20, 1] = True  # a second one
    for ending, folder in ((".nii.gz", False), (".nii.gz", True), (".dcm", False)):
        settings = replace(SETTINGS, ending=ending, masks=folder)
        one, two, three = write_results(result, out / "a", settings, model=MODEL, scan=scan)["prompts"]
        voxels = one["voxels"] if folder or ending == ".dcm" else one["label_voxels"]
        assert [each["voxels"] for each in one["lesions"]] == [voxels - 3, 3]
        assert [each["number"] for each in one["lesions"]] == [1, 2]
        assert sum(each["voxels"] for each in two["lesions"]) == two["voxels"]
        assert two["lesions"][0]["confidence"] == 0.8
        assert three["lesions"] == []
        values = result.grid.array[result.mask(1)].astype(float)
        assert two["lesions"][0]["mean_hu"] == pytest.approx(values.mean(), rel=1e-5)
    few = replace(SETTINGS, lesion_min_mm=25)
    one, two, _ = write_results(result, out / "a", few, model=MODEL, scan=scan)["prompts"]
    assert [len(each["lesions"]) for each in (one, two)] == [
        sum(each["diameter_mm"] >= 25 for each in listed["lesions"])
        for listed in write_results(result, out / "b", SETTINGS, model=MODEL, scan=scan)["prompts"][:2]
    ]
    assert two["voxels"] == result.mask(1).sum()
    (listed, _), *_ = [
        each["lesions"] for each in write_results(result, out / "c", SETTINGS, model=MODEL, scan=scan)["prompts"]
    ]
    limit = SizeLimit("ml", most=listed["volume_ml"], most_included=False)
    result.understood = ({"size_limit": limit.as_dict()}, None, None)
    (small,) = write_results(result, out / "c", SETTINGS, model=MODEL, scan=scan)["prompts"][0]["lesions"]
    assert (small["number"], small["voxels"]) == (1, 3)
