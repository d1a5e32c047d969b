"""Numbers of names: what was asked and is known stays, a typing error passes."""

from __future__ import annotations

import json
from pathlib import Path

from boltzformer_monai.label.datastore.label_numbers import DECLARED, MAX_VALUE, LabelNumbers


def test_a_passing_name_has_a_number_and_is_never_written_down(tmp_path: Path) -> None:
    numbers = LabelNumbers(tmp_path / "labels.json")
    assert numbers.values(["liver", "liver lesoin", "spleen"], temporary=["liver lesoin"]) == [1, MAX_VALUE, 2]
    assert numbers.names() == {"liver": 1, "spleen": 2, "liver lesoin": MAX_VALUE}  # OHIF shows only what is declared
    assert json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))["names"] == ["liver", "spleen"]
    assert LabelNumbers(tmp_path / "labels.json").names() == {"liver": 1, "spleen": 2}
    assert numbers.values(["liver lesoin"], temporary=["liver lesoin"]) == [MAX_VALUE]  # the same again
    numbers.declare(["Liver Lesoin"])  # a label was saved under this name
    assert numbers.values(["liver lesoin"], temporary=["liver lesoin"]) == [3]
    assert numbers.names() == {"liver": 1, "spleen": 2, "Liver Lesoin": 3}


def test_passing_names_never_run_out_of_numbers_and_never_share_one(tmp_path: Path) -> None:
    numbers = LabelNumbers(tmp_path / "labels.json")
    numbers.declare(["liver"])
    for start in range(0, 200, 7):
        asked = [f"typo {n}" for n in range(start, start + 20)]
        found = numbers.values(["liver", *asked], temporary=asked)
        assert found[0] == 1
        assert len(set(found)) == 21
        assert all(DECLARED < number <= MAX_VALUE for number in found[1:])
    assert len(numbers.names()) == 1 + MAX_VALUE - DECLARED
    asked = [f"other {n}" for n in range(MAX_VALUE)]
    assert sorted(numbers.values(asked, temporary=asked)) == list(range(1, MAX_VALUE + 1))
