"""What pyproject.toml cannot say: the wheel brings the page's viewer and the bundle, and its README absolute links."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCE = "https://github.com/boltzformer-monai/boltzformer-monai"
BUNDLE = Path("bundles", "boltzformer")


class BuildWithPageAndBundle(build_py):
    """Fetches the viewer and copies the bundle; an editable install uses those of the checkout.

    Without npm the wheel is built without the viewer, and the page says so; BOLTZFORMER_REQUIRE_PAGE=1 makes that an
    error.
    """

    def run(self) -> None:
        if not self.editable_mode:
            self._vendor()
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "boltzformer_monai", BUNDLE)
            shutil.copytree(ROOT / BUNDLE, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))

    def _vendor(self) -> None:
        script = runpy.run_path(str(ROOT / "viewer" / "vendor.py"))
        try:
            script["vendor"]()
        except script["VendorError"] as error:
            if os.environ.get("BOLTZFORMER_REQUIRE_PAGE"):
                sys.exit(f"error: {error}")
            sys.stderr.write(f"warning: {error}; the wheel is built without it\n")


def readme() -> str:
    """README.md with its relative links made absolute: a package index knows no neighbouring files."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{SOURCE}/raw/main/", text)
    return re.sub(r"((?<!\!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{SOURCE}/blob/main/", text)


setup(
    cmdclass={"build_py": BuildWithPageAndBundle},
    long_description=readme(),
    long_description_content_type="text/markdown",
)
