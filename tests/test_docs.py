"""Numbers of the documentation are those of the benchmarks' records, and its pages name every option."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_speed_of_slicing_is_that_of_its_record() -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "preprocessing.json").read_text(encoding="utf-8"))
    values = {row["name"]: row["value"] for row in content["results"]}
    for page in ("docs/explanation/evidence.md", "docs/how-to/data.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        for number in (
            f"{values['slices_per_second_vs_usual']:.0f} times",
            f"{values['time_vs_floor']:.2f} times",
            f"{values['slices_per_second_ours']:.0f} slices",
        ):
            assert number in text, (page, number)


def test_the_memory_of_weights_is_that_of_its_record() -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "weights_memory.json").read_text(encoding="utf-8"))
    values = {row["name"]: f"{row['value']:.2f}" for row in content["results"]}
    page = (ROOT / "docs" / "how-to" / "weights.md").read_text(encoding="utf-8")
    rows = [
        f"| {values[f'{step}_peak']} | {values[f'{step}_above_libraries']} |" for step in ("convert", "import", "load")
    ]
    assert [row for row in rows if row not in page] == []
    assert f"({values['weights']} GB)" in page


def test_the_tables_of_the_decoder_s_page_are_those_of_its_records() -> None:
    page = (ROOT / "docs" / "explanation" / "decoder.md").read_text(encoding="utf-8")
    contents = [
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("decoder", "decoder_parts")
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


def test_the_decoder_between_machines_is_that_of_its_records() -> None:
    page = (ROOT / "docs" / "explanation" / "decoder.md").read_text(encoding="utf-8")
    here, first, second, huge, slow = (
        {row["name"]: row["value"] for row in json.loads(path.read_text(encoding="utf-8"))["results"]}
        for path in (
            ROOT / "benchmarks/results/decoder.json",
            *(
                ROOT / f"benchmarks/results/decoder_machines/{name}.json"
                for name in ("run_1", "run_2", "huge_pages", "convolutions_without_fma")
            ),
        )
    )
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+)–([\d.]+) \| (\S+) \| (\S+) \| ([^|]+) \|$", page, re.MULTILINE
    )
    assert len(rows) == 6
    for name, *cells, pages in rows:
        lowest, highest = sorted((first[name], second[name]))
        values = (here[name], lowest, highest, huge.get(name), slow.get(name))
        assert cells == ["–" if value is None else f"{value:.1f}" for value in values], name
        faults = f"minor_faults_{name}_dense"
        assert pages == (f"{first[faults]}, {huge[faults]}" if faults in huge else "–"), name


def test_every_option_of_slicing_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    from boltzformer_monai.cli.slice import main

    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    page = (ROOT / "docs" / "how-to" / "data.md").read_text(encoding="utf-8")
    assert len(options) > 25
    assert {option for option in options if option not in page} == set()


def test_the_numbers_in_benchmarks_are_those_of_the_records() -> None:
    page = (ROOT / "docs" / "explanation" / "evidence.md").read_text(encoding="utf-8")
    for record, names in {
        "demo": ("mean_dice", "dice liver lesion", "dice lung nodule"),
        "msd_hippocampus": ("mean_dice_3d", "dice_3d anterior hippocampus", "dice_3d posterior hippocampus"),
        "msd_hippocampus_best": (
            "mean_dice_3d",
            "coronal: mean_dice_3d",
            "dice_3d anterior hippocampus",
            "dice_3d posterior hippocampus",
        ),
        "msd_hippocampus_expert": (
            "mean_dice_3d",
            "volumes dice low",
            "volumes dice high",
            "volumes surface_dice mean",
            "dice_3d anterior hippocampus",
            "dice_3d posterior hippocampus",
        ),
        "msd_hippocampus_expert_augmented": (
            "mean_dice_3d",
            "volumes dice low",
            "volumes dice high",
            "dice_3d anterior hippocampus",
            "dice_3d posterior hippocampus",
        ),
    }.items():
        content = json.loads((ROOT / "benchmarks" / "results" / f"{record}.json").read_text(encoding="utf-8"))
        values = {row["name"]: row["value"] for row in content["results"]}
        line = next(line for line in page.splitlines() if f"results/{record}.json" in line)
        for number in (*(f"{values[name]:.3f}" for name in names), f"{values['time_training']:.1f} minutes"):
            assert number in line, (record, number)
    for record in ("label_server", "label_server_tiny"):
        content = json.loads((ROOT / "benchmarks" / "results" / f"{record}.json").read_text(encoding="utf-8"))
        values = {row["name"]: row["value"] for row in content["results"]}
        line = next(line for line in page.splitlines() if f"results/{record}.json" in line)
        for name in ("stock", "own"):
            assert f"{values[f'second_prompt_faster_{name}']:.1f} times" in line, (record, name)
        assert f"({values['time_first_stock']:.1f} s → {values['time_second_stock']:.1f} s)" in line, record


def test_the_planes_of_the_hippocampus_are_those_of_the_record() -> None:
    page = (ROOT / "docs" / "explanation" / "evidence.md").read_text(encoding="utf-8")
    content = json.loads((ROOT / "benchmarks" / "results" / "msd_hippocampus_best.json").read_text(encoding="utf-8"))
    values = {row["name"]: row["value"] for row in content["results"]}
    planes = {f"{plane} slices": f"{plane}: " for plane in ("axial", "sagittal", "coronal")}
    for name, prefix in {**planes, "all three, averaged": ""}.items():
        mean, low, high = (f"{values[f'{prefix}volumes dice {each}']:.3f}" for each in ("mean", "low", "high"))
        joined = f"{values[f'{prefix}label map joined mean']:.3f}"
        assert f"| {name} | {mean} ({low}–{high}) | {joined} |" in page


def test_the_figures_of_exports_are_those_of_their_record() -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "deploy.json").read_text(encoding="utf-8"))
    values = {row["name"]: row["value"] for row in content["results"]}
    rows: dict[str, list[str]] = {}
    for preset in ("tiny", "hiera_s"):
        of = {name.split()[1]: value for name, value in values.items() if name.split()[0] == preset}
        megabytes = (f"{of[f'bytes_{name}'] / 1e6:.1f}" for name in ("image_encoder", "text_encoder", "decoder"))
        cells = {
            "files, MB: image encoder, text encoder, decoder": ", ".join(megabytes),
            "equal pixels": f"{100 * of['equal_pixels']:.4f} %",
            "logits differ by, of their spread": f"{of['logits']:.0e}",
            "presence differs by": f"{of['presence']:.0e}" if "presence" in of else "no presence head",
        }
        parts = {"image encoder": "image_encoder", "text encoder": "text_encoder", "decoder, 1 prompt": "decoder_1",
                 "decoder, 5 prompts": "decoder_5"}  # fmt: skip
        for name, part in parts.items():
            times = (1000 * of[f"seconds_{part}_{where}"] for where in ("onnx", "torch"))
            cells[f"{name}, ms: onnxruntime, PyTorch"] = ", ".join(
                f"{each:.{'0f' if each > 99 else '3g'}}" for each in times
            )
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text(encoding="utf-8")
    for name, both in rows.items():
        assert f"| {name} | {' | '.join(both)} |" in page, name


def test_the_sizing_table_is_that_of_its_records() -> None:
    page = (ROOT / "docs" / "how-to" / "operations.md").read_text(encoding="utf-8")
    contents = {
        name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
        for name in ("sizing", "label_server")
    }
    memory, times = ({row["name"]: row["value"] for row in content["results"]} for content in contents.values())
    rows = re.findall(r"^\| `(\w+)`, (\d+) pixels \| ([\d.]+) GB \| ([\d.]+) GB \|$", page, re.MULTILINE)
    assert len(rows) == len(memory) / 2
    for preset, size, *shown in rows:
        name = preset if preset == "tiny" else f"{preset}_{size}"
        assert shown == [f"{memory[f'{name}_memory_{when}']:.1f}" for when in ("idle", "peak")], name
    slices = contents["label_server"]["settings"]["slices"]
    for step in ("first", "second"):
        assert f"{times[f'time_{step}_own'] / slices:.2f} s" in page, step
    assert contents["sizing"]["environment"]["command"].partition(" --json")[0] in page
