"""A label map that cannot be written: one line in our words, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.formats import write_image_file

LABELS = np.zeros((4, 3, 2), np.uint8)


def refusal(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        write_image_file(LABELS, np.eye(4), path)
    assert caught.value.reason == "write"
    said = str(caught.value)
    assert said.count(path.name) == 1
    for foreign in ("Errno", "boltzformer-", "itk", "Exception", "\n"):
        assert foreign not in said
    return said


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd"])
def test_reasons(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "its folder does not exist" in refusal(tmp_path / "none" / name)
    (tmp_path / "file").touch()
    assert "its folder does not exist" in refusal(tmp_path / "file" / name)
    (tmp_path / name).mkdir()
    assert "cannot be written (Is a directory)" in refusal(tmp_path / name)

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device", str(arguments[1]))

    def itk(image: Any, path: str, **named: Any) -> None:
        raise RuntimeError(f"Exception thrown in WriteImage:\nitk::ERROR: could not open {path} for writing")

    monkeypatch.setattr("nibabel.save", full)
    monkeypatch.setattr("SimpleITK.WriteImage", itk)
    expected = "the disk does not take it" if name == "a.nrrd" else "No space left on device"
    assert f"cannot be written ({expected})" in refusal(tmp_path / f"b{name}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(("file", name))
