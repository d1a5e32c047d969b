"""The OHIF viewer that MONAI Label brings along, in a real browser, before the real server and a real Orthanc."""

from __future__ import annotations

import io
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.needs import missing, need_module

need_module("highdicom")
ohif = need_module("monailabel.endpoints.ohif")
need_module("playwright.sync_api")

from boltzformer_monai.errors import ConfigError  # noqa: E402
from boltzformer_monai.io.read import read_volume  # noqa: E402
from boltzformer_monai.label.datastore.dicomweb_client import LIST_S  # noqa: E402
from boltzformer_monai.label.datastore.seg_labels import write_label_as_seg  # noqa: E402
from boltzformer_monai.label.infer_request import with_ticked_labels  # noqa: E402
from tests.label.browser import PATIENCE_MS  # noqa: E402
from tests.label.dicom_series import add_phantom  # noqa: E402
from tests.label.live_server import Server, running  # noqa: E402
from tests.label.orthanc import Orthanc  # noqa: E402

_AUTO, _CLASSES = 2, 4


class _Visit:
    """OHIF in a page of the browser, before a server; what must not happen is noted."""

    def __init__(self, page: Any, server: Server) -> None:
        self.page, self.server = page, server
        self.troubles: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("response", self._answered)
        # The page asks Google for a font: the browser must not even try.
        page.on("requestfailed", lambda asked: asked.failure == "csp" or self.troubles.append(asked.url))

    def _answered(self, reply: Any) -> None:
        # Without a training MONAI Label answers 404 to the question whether one runs.
        if reply.status >= 400 and "check_if_running" not in reply.url:
            self.troubles.append(f"{reply.status} {reply.url}")

    def open(self, patient: str) -> None:
        """The MONAI Label mode of the patient's study, connected."""
        self.page.goto(f"{self.server.url}/ohif/")
        self.page.get_by_text("Confirm and Hide").click()
        self.page.get_by_text(patient).first.click()
        self.page.get_by_text("MONAI Label").first.click()
        self.page.fill("#monailabelServerURL", self.server.url)
        self.page.wait_for_function("[...document.querySelectorAll('canvas')].filter(c => c.width > 100).length >= 3")
        self.page.wait_for_load_state("networkidle")
        self.page.locator(".settingsTable button").click()
        self.page.get_by_text("Connected to MONAI Label").wait_for()
        self.page.wait_for_timeout(2000)  # it colours the segments after a second

    def options(self, prompts: str) -> None:
        """Type prompts, and ask for masks of what the network does not believe to be there."""
        self.page.get_by_text("Options / Configurations").click()
        self.page.fill("#inferboltzformerprompts", prompts)
        self.page.uncheck("#inferboltzformerpresence")
        self.page.get_by_role("button", name="Confirm").click()

    def run(self, tab: int) -> dict[str, Any]:
        """Segment; what was asked for."""
        with self.page.expect_response(lambda reply: "/infer/" in reply.url) as waited:
            self.page.locator(f".tab:has(#tab-{tab}) button:text-is('Run')").click()
        assert waited.value.status == 200, waited.value.text()
        self.page.wait_for_timeout(2000)  # it draws
        return dict(json.loads(waited.value.request.post_data.split("\r\n")[3]))

    def run_with(self, prompts: str) -> dict[str, Any]:
        """Segment prompts; what was asked for. On a busy machine OHIF sometimes forgets what its dialog was told."""
        for _ in range(3):
            self.options(prompts)
            if "prompts" in (asked := self.run(_AUTO)):
                return asked
        raise AssertionError(f"OHIF asks without its options: {asked}")

    def colours(self) -> int:
        """Pixels of the views that are not grey."""
        png = self.page.locator(".viewport-element").first.screenshot()
        seen = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)[60:-60, 30:-30]  # without the frame
        return int(((seen.max(2) - seen.min(2)) > 30).sum())


@pytest.fixture
def visited(archive: Orthanc, browser: Any, checkpoint: Path, tmp_path: Path) -> Iterator[_Visit]:
    """OHIF, before two studies of two patients."""
    if not (Path(ohif.__file__).parent / "static" / "ohif" / "index.html").is_file():
        missing("this MONAI Label came without OHIF")
    for number, kind in enumerate(("abdomen", "chest"), 1):
        add_phantom(archive, tmp_path / kind, kind, seed=number)
    with running(archive.url, tmp_path, {"checkpoint": checkpoint, "workspace": tmp_path / "work"}) as server:
        context = browser.new_context(viewport={"width": 1400, "height": 800})
        yield _Visit(context.new_page(), server)
        context.close()


@pytest.mark.slow
def test_masks_are_drawn_and_a_seg_comes_back(visited: _Visit, tmp_path: Path) -> None:
    page, server = visited.page, visited.server
    visited.open("PHANTOM, 1")
    assert page.get_by_text("01-Jan-2000").count() == 1, "a study of another patient is offered"
    before = visited.colours()
    assert visited.run_with("left kidney")["prompts"] == "left kidney"
    assert visited.colours() > before + 500
    page.locator(f"label[for=tab-{_CLASSES}]").click()
    names = page.locator(f".tab:has(#tab-{_CLASSES}) .bodyTableContainer tr").all_inner_texts()
    assert [name.strip() for name in names] == ["left kidney", "liver"]
    page.locator(f".tab:has(#tab-{_CLASSES}) tr", has_text="liver").last.locator("input").check()
    number = server.get("/info/").json()["models"]["boltzformer"]["labels"]["liver"]
    assert visited.run(_CLASSES)["label_prompt"] == [number]
    assert visited.colours() > before + 500
    # A corrected SEG is uploaded in the list of studies.
    scan = read_volume(tmp_path / "abdomen")
    labels = np.zeros(scan.shape, np.uint8)
    labels[4:20, 6:18, 2:5] = 1
    write_label_as_seg(labels, {1: "left kidney"}, scan, tmp_path / "seg.dcm", scan=tmp_path / "abdomen", caveats=None)
    page.goto(f"{server.url}/ohif/")
    page.get_by_text("Upload").first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "seg.dcm")
    page.get_by_text("1 file completed").wait_for()
    image = str(pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence[0].SeriesInstanceUID)
    time.sleep(LIST_S + 1)
    assert "final" in server.get("/datastore/", output="all").json()["objects"][image]["labels"]
    saved = server.get("/datastore/label/info", label=image, tag="final").json()["label_info"]
    assert saved == [{"name": "left kidney", "idx": 1}]
    assert visited.troubles == []
    _check_addresses(server)


def _check_addresses(server: Server) -> None:
    """Files in folders are found and none outside; searches and what is accepted reach the archive."""
    assert server.get("/ohif/assets/images/settings.svg").headers["content-type"] == "image/svg+xml"
    for path in ("/ohif/%2e%2e/%2e%2e/info.py", "/ohif/assets/..%2f..%2f..%2finfo.py", "/ohif//etc/passwd"):
        assert server.get(path).status == 404
    (study,) = server.get("/proxy/dicom/qido/studies", PatientID="PHANTOM-2").json()
    metadata = f"{server.url}/proxy/dicom/wado/studies/{study['0020000D']['Value'][0]}/metadata"
    request = urllib.request.Request(metadata, headers={"Accept": 'multipart/related; type="application/dicom+xml"'})
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert "xml" in reply.headers["Content-Type"]


def test_ticked_labels() -> None:
    labels, params = {"liver": 1, "spleen": 2}, {"label_prompt": [2], "prompts": "Spleen; aorta", "threshold": 0.4}
    assert with_ticked_labels(params, labels) == {"prompts": ["spleen", "aorta"], "threshold": 0.4}
    assert with_ticked_labels({"label_prompt": [], "prompts": "aorta"}, labels) == {"prompts": "aorta"}
    for ticked in ([], [0], [True], ["1"], "1", {}, None, [3]):
        with pytest.raises(ConfigError, match="label_prompt"):
            with_ticked_labels({"label_prompt": ticked}, labels)
