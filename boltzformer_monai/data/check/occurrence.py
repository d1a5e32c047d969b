"""Which of the label values that a data set names occur in its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boltzformer_monai.data.check.findings import Findings
from boltzformer_monai.data.check.integrity import DataSet
from boltzformer_monai.data.check.left_out import drawn_targets
from boltzformer_monai.data.slices.format import parse_label_values

__all__ = ["check_occurrence"]


def check_occurrence(data_set: DataSet, volumes: Mapping[str, Mapping[str, Any]], findings: Findings) -> None:
    """Look for named label values that no volume of the data set has.

    Args:
        data_set: the data set.
        volumes: volume id → its part of the fingerprint, whose ``label_values`` count.
        findings: gets what is wrong.
    """
    named: dict[int, set[str]] = {}
    drawn: set[int] = set()
    occurring = {value for volume in volumes.values() for value in volume["label_values"]}
    if not occurring:
        return
    for volume_id, entry in data_set.reader.volumes.items():
        elsewhere = drawn_targets(data_set.reader.root, volume_id, entry)
        for target, text in entry["targets"].items():
            for value in parse_label_values(text):
                named.setdefault(value, set()).add(target)
                if target in elsewhere:
                    drawn.add(value)
    for value in sorted(named.keys() - occurring):
        code = "target-left-out" if value in drawn else "value-never-occurs"
        findings.add(code, data_set.name, f"{value}: {', '.join(sorted(named[value]))}")
