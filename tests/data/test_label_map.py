from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.label_map import check_values, read_label_names
from boltzformer_monai.errors import DatasetError


def test_label_names(tmp_path: Path):
    path = tmp_path / "labels.json"
    path.write_text('{"modality": "MRI", "site": "Thorax", "labels": {"0": "background", "1": "heart"}, "x": 1}')
    names = read_label_names(path)
    assert (names.modality, names.site, dict(names.labels)) == ("MR", "chest", {"1": "heart"})
    for content, match in (
        ("{", "JSON"), ("[]", "form"), ('{"labels": {"1": 2}}', "form"), ('{"labels": {}}', "no label value"),
        ('{"labels": {"a": "heart"}}', "label value"), ('{"labels": {"1": "x"}, "modality": "PET"}', "CT or MR"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(DatasetError, match=match):
            read_label_names(path)
    with pytest.raises(DatasetError, match="no such file"):
        read_label_names(tmp_path / "none.json")


def test_label_values_are_compared_with_their_names():
    values = np.array([0, 1, 2, 5])
    assert check_values(values, {"1": "a", "2+5": "b"}, where="w") == []
    with pytest.raises(
        DatasetError, match=r'label value 7 \("c"\) does not occur.*values there: 1, 2, 5.*--allow-missing'
    ):
        check_values(values, {"1": "a", "7": "c"}, where="w")
    absent, unnamed = check_values(values, {"1": "a", "7": "c"}, where="w", allow_missing=True)
    assert "absent" in absent
    assert "2, 5" in unnamed
    with pytest.raises(DatasetError, match="none of the named"):
        check_values(values, {"7": "c"}, where="w", allow_missing=True)
