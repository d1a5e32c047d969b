"""The page in a real browser, before the real server: MONAI Label with this app, phantoms and random weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")
need_module("playwright.sync_api")

from boltzformer_monai.demo.phantom import make_phantom  # noqa: E402
from boltzformer_monai.demo.phantom_files import write_phantom_nifti  # noqa: E402
from tests.inferers.conftest import checkpoint  # noqa: E402, F401
from tests.label.browser import RED, require_browser, visit  # noqa: E402
from tests.label.live_server import running  # noqa: E402


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms as NIfTI, without their labels."""
    folder = tmp_path_factory.mktemp("studies")
    for kind in ("abdomen", "chest"):
        image, label = make_phantom(kind, seed=3, size=(96, 80, 12))
        _, annotation = write_phantom_nifti(image, label, folder, kind)
        annotation.unlink()
    return folder


@pytest.fixture(scope="module")
def address(studies: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    """Of the page; the server runs until the tests of this file are over."""
    require_browser()
    with running(studies, tmp_path_factory.mktemp("server"), {"checkpoint": checkpoint}) as server:
        yield f"{server.url}/boltzformer/"


@pytest.mark.slow
def test_a_visit(browser: Any, address: str, studies: Path, tmp_path: Path) -> None:
    with visit(browser, address) as seen:
        seen.open()
        assert seen.page.input_value("#prompts") == "left kidney\nlung nodule"  # what the checkpoint knows
        assert seen.page.locator("#scan option").all_inner_texts() == ["abdomen", "chest"]
        before = seen.picture()
        assert before.std() > 20, "the scan is not drawn"
        seen.page.check("#uncertain")
        seen.page.fill("#repeats", "2")
        seen.segment("left kidney; lung nodule")
        seen.page.fill("#uncertainty-opacity", "0")
        texts = seen.page.locator("#findings li").all_inner_texts()
        assert len(texts) == 2
        assert "ml, confidence" in texts[0]
        assert (np.abs(seen.picture() - before).max(2) > 30).mean() > 0.01
        assert seen.coloured(RED).sum() > 500
        files = _downloads(seen.page, tmp_path)
        assert list(files) == [
            "Masks (NIfTI)",
            "Uncertainty (NIfTI)",
            "Lesions (CSV)",
            "Report (HTML)",
            "Summary (JSON)",
        ]
        scan, masks = nib.load(studies / "abdomen.nii.gz"), nib.load(files["Masks (NIfTI)"])
        assert masks.shape == nib.load(files["Uncertainty (NIfTI)"]).shape == scan.shape
        np.testing.assert_allclose(masks.affine, scan.affine, atol=1e-4)
        summary = json.loads(files["Summary (JSON)"].read_text())
        counts = np.bincount(np.asarray(masks.dataobj).astype(int).ravel(), minlength=3)
        assert [each["label_voxels"] for each in summary["prompts"]] == counts[1:3].tolist()
        assert f"confidence {100 * summary['prompts'][0]['confidence']:.0f} %" in texts[0]
        with files["Lesions (CSV)"].open(newline="", encoding="utf-8") as file:
            listed = list(csv.DictReader(file))
        assert [(each["name"], int(each["voxels"])) for each in listed] == [
            (prompt["prompt"], lesion["voxels"]) for prompt in summary["prompts"] for lesion in prompt["lesions"]
        ]
        # The same scan again: its features were kept.
        seen.segment("left kidney")
        assert "kept from before" in seen.page.inner_text("#status")
        lesions = seen.page.locator("#findings tbody tr").count()
        seen.page.locator("#findings tbody tr").nth(lesions - 1).click()
        seen.page.get_by_role("button", name="Look closer here").click()
        seen.wait_status(r"looked at closer")
        assert "decoded again" in seen.page.inner_text("#caveats")
        seen.segment("left kidney")  # of whole slices again: elsewhere, a closer look may find something else
        seen.page.locator("#findings tbody tr").first.click()
        seen.page.get_by_role("button", name="Keep only the lesion here").click()
        seen.wait_status(r"found in")
        assert seen.page.locator("#findings tbody tr").count() == 1
        seen.page.fill("#prompts", "")
        seen.page.locator("#prompts").press_sequentially("linke Nie")
        seen.page.locator("#completions [role=option]").first.wait_for()
        assert "left kidney" in seen.page.inner_text("#completions")


@pytest.mark.slow
def test_what_is_not_found_and_what_is_refused(browser: Any, address: str) -> None:
    with visit(browser, address) as seen:
        seen.open()
        seen.page.get_by_text("More settings").click()
        seen.page.fill("#threshold", "0.99")
        seen.segment("spleen")
        assert "0 of 1" in seen.page.inner_text("#status")
        assert "not found" in seen.page.locator("#findings li").inner_text()
        seen.page.fill("#prompts", "x" * 5000)
        seen.page.press("#prompts", "Enter")
        seen.page.locator("#status.error").wait_for()
        told = seen.page.inner_text("#status")
        assert "at most 500" in told
        assert "\n" not in told
        assert len(told) < 300
        seen.page.select_option("#scan", "chest")
        seen.wait_status(r"^chest.*voxels")


def _downloads(page: Any, folder: Path) -> dict[str, Path]:
    """Press every button that saves a file: text of the button -> file."""
    files = {}
    for text in page.locator("#downloads button").all_inner_texts():
        with page.expect_download() as waited:
            page.get_by_role("button", name=text, exact=True).click()
        files[text] = folder / waited.value.suggested_filename
        waited.value.save_as(files[text])
    return files
