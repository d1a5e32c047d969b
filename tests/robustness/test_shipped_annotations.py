"""Every file that ships with pydicom and nibabel, taken for an annotation: one line says why it is none."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest

from boltzformer_monai.errors import REASONS, BoltzFormerError
from boltzformer_monai.io import Volume
from boltzformer_monai.io.segmentation import read_segmentation
from tests.robustness.test_shipped_files import shipped_files


def test_no_shipped_file_crashes_the_reader_of_annotations() -> None:
    image = Volume(np.zeros((16, 16, 4), np.float32), np.eye(4), source="scan")
    files, reasons = shipped_files(), Counter[str]()
    if not files:
        pytest.skip("pydicom and nibabel ship no data files here")
    for name, path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                drawn = read_segmentation(path, image)
        except BoltzFormerError as error:
            reasons[error.reason] += 1
            said = str(error)
        else:
            said = path.name  # nothing ships that lies on this grid, but a later version may bring it
            reasons["read"] += drawn.volume.shape == image.shape
        assert len(said.splitlines()) == 1, name
        assert path.name in said, name
    assert set(reasons) <= {*REASONS, "read"}
    assert sum(reasons.values()) == len(files)
    assert len(reasons) >= 4
