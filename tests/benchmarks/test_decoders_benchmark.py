"""The benchmark of all decoders runs, and names what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import decoders


def test_it_measures_decoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, names = tmp_path / "record.json", ("seem_10_queries", "sam2")
    sizes = ["--size", "64", "--batch", "1", "--prompts", "1", "--rounds", "1"]
    decoders.main([*sizes, "--only", *names, "--json", str(record)])
    values = {row["name"]: row["value"] for row in json.loads(record.read_text())["results"]}
    kinds = ("parameters", "step", "prompts1", "prompts15")
    assert values.keys() == {f"{kind}_{name}" for kind in kinds for name in names}
    assert all(value > 0 for value in values.values())
    assert "step_sam2" in capsys.readouterr().out
