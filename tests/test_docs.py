"""The settings table in docs/training.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from boltzformer_monai.engines import SETTINGS

DOC = Path(__file__).resolve().parents[1] / "docs" / "training.md"
COLUMNS = ("hiera_s", "focal_l", "tiny")
NOT_PLAIN = {"target_weights", "schedule"}  # several values in one cell, checked below


def _rows() -> dict[str, list[str]]:
    rows = {}
    for line in DOC.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.match(r"`(\w+)`", cells[0])
        if line.startswith("| `") and name and len(cells) == 5:
            rows[name[1]] = cells[1:4]
    return rows


def _value(text: str) -> float | str | bool:
    text = text.removesuffix(" (off)")
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def test_every_setting_is_in_the_table_with_its_value() -> None:
    rows = _rows()
    fields = {name for name in vars(SETTINGS["tiny"]) if name not in {"preset", "warm_up"}}
    assert fields <= set(rows)
    for name in fields - NOT_PLAIN:
        for column, cell in zip(COLUMNS, rows[name], strict=True):
            assert getattr(SETTINGS[column], name) == _value(cell), (name, column)


@pytest.mark.parametrize(("column", "index"), [("hiera_s", 0), ("focal_l", 1), ("tiny", 2)])
def test_the_cells_with_several_values(column: str, index: int) -> None:
    settings, rows = SETTINGS[column], _rows()
    schedule, warm_up = rows["schedule"][index].split(", ")
    assert (settings.schedule, settings.warm_up) == (schedule, float(warm_up))
    weights = rows["target_weights"][index]
    found = dict(re.findall(r"([a-z ]+?) (\d+)(?:, |$)", weights)) if weights != "–" else {}
    assert settings.target_weights == {name.strip(): float(weight) for name, weight in found.items()}


def test_hiera_bp_shares_the_column_of_hiera_s() -> None:
    small, base = vars(SETTINGS["hiera_s"]), vars(SETTINGS["hiera_bp"])
    assert {**small, "preset": ""} == {**base, "preset": ""}


def test_the_speed_of_slicing_is_that_of_its_record() -> None:
    root = DOC.parents[1]
    content = json.loads((root / "benchmarks" / "results" / "preprocessing.json").read_text(encoding="utf-8"))
    values = {row["name"]: row["value"] for row in content["results"]}
    assert round(1 / values["disk_usual_vs_ours"], 1) == 0.2  # "a fifth"
    for page in ("docs/benchmarks.md", "docs/data.md"):
        text = " ".join((root / page).read_text(encoding="utf-8").split())
        assert f"{values['slices_per_second_vs_usual']:.0f} times the usual way" in text, page
        assert re.search(rf"{values['time_vs_floor']:.2f} times the (least|time of the least)", text), page
        assert re.search(rf"{values['slices_per_second_ours']:.0f} slices(/s| a second)", text), page


def test_the_tables_of_the_decoder_s_page_are_those_of_its_records() -> None:
    root = DOC.parents[1]
    page = (root / "docs" / "decoder.md").read_text(encoding="utf-8")
    contents = [
        json.loads((root / f"benchmarks/results/{name}.json").read_text()) for name in ("decoder", "decoder_parts")
    ]
    whole, parts = ({row["name"]: row["value"] for row in content["results"]} for content in contents)
    timed = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.–]+) \|", page, re.MULTILINE)
    assert len(timed) >= 16
    for name, dense, ours, ratio, blockwise in timed:
        seconds = [whole[f"seconds_{name}_{way}"] for way in ("dense", "ours")]
        assert (dense, ours) == tuple(f"{value:.2f}" for value in seconds), name
        assert ratio == f"{whole[name]:.1f}", name
        assert blockwise == (f"{whole[f'{name}_vs_blockwise']:.1f}" if f"{name}_vs_blockwise" in whole else "–"), name
    single = re.findall(r"^\| `(\w+)` \| ([\d.e-]+) \| [^|]+ \|$", page, re.MULTILINE)
    assert {"max_abs_error", "max_rel_grad_error", "saved_for_backward_m10", "prompts15_vs_full"} <= dict(single).keys()
    for name, value in single:
        assert value == (f"{whole[name]:.1e}" if "error" in name else f"{whole[name]:.1f}"), name
    ways = re.findall(r"^\| ([^|`]+: [^|]+) \| (\d+) \|$", page, re.MULTILINE)
    assert dict(ways) == {name: f"{value:.0f}" for name, value in parts.items()}


def test_every_option_of_slicing_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    from boltzformer_monai.cli.slice import main

    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    page = (DOC.parent / "data.md").read_text(encoding="utf-8")
    assert len(options) > 25
    assert {option for option in options if option not in page} == set()


def test_the_numbers_in_benchmarks_are_those_of_the_records() -> None:
    root = DOC.parents[1]
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for record, names in {
        "demo": ("mean_dice", "dice liver lesion", "dice lung nodule"),
        "msd_hippocampus": ("mean_dice_3d", "dice_3d anterior hippocampus", "dice_3d posterior hippocampus"),
    }.items():
        content = json.loads((root / "benchmarks" / "results" / f"{record}.json").read_text(encoding="utf-8"))
        values = {row["name"]: row["value"] for row in content["results"]}
        line = next(line for line in page.splitlines() if f"results/{record}.json" in line)
        for number in (*(f"{values[name]:.3f}" for name in names), f"{values['time_training']:.1f} minutes"):
            assert number in line, (record, number)
    for record in ("label_server", "label_server_tiny"):
        content = json.loads((root / "benchmarks" / "results" / f"{record}.json").read_text(encoding="utf-8"))
        values = {row["name"]: row["value"] for row in content["results"]}
        line = next(line for line in page.splitlines() if f"results/{record}.json" in line)
        for name in ("stock", "own"):
            assert f"{values[f'second_prompt_faster_{name}']:.1f} times" in line, (record, name)
        assert f"({values['time_first_stock']:.1f} s → {values['time_second_stock']:.1f} s)" in line, record
