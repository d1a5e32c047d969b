"""Tables that claim more than a data set can hold are said to be damaged, and are not counted through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boltzformer_monai.data.check.fingerprint import check_data_sets
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.record import read_records
from boltzformer_monai.errors import DatasetError
from tests.data.check.unsound import edit_rows, edit_volume, sound


@pytest.mark.parametrize("changes", [{"slices": 10**15}, {"slices": 10**15, "every": 1, "neighbours": 10**15}])
def test_a_volume_of_more_slices_than_there_are_is_damaged(tmp_path: Path, changes: dict[str, int]) -> None:
    root = sound(tmp_path / "data")
    edit_volume(root, **changes)
    findings = json.dumps(check_data_sets([root]).content["findings"])
    assert "unreadable" in findings
    assert "case1" in findings
    record = root / "volumes" / "case1.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    content["entry"].update(changes)
    record.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"case1\.json: is not a complete record"):
        read_records(root)


@pytest.mark.parametrize("column", ["prompts", "window"])
def test_cells_that_are_nested_too_deeply_are_one_line(tmp_path: Path, column: str) -> None:
    root = sound(tmp_path / "data")
    edit_rows(root, lambda rows: rows[0].update({column: "[" * 60_000 + "]" * 60_000}))
    with pytest.raises(DatasetError, match="nested too deeply"):
        list(SliceReader(root).rows)
