"""What some tests need besides the package: where it is missing they are skipped, and with ``CI=true`` they fail."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from types import ModuleType
from typing import NoReturn

import pytest

__all__ = ["missing", "need_module", "need_program"]

_WITHOUT = os.environ.get("BOLTZFORMER_TESTS_WITHOUT", "").split()
"""Modules that an environment lacks on purpose, as .ci/run says it."""


def missing(what: str) -> NoReturn:
    """Skip a test or module whose need is not met; where everything must be tested, that is an error."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{what}, and CI=true tests everything", pytrace=False)
    pytest.skip(what, allow_module_level=True)


def need_module(name: str) -> ModuleType:
    """The module, imported."""
    package = name.partition(".")[0]
    if package in _WITHOUT:
        pytest.skip(f"an environment without {package}", allow_module_level=True)
    if importlib.util.find_spec(package) is None:
        missing(f"{package} is not installed")
    return importlib.import_module(name)


def need_program(name: str, package: str) -> str:
    """Path of the program."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return path or missing(f"{name} is not installed (Debian: {package})")
