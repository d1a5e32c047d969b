"""What tests of every room share: where the real data lie, and one thread, so that timings and sums do not wander."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_REPOSITORY = Path(__file__).resolve().parents[1]


def _shared_folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable) or _REPOSITORY.parent / "shared" / name)
    if not folder.is_dir():
        pytest.skip(f"no {name} folder at {folder}; set {variable}")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans; tests that need it are skipped where it is absent."""
    return _shared_folder("BOLTZFORMER_SHARED_DATA", "data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of tensors recorded from the published forward pass; skipped where it is absent."""
    return _shared_folder("BOLTZFORMER_SHARED_GOLDEN", "golden")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
