from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.label_names import canonical_labels, check_values, read_label_names
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


@pytest.mark.parametrize("labels", [{"1": "liver", "01": "tumor"}, {"1+2": "liver", "2+1": "tumor"}])
def test_one_value_written_in_two_ways_has_one_name(labels: dict[str, str]):
    with pytest.raises(DatasetError, match='named "liver" and "tumor"; keep one'):
        canonical_labels(labels)


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


def test_a_byte_order_mark_is_accepted(tmp_path: Path):
    path = tmp_path / "labels.json"
    path.write_text('{"labels": {"1": "heart"}}', encoding="utf-8-sig")
    assert dict(read_label_names(path).labels) == {"1": "heart"}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"labels": {"2": "right kidney", "3": "left kidney", "3": "spleen"}}', 'key "3" occurs twice'),
        ('{"labels": {"1": "liver"}, "labels": {"1": "spleen"}}', 'key "labels" occurs twice'),
        ('{"labels": {"1": "liver", "01": "spleen"}}', 'named "liver" and "spleen"'),
        ('{"labels": {"1": "liver"}, "lables": {"2": "spleen"}}', '"lables"; did you mean "labels"'),
        ('{"label": {"1": "liver"}}', 'did you mean "labels"'),
        ('{"labels": {"1": "liver"}, "Site": "abdomen"}', 'did you mean "site"'),
        ('{"labels": {"spleen": 1, "liver": 2}}', 'wrong way round; write value: name, as in {"1": "spleen"}'),
        ('{"labels": {"background": 0, "kidneys": [2, 3]}}', "wrong way round"),
        ('{"labels": {"spleen": "1"}}', "wrong way round"),
    ],
)
def test_slips_of_the_pen(tmp_path: Path, content: str, match: str):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(DatasetError) as caught:
        read_label_names(path)
    assert match in str(caught.value)
    assert "\n" not in str(caught.value)
