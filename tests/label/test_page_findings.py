"""A reader's work in the page: lesions, completions, a click and a closer look; before a stand-in for the server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.needs import need_module

need_module("playwright.sync_api")

from tests.label.browser import Visit, visit  # noqa: E402
from tests.label.page_stub import SPOTS, Phantoms  # noqa: E402


def _place(seen: Visit) -> np.ndarray:
    """Where the crosshair is, millimetres in RAS, as the page says it."""
    found = re.match(r"([LR]) ([\d.]+), ([PA]) ([\d.]+), ([IS]) ([\d.]+) mm", seen.page.inner_text("#place"))
    assert found, seen.page.inner_text("#place")
    signs = [1 if side in "RAS" else -1 for side in found.group(1, 3, 5)]
    return np.array(signs) * np.array([float(number) for number in found.group(2, 4, 6)])


def _centre(phantoms: Phantoms, spot: tuple[Any, ...]) -> np.ndarray:
    middle = [(each.start + each.stop - 1) / 2 if isinstance(each, slice) else each for each in spot]
    affine = phantoms.images["abdomen one"][0].affine
    return np.asarray(affine[:3, :3] @ middle + affine[:3, 3])


def _voxel_mm(phantoms: Phantoms) -> float:
    return float(max(phantoms.images["abdomen one"][0].spacing))


@pytest.mark.slow
def test_a_row_leads_to_its_lesion(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, phantoms = stub
    with visit(browser, url) as seen:
        seen.open()
        seen.segment("liver; spots")
        rows = seen.page.locator("#findings li").last.locator("tbody tr")
        assert rows.locator("th").all_inner_texts() == ["1", "2", "3"]
        volumes = [float(text.split()[-1]) for text in rows.locator("td:nth-child(2)").all_inner_texts()]
        assert volumes == sorted(volumes, reverse=True)
        assert "3 lesions" in seen.page.locator("#findings caption").last.inner_text()
        for number in (2, 0, 1):
            rows.nth(number).locator("td").last.click()
            assert np.abs(_place(seen) - _centre(phantoms, SPOTS[number])).max() <= _voxel_mm(phantoms)
            assert "spots" in seen.page.inner_text("#place")
            assert rows.nth(number).get_attribute("aria-current") == "true"
            assert seen.page.locator("#findings tr[aria-current]").count() == 1
            assert str(number + 1) in seen.page.locator("#marks span").all_inner_texts()
        # The number is drawn beside its lesion, in all three slices.
        box = seen.page.locator("#canvas").bounding_box()
        marks = [each.bounding_box() for each in seen.page.locator("#marks span", has_text="2").all()]
        assert len(marks) == 3, "it lies in all three slices"
        for mark in marks:
            assert mark is not None
            assert box is not None
            assert box["x"] <= mark["x"] <= box["x"] + box["width"]
            assert box["y"] - 30 <= mark["y"] <= box["y"] + box["height"]
        seen.page.locator("#findings li").last.get_by_role("checkbox").uncheck()
        assert seen.page.locator("#marks span", has_text="2").count() == 0


@pytest.mark.slow
def test_a_prompt_is_completed_and_its_reading_told(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, phantoms = stub
    with visit(browser, url) as seen:
        seen.open()
        box = seen.page.locator("#prompts")
        options = seen.page.locator("#completions [role=option]")
        press = seen.page.keyboard.press
        box.fill("liver\n")
        box.press_sequentially("linke Ni")
        options.first.wait_for()
        assert box.get_attribute("aria-expanded") == "true"
        assert options.first.inner_text().split("\n") == ["left kidney", "linke niere"]
        press("Escape")
        assert not seen.page.locator("#completions").is_visible()
        assert box.input_value() == "liver\nlinke Ni"
        box.press_sequentially("e")
        options.first.wait_for()
        press("ArrowDown")
        assert box.get_attribute("aria-activedescendant") == options.first.get_attribute("id")
        assert options.first.get_attribute("aria-selected") == "true"
        press("Enter")
        assert box.input_value() == "liver\nleft kidney"
        assert not phantoms.orders, "Enter took the completion and started nothing"
        press("Enter")
        seen.wait_status(r"2 of 2 found")
        told = seen.page.locator("#understood")
        for text, wanted in (
            ("left kindey", "Understood as left kidney (typing error in 'kindey'; score 0.83)"),
            ("spleen < 5 mm", "Lesions of a size < 5 mm will be listed"),
        ):
            box.fill("")
            box.press_sequentially(text)
            told.filter(has_text=wanted).wait_for()
        box.fill("liver; ")
        box.press_sequentially("kidney lft upper")
        told.filter(has_text="Did you mean").wait_for()
        assert seen.page.locator("#findings li").count() == 2
        told.get_by_role("button").first.click()
        assert box.input_value() == "liver; left kidney"


@pytest.mark.slow
def test_a_click_chooses_a_lesion_and_looks_closer(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, phantoms = stub
    with visit(browser, url) as seen:
        seen.open()
        seen.segment("spots")
        seen.page.locator("#findings tbody tr").nth(1).click()
        canvas = seen.page.locator("#canvas")
        mark = seen.page.locator("#marks span", has_text="2").first.bounding_box()
        box = canvas.bounding_box()
        assert mark is not None
        assert box is not None
        before = _place(seen)
        canvas.click(position={"x": mark["x"] - box["x"] - 2, "y": mark["y"] - box["y"] + 27})
        clicked = _place(seen)
        assert 0 < np.abs(clicked - before).max() < 30, "a click beside the lesion moves the crosshair a little"
        seen.page.get_by_role("button", name="Look closer here").click()
        seen.wait_status(r"looked at closer")
        request = phantoms.orders[-1]
        assert request["look_closer"] is True
        assert "keep_lesions" not in request
        assert np.abs(np.array(request["point"]) - clicked).max() < 0.06
        assert seen.page.locator("#findings tbody tr").count() == 3
        seen.page.locator("#findings tbody tr").nth(2).click()
        seen.page.get_by_role("button", name="Keep only the lesion here").click()
        seen.wait_status(r"1 of 1 found")
        assert phantoms.orders[-1]["keep_lesions"] == "at_point"
        assert phantoms.orders[-1]["look_closer"] is True
        assert phantoms.orders[-1]["closer_point"] == request["point"], "the region that is shown"
        assert phantoms.orders[-1]["point"] != request["point"]
        assert seen.page.locator("#findings tbody tr").count() == 1
        assert "at the point: lesion 1; 2 others dropped" in seen.page.locator("#findings li").inner_text()
        assert seen.page.locator("#findings tr[aria-current]").count() == 1
        # Where nothing is.
        seen.page.fill("#sagittal", "0")
        seen.page.get_by_role("button", name="Keep only the lesion here").click()
        seen.wait_status(r"0 of 1 found")
        assert "no lesion near the point" in seen.page.locator("#findings li").inner_text()


@pytest.mark.slow
def test_a_day_by_the_keyboard_alone(browser: Any, stub: tuple[str, Phantoms], tmp_path: Path) -> None:
    url, phantoms = stub
    with visit(browser, url) as seen:
        seen.open()
        press = seen.page.keyboard.press

        def tab_to(wanted: str) -> None:
            for _ in range(80):
                press("Tab")
                here = seen.page.evaluate("[document.activeElement.id, document.activeElement.innerText].join(' ')")
                if wanted in here:
                    outline = seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert outline != "none", f"the focus on {wanted} cannot be seen"
                    return
            pytest.fail(f"Tab does not come to {wanted}")

        tab_to("prompts")
        press("Control+a")
        seen.page.keyboard.type("spots")
        press("Shift+Enter")
        seen.page.keyboard.type("left ki")
        seen.page.locator("#completions [role=option]").first.wait_for()
        press("ArrowDown")
        press("Enter")
        press("Enter")
        seen.wait_status(r"2 of 2 found")
        assert phantoms.orders[-1]["prompts"] == ["spots", "left kidney"]
        for _ in range(60):
            press("Tab")
            if seen.page.evaluate("document.activeElement.closest('.lesions') !== null"):
                break
        assert seen.page.evaluate("document.activeElement.innerText") == "1"
        press("ArrowDown")
        press("End")
        press("ArrowUp")
        assert seen.page.evaluate("document.activeElement.innerText") == "2"
        press("Enter")
        assert np.abs(_place(seen) - _centre(phantoms, SPOTS[1])).max() <= _voxel_mm(phantoms)
        tab_to("Masks (NIfTI)")
        with seen.page.expect_download() as waited:
            press("Enter")
        waited.value.save_as(tmp_path / "masks.nii.gz")
        assert (tmp_path / "masks.nii.gz").stat().st_size > 100
        tab_to("look-closer")
        press("Enter")
        seen.wait_status(r"looked at closer")
        point = np.array(phantoms.orders[-1]["point"])
        assert np.abs(point - _centre(phantoms, SPOTS[1])).max() <= _voxel_mm(phantoms)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_the_table_fits(browser: Any, stub: tuple[str, Phantoms], width: int) -> None:
    url, _ = stub
    with visit(browser, url, viewport={"width": width, "height": 800}) as seen:
        seen.open()
        seen.segment("spots; left kidney")
        assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        for table in seen.page.locator(".scroll").all():
            assert table.evaluate("(it) => it.scrollWidth <= it.clientWidth")
        assert all(seen.page.get_by_role("button", name=name).is_visible() for name in ("Look closer", "Keep only"))
