"""How the page looks, what its browser may load, and where its viewer comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.needs import missing, need_module

need_module("playwright.sync_api")

from tests.label.browser import RED, visit  # noqa: E402
from tests.label.page_stub import PAGE, Phantoms  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 640}}])
def test_it_is_readable_in_the_dark_and_on_a_small_screen(
    browser: Any, stub: tuple[str, Phantoms], options: dict[str, Any]
) -> None:
    url, _ = stub
    with visit(browser, url, **options) as seen:
        seen.open()
        seen.segment("liver; absent")
        assert seen.page.get_by_text("Research use only").is_visible()
        assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert seen.coloured(RED).sum() > 500
        for selector in ("#status", "#findings .absent", "#findings .numbers", ".help", ".research", "#run"):
            assert _contrast(seen.page, selector) >= 4.5, selector


def _contrast(page: Any, selector: str) -> float:
    """Contrast of a text with what is behind it, as WCAG defines it."""
    text, back = page.locator(selector).first.evaluate("""(element) => {
        let behind = element;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        const numbers = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
        return [numbers(getComputedStyle(element).color), numbers(getComputedStyle(behind).backgroundColor)];
    }""")

    def luminance(rgb: list[float]) -> float:
        share = np.array(rgb) / 255
        return float(
            np.where(share <= 0.03928, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    light, dark = sorted((luminance(text), luminance(back)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_where_the_viewer_was_not_built_the_page_says_how(browser: Any, stub: tuple[str, Phantoms]) -> None:
    url, _ = stub
    with visit(browser, url) as seen:
        seen.page.route(
            "**/vendor/*", lambda route: route.fulfill(status=404, body="{}", content_type="application/json")
        )
        seen.page.goto(url)
        seen.page.locator("#status.error").filter(has_text="make page").wait_for()


def test_the_page_asks_nobody_else() -> None:
    for path in PAGE.glob("*.*"):
        assert "://" not in path.read_text(encoding="utf-8"), path.name
    policy = (PAGE / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy


@pytest.mark.parametrize(("options", "code", "kind"), [([], 2, "error"), (["--if-possible"], 0, "warning")])
def test_without_npm_one_line_says_what_to_do(tmp_path: Path, options: list[str], code: int, kind: str) -> None:
    # A copy, since what was fetched already needs no npm.
    copy = tmp_path / "viewer"
    copy.mkdir()
    for name in ("vendor.py", "package.json", "package-lock.json", ".npmrc"):
        (copy / name).write_bytes((REPOSITORY / "viewer" / name).read_bytes())
    command = [sys.executable, str(copy / "vendor.py"), *options]
    done = subprocess.run(
        command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stderr.startswith(f"{kind}: ")
    assert "make page" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_lock_file_names_hashes_and_no_host() -> None:
    text = (REPOSITORY / "viewer" / "package-lock.json").read_text(encoding="utf-8")
    assert text.count('"integrity": "sha512-') > 10
    assert '"resolved"' not in text


def test_the_licences_lie_beside_the_viewer() -> None:
    if not (PAGE / "vendor").is_dir():
        missing("the page's viewer was not fetched (make page)")
    text = (PAGE / "vendor" / "LICENSES.txt").read_text(encoding="utf-8")
    for name in ("BSD 2-Clause License", "Niivue", "gl-matrix", "nifti-reader-js", "fflate"):
        assert name in text
