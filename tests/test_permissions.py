"""A file that may not be read is no damaged file: nobody should export or copy it again for that."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.data.label_names import read_label_names
from boltzformer_monai.data.slices.tables import read_description
from boltzformer_monai.errors import BoltzFormerError, VolumeError, cannot_open, why
from boltzformer_monai.io.dicom.rtstruct import read_rtstruct
from boltzformer_monai.io.pictures import read_picture
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.segmentation import read_segmentation
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks.weights import read_weights
from boltzformer_monai.slicing.recipes.dataset_json import read_description as read_decathlon
from boltzformer_monai.slicing.recipes.lidc_xml import read_readings

GRID = Volume(np.zeros((4, 4, 4), np.float32), np.eye(4))
READERS: dict[str, Callable[[Path], Any]] = {
    "a.nii": read_volume,
    "b.nii.gz": read_volume,
    "c.nrrd": read_volume,
    "d.mha": read_volume,
    "e.dcm": read_volume,
    "f.nii": read_label_map,
    "g.dcm": lambda path: read_segmentation(path, GRID),
    "h.dcm": lambda path: read_rtstruct(path, GRID),
    "i.png": lambda path: read_picture(path, "CT"),
    "labels.json": read_label_names,
    "dataset.json": lambda path: read_description(path.parent),
    "task.json": lambda path: read_decathlon(path, what="a task"),
    "j.xml": read_readings,
    "model.pt": read_weights,
}


@pytest.mark.parametrize("name", READERS)
def test_a_missing_permission_is_told_as_such(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / name
    closed.write_bytes(bytes(600))

    def deny(real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, *rest: Any, **named: Any) -> Any:
            if not isinstance(path, int) and os.fspath(path) == str(closed):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **named)

        return opened

    for module, function in ((os, "open"), (io, "open"), (builtins, "open")):
        monkeypatch.setattr(module, function, deny(getattr(module, function)))
    with pytest.raises(BoltzFormerError) as caught:
        READERS[name](closed)
    said = str(caught.value)
    assert said.count(str(closed)) == 1
    assert "Permission denied" in said
    for wrong in ("Errno", "complete", "damaged", "again", "\n"):
        assert wrong not in said
    if isinstance(caught.value, VolumeError):
        assert caught.value.reason == "missing"


def test_what_a_library_says_of_the_content_is_no_missing_permission() -> None:
    assert cannot_open("a", OSError("image file is truncated")) is None
    assert cannot_open("a", ValueError("x")) is None
    assert str(cannot_open("a", PermissionError(13, "Permission denied", "b"))) == (
        "a: cannot be opened (Permission denied); check that it may be read"
    )
    assert why(OSError("two\nlines")) == "two lines"
    assert why(EOFError()) == "it contradicts itself"
