"""A headless Chromium that draws WebGL in software, and the few steps that every test of the page takes."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from tests.label.page_stub import PAGE
from tests.needs import missing, need_module

sync_api = need_module("playwright.sync_api")

_PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_SWITCHES = [
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-gpu-watchdog",  # a busy machine that draws in software is slow, not hung
    "--no-sandbox",
]
PATIENCE_MS = 120_000
RED = (230, 60, 60)
"""The page's colour of the first prompt."""


def require_browser() -> None:
    """Skip where there is no Chromium or the page's viewer was not fetched."""
    if _PROGRAM is None:
        missing("no Chromium here (Debian: apt install chromium)")
    if not (PAGE / "vendor" / "niivue.js").is_file():
        missing("the page's viewer was not fetched (make page)")


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, closed when the block is left."""
    require_browser()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_PROGRAM, args=_SWITCHES)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A visit of the page that notes what must not happen: complaints of the browser, requests to elsewhere.

    Args:
        browser: of :func:`chromium`.
        url: of the page.
        options: of the browser's context: colour scheme, size, …
    """

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        # What is drawn in software takes its time by the pixel, and a spinner would be drawn all the while.
        common = {"viewport": {"width": 980, "height": 560}, "reduced_motion": "reduce"}
        self.context = browser.new_context(**{**common, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"{error}\n{error.stack}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _heard(self, message: Any) -> None:
        # The browser itself logs refused requests (that the page shows the reason is tested on its own), and now and
        # then that its own readback of the picture waited for the drawing, which depends on how busy the machine is.
        expected = message.text.startswith("Failed to load resource") or "(OpenGL, Performance" in message.text
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(f"{message.type}: {message.text} ({message.location})")

    def open(self) -> Visit:
        """Go there and wait for the first scan."""
        self.page.goto(self.url)
        self.wait_status(r"voxels")
        return self

    def wait_status(self, pattern: str) -> str:
        """The status line, once it matches; an unexpected error there ends the wait."""
        line = self.page.locator("#status")
        line.filter(has_text=re.compile(rf"{pattern}|^Error")).wait_for()
        text: str = line.inner_text()
        assert re.search(pattern, text), text
        return text

    def segment(self, prompts: str) -> None:
        """Type the prompts, press Enter, wait for the result."""
        self.page.fill("#prompts", prompts)
        self.page.press("#prompts", "Enter")
        self.wait_status(r"found in")

    def picture(self) -> np.ndarray:
        """What the canvas shows, ``(rows, columns, 3)`` int16."""
        self.page.wait_for_timeout(150)  # drawing follows the input in a frame of its own
        png = self.page.locator("#canvas").screenshot()
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)

    def coloured(self, rgb: tuple[int, int, int]) -> np.ndarray:
        """Where the canvas shows a shade of this colour over grey, ``(rows, columns)`` boolean.

        Grey under a half transparent colour adds the same to all channels: their differences tell the colour.
        """
        picture = self.picture()
        seen = picture - picture.mean(axis=2, keepdims=True)
        wanted = np.array(rgb, float) - np.mean(rgb)
        length = np.linalg.norm(seen, axis=2)
        alike = (seen @ wanted) / np.maximum(length * np.linalg.norm(wanted), 1e-6)
        return (length > 40) & (alike > 0.97)

    def close(self) -> None:
        """End the visit; raise if anything happened that must not."""
        self.context.close()
        origin = "/".join(self.url.split("/")[:3]) + "/"
        foreign = [url for url in self.requests if not url.startswith((origin, "data:", f"blob:{origin}"))]
        assert not foreign, foreign
        assert not self.complaints, self.complaints


@contextmanager
def visit(browser: Any, url: str, **options: Any) -> Iterator[Visit]:
    """An opened visit, checked when the block is left."""
    visited = Visit(browser, url, **options)
    try:
        yield visited
    except BaseException:
        visited.context.close()
        raise
    visited.close()
