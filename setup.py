"""Everything is in pyproject.toml, but for one step: building a wheel fetches the page's viewer library into it."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPage(build_py):
    """Fetches the viewer before the files are collected; an editable install leaves that to `make page`.

    Without npm the wheel is built without it, and the page says so; BOLTZFORMER_REQUIRE_PAGE=1 makes that an error.
    """

    def run(self) -> None:
        if not self.editable_mode:
            self._vendor()
        super().run()

    def _vendor(self) -> None:
        script = runpy.run_path(str(Path(__file__).resolve().parent / "viewer" / "vendor.py"))
        try:
            script["vendor"]()
        except script["VendorError"] as error:
            if os.environ.get("BOLTZFORMER_REQUIRE_PAGE"):
                sys.exit(f"error: {error}")
            sys.stderr.write(f"warning: {error}; the wheel is built without it\n")


setup(cmdclass={"build_py": BuildWithPage})
