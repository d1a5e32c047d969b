"""What the page shows, in a real browser, before a stand-in for the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.needs import need_module

need_module("playwright.sync_api")

from tests.label.browser import RED, visit  # noqa: E402
from tests.label.page_stub import Phantoms  # noqa: E402

BLUE = (70, 180, 255)  # of the second prompt


def _coordinates(hits: np.ndarray) -> tuple[float, float]:
    """Mean row and column, as shares of the picture."""
    rows, columns = np.nonzero(hits)
    return float(rows.mean() / hits.shape[0]), float(columns.mean() / hits.shape[1])


@pytest.mark.slow
def test_masks_appear_in_their_colours_and_are_listed(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, phantoms = stub
    with visit(browser, url) as seen:
        seen.open()
        before = seen.picture()
        assert before.std() > 20, "the scan is not drawn"
        assert seen.coloured(RED).sum() < 20
        seen.segment("liver; left kidney\n\n  something absent ;liver")
        assert phantoms.orders[-1] == {
            "image": "abdomen one",
            "prompts": ["liver", "left kidney", "something absent"],
            "uncertainty": 0,
            "presence": True,
        }
        assert (np.abs(seen.picture() - before).max(2) > 30).mean() > 0.02
        assert seen.coloured(RED).sum() > 2000
        items = seen.page.locator("#findings li")
        texts = items.all_inner_texts()
        assert len(texts) == 3
        assert "liver" in texts[0]
        assert "confidence 87 %" in texts[0]
        voxels = phantoms.images["abdomen one"][1]
        volume = (voxels.array == 1).sum() * np.prod(voxels.spacing) / 1000
        assert f"{volume:.0f} ml" in texts[0]
        assert "not found" in texts[2]
        assert "highest presence 4 %" in texts[2]
        assert items.nth(2).get_by_role("button").count() == 0
        assert seen.page.inner_text("#status").startswith("2 of 3 found")
        assert "Not found: something absent. In doubt: " in seen.page.inner_text("#status")
        assert seen.page.locator("#caveats .note").all_inner_texts() == ["taken as CT, a remark"]
        assert items.nth(2).locator(".caveat").all_inner_texts() == ["something absent is in doubt"]
        # Hidden and shown again; the opacity decides how much of the colour there is.
        items.nth(0).get_by_role("checkbox").uncheck()
        assert seen.coloured(RED).sum() < 100
        items.nth(0).get_by_role("checkbox").check()
        assert seen.coloured(RED).sum() > 2000
        seen.page.fill("#opacity", "0")
        assert seen.coloured(RED).sum() < 20


@pytest.mark.slow
def test_right_is_right(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, _ = stub
    with visit(browser, url) as seen:
        seen.open()
        seen.segment("right kidney; left kidney")
        seen.page.get_by_role("button", name="Go to left kidney").click()
        half = seen.picture().shape[1] // 2
        right, left = seen.coloured(RED)[:, :half], seen.coloured(BLUE)[:, :half]  # the right half holds the 3-D view
        assert _coordinates(right)[1] < _coordinates(left)[1]
        assert seen.page.inner_text("#place").startswith("L ")
        assert "left kidney" in seen.page.inner_text("#place")
        seen.page.get_by_label("Patient's right on the left").uncheck()
        assert _coordinates(seen.coloured(RED)[:, :half])[1] > _coordinates(seen.coloured(BLUE)[:, :half])[1]
        seen.page.get_by_role("button", name="Go to right kidney").click()
        assert seen.page.inner_text("#place").startswith("R ")


@pytest.mark.slow
def test_downloads_lie_on_the_grid_of_the_scan(browser: Any, stub: tuple[str, Phantoms], tmp_path: Path) -> None:
    url, phantoms = stub
    scan, truth, _, _ = phantoms.images["abdomen one"]
    phantoms.dicom_sr_note = "the DICOM SR lists the 1000 largest of 1234 lesions"
    with visit(browser, url) as seen:
        seen.open()
        seen.page.check("#uncertain")
        seen.page.fill("#repeats", "4")
        seen.segment("spleen")
        assert phantoms.orders[-1]["uncertainty"] == 4
        assert seen.page.inner_text("#downloads .note") == phantoms.dicom_sr_note
        files = {}
        for text in seen.page.locator("#downloads button").all_inner_texts():
            with seen.page.expect_download() as waited:
                seen.page.get_by_role("button", name=text, exact=True).click()
            name = waited.value.suggested_filename
            waited.value.save_as(tmp_path / name)
            files[text] = tmp_path / name
    masks_and_maps = ["Masks (NIfTI)", "Uncertainty (NIfTI)", "DICOM SEG"]
    assert list(files) == [*masks_and_maps, "DICOM SR", "Lesions (CSV)", "Report (HTML)", "Summary (JSON)"]
    masks = nib.load(files["Masks (NIfTI)"])
    assert files["Masks (NIfTI)"].name == "abdomen_one-labels.nii.gz"
    assert masks.shape == scan.shape
    np.testing.assert_allclose(masks.affine, scan.affine)
    np.testing.assert_array_equal(np.asarray(masks.dataobj) == 1, truth.array == 2)
    assert nib.load(files["Uncertainty (NIfTI)"]).shape == scan.shape
    assert files["DICOM SEG"].read_bytes()[128:132] == b"DICM"
    assert json.loads(files["Summary (JSON)"].read_text())["prompts"][0]["prompt"] == "spleen"


def test_only_what_there_is_is_offered(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, phantoms = stub
    phantoms.dicom_seg = False
    with visit(browser, url) as seen:
        seen.open()
        seen.segment("liver")
        assert seen.page.locator("#downloads button").all_inner_texts() == [
            "Masks (NIfTI)",
            "Lesions (CSV)",
            "Report (HTML)",
            "Summary (JSON)",
        ]
        assert seen.page.locator("#uncertainty-opacity").is_disabled()


@pytest.mark.slow
def test_the_uncertainty_is_drawn_with_a_slider_of_its_own(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, _ = stub
    with visit(browser, url) as seen:
        seen.open()
        seen.page.check("#uncertain")
        seen.page.fill("#opacity", "0")
        seen.segment("liver")
        shown = seen.picture()
        seen.page.fill("#uncertainty-opacity", "0")
        assert (np.abs(shown - seen.picture()).max(2) > 40).mean() > 0.005


@pytest.mark.slow
def test_the_window_decides_the_greys(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, _ = stub
    with visit(browser, url) as seen:
        seen.open()
        soft = seen.picture().mean()
        seen.page.select_option("#window-preset", "Lung")
        assert seen.page.input_value("#level") == "-600"
        assert seen.picture().mean() > soft + 10
        seen.page.fill("#level", "2000")
        assert seen.page.input_value("#window-preset") == "Own"
        assert seen.picture().mean() < soft


@pytest.mark.slow
def test_the_keyboard_is_enough(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, phantoms = stub
    with visit(browser, url) as seen:
        seen.open()
        press = seen.page.keyboard.press

        def tab_to(wanted: str, key: str = "Tab") -> None:
            for _ in range(60):
                press(key)
                here = seen.page.evaluate("document.activeElement.id || document.activeElement.ariaLabel || ''")
                if here == wanted:
                    outline = seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert outline != "none", f"the focus on {wanted} cannot be seen"
                    return
            pytest.fail(f"Tab does not come to {wanted}")

        tab_to("scan")
        press("c")  # the list goes to the scan that begins so
        seen.wait_status(r"^chest_2.*voxels")
        tab_to("prompts")
        press("Control+a")
        seen.page.keyboard.type("left lung")
        press("Shift+Enter")
        seen.page.keyboard.type("heart")
        press("Control+Enter")
        seen.wait_status(r"2 of 2 found")
        assert phantoms.orders[-1]["prompts"] == ["left lung", "heart"]
        assert phantoms.orders[-1]["image"] == "chest_2"
        tab_to("Go to heart")
        press("Enter")
        assert "heart" in seen.page.inner_text("#place")
        tab_to("opacity")
        press("ArrowRight")
        assert seen.page.inner_text("#opacity-value") == "51 %"
        tab_to("canvas")
        place = [int(seen.page.input_value(f"#{plane}")) for plane in ("sagittal", "coronal", "axial")]
        for key in ("ArrowLeft", "ArrowUp", "PageDown"):
            press(key)
        moved = [int(seen.page.input_value(f"#{plane}")) for plane in ("sagittal", "coronal", "axial")]
        assert moved == [place[0] + 1, place[1] + 1, place[2] - 1]  # the patient's right is on the left
        before = seen.picture()
        press("Shift+ArrowLeft")
        assert (seen.picture() != before).any()
        tab_to("axial")
        press("Home")
        assert seen.page.input_value("#axial") == "0"
        tab_to("prompts", "Shift+Tab")


def test_a_prompt_is_text_and_nothing_else(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, _ = stub
    evil = '<img src="x" onerror="document.title=1"> absent'
    with visit(browser, url) as seen:
        seen.open()
        seen.segment(evil)
        assert evil in seen.page.locator("#findings li").inner_text()
        assert seen.page.locator("#findings img").count() == 0
        assert seen.page.title() == "BoltzFormer"


def test_targets_are_offered_as_prompts(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, _ = stub
    with visit(browser, url) as seen:
        seen.open()
        seen.page.get_by_text("Names the model was trained on").click()
        for name in ("left kidney", "liver"):
            seen.page.get_by_role("button", name=name, exact=True).click()
        assert seen.page.input_value("#prompts") == "liver\nleft kidney"
