"""What tests of every room share: where the real data lie, and one thread, so that timings and sums do not wander."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, and for all processes that tests start: `make test` has as many workers as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from monai.utils import set_determinism  # noqa: E402

from tests.needs import missing  # noqa: E402

_REPOSITORY = Path(__file__).resolve().parents[1]


def _shared_folder(variable: str, name: str) -> Path:
    given = os.environ.get(variable)
    folder = Path(given or _REPOSITORY.parent / "shared" / name)
    if folder.is_dir():
        return folder
    if given:
        missing(f"{variable}: no folder {folder}")
    pytest.skip(f"no {name} folder at {folder}; set {variable}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans; tests that need it are skipped where there is none."""
    return _shared_folder("BOLTZFORMER_SHARED_DATA", "data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of tensors recorded from the published forward pass; skipped where it is absent."""
    return _shared_folder("BOLTZFORMER_SHARED_GOLDEN", "golden")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Whatever number a command sets in the process of the tests (``--threads``) ends with its test."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def bundle_in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that run the bundle in their own process: what it sets there is undone."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    yield
    set_determinism(None)
