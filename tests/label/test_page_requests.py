"""The page while it asks, and when that fails, comes too late or is stopped; before a stand-in for the server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.needs import need_module

need_module("playwright.sync_api")

from tests.label.browser import RED, visit  # noqa: E402
from tests.label.page_stub import REFUSAL, Phantoms  # noqa: E402


@pytest.mark.slow
def test_errors_are_one_line_and_the_page_goes_on(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, phantoms = stub
    with visit(browser, url) as seen:
        seen.open()
        for typed, told in (("  ; \n", "no prompt"), ("refuse me", REFUSAL), ("break", "the server answered 500")):
            seen.page.fill("#prompts", typed)
            seen.page.press("#prompts", "Enter")
            seen.page.locator("#status.error").filter(has_text=told).wait_for()
            assert "\n" not in seen.page.inner_text("#status")
        seen.segment("liver")
        assert seen.page.locator("#status.error").count() == 0
        phantoms.results.clear()
        seen.page.get_by_role("button", name="Masks (NIfTI)").click()
        seen.page.locator("#status.error").filter(has_text="nothing at").wait_for()
        seen.page.check("#uncertain")
        seen.page.fill("#repeats", "21")
        seen.page.press("#prompts", "Enter")
        seen.page.locator("#status.error").filter(has_text="2 to 20").wait_for()


@pytest.mark.slow
def test_nothing_is_drawn_where_there_is_no_room(browser: Any, stub: tuple[str, Phantoms]) -> None:
    """NiiVue would give WebGL tiles of negative size; once there is room, the picture is there again."""
    url, _ = stub
    with visit(browser, url) as seen:
        seen.open()
        before = seen.picture()
        stage = seen.page.locator("#stage")
        for size in ("width: 0; height: 0", "width: 6px; height: 6px", "height: 12px", "width: 30px", ""):
            stage.evaluate("(it, size) => { it.style.cssText = 'min-height: 0;' + size }", size)
            seen.page.wait_for_timeout(300)
        stage.evaluate("(it) => { it.style.cssText = '' }")
        seen.page.wait_for_timeout(300)
        assert np.abs(seen.picture() - before).mean() < 1


def test_lost_graphics_are_told_and_no_black_picture_is_called_a_result(
    browser: Any, stub: tuple[str, Phantoms]
) -> None:
    url, _ = stub
    with visit(browser, url) as seen:
        seen.open()
        canvas = seen.page.locator("#canvas")
        canvas.evaluate("(it) => it.getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()")
        line = seen.page.locator("#status.error").filter(has_text="reload the page")
        line.wait_for()
        seen.page.fill("#prompts", "liver")
        with seen.page.expect_response("**/labels.nii.gz"):
            seen.page.press("#prompts", "Enter")
        line.wait_for()
        assert not seen.page.locator("#results").is_visible()
        seen.page.select_option("#scan", "chest_2")
        seen.page.wait_for_timeout(500)
        assert line.is_visible()
        seen.page.reload()
        seen.wait_status(r"voxels")


@pytest.mark.slow
def test_another_scan_takes_the_masks_away(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, _ = stub
    with visit(browser, url) as seen:
        seen.open()
        seen.segment("liver")
        seen.page.select_option("#scan", "chest_2")
        seen.wait_status(r"^chest_2.*voxels")
        assert not seen.page.locator("#results").is_visible()
        assert seen.coloured(RED).sum() < 20


def test_a_result_that_comes_too_late_is_not_laid_over_another_scan(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, _ = stub
    held: list[Any] = []
    with visit(browser, url) as seen:
        seen.open()
        seen.page.route("**/labels.nii.gz", lambda route: held.append(route))
        seen.page.fill("#prompts", "liver")
        with seen.page.expect_request("**/labels.nii.gz"):
            seen.page.press("#prompts", "Enter")
        with seen.page.expect_event("requestfailed"):  # it is no longer waited for
            seen.page.select_option("#scan", "chest_2")
        seen.wait_status(r"^chest_2.*voxels")
        seen.page.wait_for_timeout(500)
        assert seen.coloured(RED).sum() < 20
        assert not seen.page.locator("#results").is_visible()
        assert seen.page.inner_text("#status").startswith("chest_2")


@pytest.mark.slow
def test_a_request_can_be_stopped(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, phantoms = stub
    with visit(browser, url) as seen:
        seen.open()
        seen.segment("liver")
        seen.page.route("**/api/segment", lambda _: None)
        seen.page.fill("#prompts", "spleen")
        with seen.page.expect_request("**/api/segment"):
            seen.page.locator("#run").dblclick(force=True)  # the second one neither asks again nor stops, …
        seen.page.press("#prompts", "Enter")  # … nor does this
        seen.page.check("#uncertain")
        seen.page.press("#repeats", "Enter")
        seen.page.uncheck("#uncertain")
        seen.wait_status(r"^Looking for spleen")
        with seen.page.expect_event("requestfailed"):
            seen.page.press("#stop", "Enter")
        seen.wait_status(r"^Stopped")
        assert seen.page.locator("#stop").is_disabled()
        assert seen.page.evaluate("document.activeElement.id") == "run"
        assert seen.page.locator("#findings li").inner_text().startswith("liver")
        assert seen.coloured(RED).sum() > 500
        seen.page.unroute("**/api/segment")
        seen.page.get_by_role("button", name="Segment").click()
        seen.wait_status(r"found in")
        assert seen.page.locator("#findings li").inner_text().startswith("spleen")
        assert [order["prompts"] for order in phantoms.orders] == [["liver"], ["spleen"]]


@pytest.mark.slow
def test_what_is_being_drawn_can_no_longer_be_stopped(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, _ = stub
    held: list[Any] = []
    with visit(browser, url) as seen:
        seen.open()
        seen.segment("liver")
        seen.page.evaluate("""() => {
            window.states = [];
            const say = () => window.states.push(
                [document.getElementById("stop").disabled, document.getElementById("status").textContent]);
            new MutationObserver(say).observe(document.body, {subtree: true, childList: true, attributes: true});
        }""")
        seen.page.route("**/labels.nii.gz", lambda route: held.append(route))
        seen.page.fill("#prompts", "spleen")
        with seen.page.expect_request("**/labels.nii.gz"):
            seen.page.press("#prompts", "Enter")
        assert seen.page.locator("#stop").is_enabled()
        held[0].continue_()
        seen.wait_status(r"found in")
        states = seen.page.evaluate("window.states")
        drawing = states.index([True, "Looking for spleen…"])
        assert [False, "Looking for spleen…"] in states[:drawing]
        assert all(disabled for disabled, _ in states[drawing:])


def test_a_token_is_asked_for_and_sent(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, phantoms = stub
    phantoms.token = "secret"
    with visit(browser, url) as seen:
        seen.page.goto(url)
        seen.page.locator("#status.error").filter(has_text="Not authenticated").wait_for()
        seen.page.fill("#token", "secret")
        seen.page.press("#token", "Enter")
        seen.wait_status(r"voxels")
        assert not seen.page.locator("#token").is_visible()
        seen.segment("liver")
