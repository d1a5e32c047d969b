"""A file is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from boltzformer_monai.io import atomic_path


def write_half(target: Path, failure: type[BaseException]) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise failure


def test_atomic_path_leaves_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.nii.gz"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("a.nii.gz")
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    for failure in (ValueError, KeyboardInterrupt):
        with pytest.raises(failure):
            write_half(target, failure)
    assert target.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]
