"""The task and its slices, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experts.cases import slice_task, write_task


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the task."""
    return write_task(tmp_path_factory.mktemp("task") / "Task04_Hippocampus")


@pytest.fixture(scope="session")
def slices(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of its slices."""
    return slice_task(task, tmp_path_factory.mktemp("sliced") / "slices")
