"""What a user must know of a result goes wherever the result goes."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom
from boltzformer_monai.inferers import result_caveats
from boltzformer_monai.inferers.preview import contact_sheet
from boltzformer_monai.inferers.result_caveats import SERIES, SERIES_IN_DOUBT
from boltzformer_monai.inferers.results import write_results
from boltzformer_monai.inferers.run_settings import ModelRecord, RunSettings
from boltzformer_monai.inferers.segmenter import LoadVolumed, VolumeSegmenter
from boltzformer_monai.inferers.windows import PromptWindows
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.io.volume import Volume
from tests.inferers.volume_stub import StubResult
from tests.needs import need_module

LIVER = {"target": "liver", "modality": "CT", "site": "abdomen", "window": {"kind": "hu", "level": 40, "width": 400}}
WINDOWS = PromptWindows({"targets": [LIVER]})
ASSUMED = Caveat("assumed modality", "taken as CT, which the file does not state")
UNKNOWN = Caveat("unknown prompt", "'flux' names no target of the training", "flux")
TILTED = Caveat("gantry tilt", "slices are stacked at an angle of 12 degrees")
OF_ALL = Caveat("not HU", "all voxels lie between 0 and 1")


def _volume(*caveats: Caveat, modality: str = "CT") -> Volume:
    rng = np.random.default_rng(0)
    array = rng.normal(40, 60, (40, 30, 16)).astype(np.float32)
    return Volume(array, np.diag([1, 1, 3, 1.0]), modality=modality, source="scan.nii.gz", caveats=caveats)


def test_all_sources_are_collected_once_and_the_worst_come_first() -> None:
    known = Caveat("no thresholds", "every mask is kept")
    found = result_caveats.collect_caveats(
        _volume(OF_ALL, modality="unknown"), stated="unknown", modality="CT", planes=["axial"],
        windows=WINDOWS, readings=WINDOWS.read(["liver", "flux"]), known=[known, known],
    )  # fmt: skip
    assert [each.kind for each in found] == ["unknown prompt", "not HU", "no thresholds", "assumed modality"]
    assert [each.doubtful for each in found] == [True, True, False, False]
    assert [each.prompt for each in found] == ["flux", None, None, None]
    nothing = result_caveats.collect_caveats(
        _volume(), stated="CT", modality="CT", planes=["axial"], windows=WINDOWS,
        readings=WINDOWS.read(["liver"]),
    )  # fmt: skip
    assert nothing == ()
    across = {}
    for planes in (["coronal"], ["axial", "coronal"]):
        (*across[len(planes)],) = result_caveats.collect_caveats(
            _volume(), stated="CT", modality="CT", planes=planes, windows=WINDOWS, readings=[]
        )
    assert [each.kind for each in across[1]] == ["acquisition plane"]
    assert across[2] == []  # averaged with the acquired one


def test_the_log_says_what_is_the_same_for_all_scans_once_and_names_the_scan_of_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said: set[Caveat] = set()
    scan = _volume(OF_ALL)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            result_caveats.log_caveats((UNKNOWN, OF_ALL, TILTED), scan, said)
    of_scan = [f"scan.nii.gz: {each.text}" for each in (OF_ALL, TILTED)]
    assert caplog.messages == [UNKNOWN.text, *of_scan, *of_scan]


def test_they_travel_from_the_reader_through_a_meta_tensor(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from monai.data import DataLoader, Dataset

    (tmp_path / "x.nii.gz").touch()
    scan = dataclasses.replace(_volume(OF_ALL), array=_volume().array[:, :, :2])
    monkeypatch.setattr("boltzformer_monai.inferers.segmenter.read_volume", lambda *_, **__: scan)
    (item,) = DataLoader(Dataset([{"image": tmp_path / "x.nii.gz"}], LoadVolumed()), batch_size=1)
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint)
    segmenter.inferer(RunSettings(prompts=["left kidney"]))(item["image"], segmenter.network)
    assert OF_ALL.text in caplog.text


def test_a_result_holds_them_with_the_modality_that_it_was_taken_for(checkpoint: Path) -> None:
    scan = dataclasses.replace(_volume(OF_ALL, modality="unknown"), array=_volume().array[:, :, :2])
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint)
    with segmenter.inferer(RunSettings(prompts=["left kidney"], planes="coronal")).segment(
        scan, segmenter.network
    ) as result:
        kinds = {each.kind for each in result.caveats}
    assert kinds == {"not HU", "another plane", "assumed modality", "acquisition plane", "no thresholds"}
    assert result.grid.modality == "CT"


@pytest.fixture
def series(tmp_path: Path) -> Scan:
    image, _ = make_phantom("abdomen", seed=1, size=(36, 32, 5))
    return Scan("series", write_phantom_dicom(image, tmp_path / "series", seed=1))


@pytest.mark.parametrize("caveats", [(), (UNKNOWN, OF_ALL, ASSUMED), (ASSUMED,)])
def test_summary_and_dicom_seg_say_them(series: Scan, tmp_path: Path, caveats: tuple[Caveat, ...]) -> None:
    need_module("highdicom")
    from pydicom import dcmread

    grid = read_volume(series.place)
    long = "a name that does not fit into the label of a segment, which has sixty-four letters " * 20
    masks = {name: np.ones(grid.shape, bool) for name in ("liver", "flux", long)}
    result: Any = StubResult(grid, masks, caveats=caveats)
    settings = RunSettings(prompts=tuple(masks), ending=".dcm")
    write_results(result, tmp_path / "out", settings, model=ModelRecord(sha256="ab"), scan=series)
    summary = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert summary["caveats"] == [each.as_dict() for each in caveats]
    assert summary["in_doubt"] == (UNKNOWN in caveats)
    assert [each["caveats"] for each in summary["prompts"]] == [[], [UNKNOWN.text] if UNKNOWN in caveats else [], []]
    seg = dcmread(tmp_path / "out.dcm")
    assert seg.SeriesDescription == (SERIES_IN_DOUBT if UNKNOWN in caveats else SERIES)
    assert len(seg.SeriesDescription) <= 64
    texts = [segment.get("SegmentDescription", "") for segment in seg.SegmentSequence]
    whole = ". ".join(each.text for each in caveats if each.prompt is None)
    assert texts[0] == whole
    assert texts[1] == ". ".join(each.text for each in caveats)
    assert texts[2].endswith(whole)
    assert texts[2].startswith("a name that")
    assert len(texts[2]) == 1024


def test_the_preview_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("boltzformer_monai.inferers.preview.png_bytes", lambda figure: figures.append(figure) or b"")

    def notes(*caveats: Caveat) -> tuple[list[str], str]:
        """Lines above the slices and their colour."""
        result: Any = StubResult(_volume(), {"liver": np.zeros((40, 30, 16), bool)}, caveats=caveats)
        contact_sheet(result, slices=1)
        texts = figures[-1].texts
        return (texts[0].get_text().splitlines(), to_hex(texts[0].get_color()).upper()) if texts else ([], "")

    assert notes() == ([], "")
    lines, colour = notes(ASSUMED)
    assert lines[0].startswith("Note: ")
    assert colour == "#444444"
    lines, colour = notes(UNKNOWN)
    assert lines[0].startswith("In doubt: ")
    assert colour == "#B00020"
    many = [Caveat("unknown prompt", f"{n} 左 $x$ " + "long " * 80, str(n)) for n in range(9)]
    lines, colour = notes(*many)
    assert colour == "#B00020"
    assert lines[-1] == "… and 3 more, see the JSON file"
    starts = [line.split()[2:5] for line in lines if line.startswith("In doubt")]
    assert starts == [[str(n), "?", r"\$x\$"] for n in range(6)]
    assert sum(line.count("long") for line in lines) == 6 * 80
