"""The tables of a study: Dice by size, misses, gate, focus, targets, costs, and those of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from boltzformer_monai.studies.cells import GREY, NONE, RED, Cell, count_of, decimal, mean_sd, titles
from boltzformer_monai.studies.paper import paper_tables
from boltzformer_monai.studies.scores import SMALL, STRATA

__all__ = ["data_block", "focus_tables", "headline_tables", "tables_of_paper"]


def headline_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every experiment with runs ``caption``, ``headings`` and ``rows``: Dice of small objects, arms × data sets."""
    title = titles(results)
    begun = (entry for entry in results["experiments"].values() if any(each["arms"] for each in entry["data"].values()))
    return [_headline_table(entry, title) for entry in begun]


def focus_tables(results: Mapping[str, Any], experiment: str) -> list[dict[str, Any]]:
    """The enrichment by layer of an experiment's arms, a table for every target of its data sets."""
    title = titles(results)
    blocks = results["experiments"][experiment]["data"].values()
    return [{**table, "data": block["title"]} for block in blocks for table in _focus(block["arms"], title)]


def _headline_table(entry: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    """Small objects, or all where an experiment has no small ones: arms × data sets."""
    blocks = [block for block in entry["data"].values() if block["arms"]]
    arms = list(dict.fromkeys(arm for block in blocks for arm in block["arms"]))
    small = any(arm["dice"][SMALL]["instances"] for block in blocks for arm in block["arms"].values())
    group = SMALL if small else "all"
    rows = [
        [
            title[arm],
            *(
                mean_sd(block["arms"][arm]["dice"][group], count=True, seeds=True) if arm in block["arms"] else NONE
                for block in blocks
            ),
        ]
        for arm in arms
    ]
    of = f"objects {group} of the image" if small else "all objects, none of which is below 0.1 % of the image"
    return {
        "caption": f"{entry['title']}: Dice in % of {of}",
        "headings": ["arm", *(block["title"] for block in blocks)],
        "rows": rows,
    }


def data_block(block: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    arms = block["arms"]
    tables = [_by_size(arms, title), _missed(arms, title)]
    if any(each["gate"] for each in arms.values()):
        tables.append(_gate(arms, title))
    tables += _focus(arms, title)
    tables += [_targets(block, title), _costs(arms, title)]
    split = {"val": "Evaluated on the split val, which chose the checkpoint too, for all arms alike.", None: ""}
    split_note = split.get(block["split"], f"Evaluated on the split {block['split']}.")
    pairing = block["pairing"]
    differing = "; ".join(f"{title[arm]}: {', '.join(parts)}" for arm, parts in pairing["differing"].items())
    paired = ""
    if pairing["compared"]:
        but = ", ".join(title[arm] for arm in pairing["unknown"])
        who = f"All arms of a seed but {but}, of which no hash is known," if but else "All arms of a seed"
        same = f"{who} began with the same weights and saw the same examples in the same order"
        paired = f"{same} (by hash)." if not differing else f"{same}, by hash, but for: {differing}."
    held_out = count_of(len(block["held_out"]), "patient")
    held_out = f"{held_out} held out (images, where there are no patients)." if block["held_out"] else ""
    licence = f"Licence of the data: {block['licence']}." if block["licence"] else ""
    return {"title": block["title"], "note": f"{split_note} {held_out} {paired} {licence}".strip(), "tables": tables}


def _by_size(arms: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    groups = [group for group in (SMALL, "below 1 %", *STRATA, "all")
              if any(arm["dice"][group]["instances"] for arm in arms.values())]  # fmt: skip
    return {
        "caption": "Dice in % by the target's share of the image: mean ± sd over seeds, n targets in images",
        "headings": ["arm", "seeds", *groups],
        "rows": [
            [title[name], str(len(arm["seeds"])), *(mean_sd(arm["dice"][group], count=True) for group in groups)]
            for name, arm in arms.items()
        ],
    }


def _missed(arms: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    groups = [group for group in (SMALL, *STRATA, "all")
              if any(arm["missed"][group]["instances"] for arm in arms.values())]  # fmt: skip
    rows = []
    for name, arm in arms.items():
        rate = arm["false_positive_rate"]
        absent = NONE if rate["mean"] is None else f"{100 * rate['mean']:.1f}\nn {rate['cases']}"
        rows.append([title[name], *(mean_sd(arm["missed"][group], count=True) for group in groups), absent])
    return {
        "caption": "Missed targets in %, and predictions where the target is absent",
        "headings": ["arm", *groups, "false positives"],
        "rows": rows,
    }


def _gate(arms: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    rows: list[list[Cell]] = []
    for name, arm in arms.items():
        gate = arm["gate"]
        if gate is None:
            rows.append([title[name], NONE, NONE, NONE, NONE, "not measured"])
            continue
        state: Cell = "used" if gate["open"] else ("unused" if gate["learned"] else "too little learned", RED)
        values = (f"{100 * gate[part]:.1f}" for part in ("dice", "swapped", "cost"))
        rows.append([title[name], *values, str(gate["instances"]), state])
    of = next(arm["gate"]["of"] for arm in arms.values() if arm["gate"])
    return {
        "caption": f"Gate: Dice in % of objects ({of}) with their own and with another image's V",
        "headings": ["arm", "own V", "another image's V", "cost", "n", "attention"],
        "rows": rows,
    }


def _focus(arms: Mapping[str, Any], title: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    """A table for every target: enrichment by layer."""
    for target in sorted({target for arm in arms.values() for target in arm["focus"]}):
        depth = max(len(arm["focus"].get(target, ())) for arm in arms.values())
        rows = []
        for name, arm in arms.items():
            if layers := arm["focus"].get(target):
                rows.append([title[name], *map(_layer, layers)])
        yield {
            "caption": f"Focus, {target}: share of attended patches on the target over that expected by chance, by "
            "layer (set size in %, empty sets in %)",
            "headings": ["arm", *(str(layer + 1) for layer in range(depth))],
            "rows": rows,
        }


def _layer(layer: Mapping[str, Any]) -> str:
    inside = [f"{100 * layer[key]:.0f}" if layer[key] is not None else NONE for key in ("set_size", "empty")]
    return f"{decimal(layer['focus'], 1)}\n({', '.join(inside)})"


def _targets(block: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    arms, rows = block["arms"], []
    for target, size in block["sizes"].items():
        area = NONE if size["median"] is None else f"{size['median']:.3g}\n{size['min']:.2g} to {size['max']:.2g}"
        cells = (mean_sd(arm["targets"][target]) if target in arm["targets"] else NONE for arm in arms.values())
        rows.append([target, f"{size['present']} / {size['absent']}", area, *cells])
    return {
        "caption": "Dice in % by target, and area in % of the image (median, least to largest; the paper's Table 9)",
        "headings": ["target", "present / absent", "area", *(title[name] for name in arms)],
        "rows": rows,
    }


def _costs(arms: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    rows = []
    for name, arm in arms.items():
        training = arm["training"]
        inference = NONE if arm["inference_s"] is None else f"{1000 * arm['inference_s']:.0f}"
        parameters = [
            NONE if arm[key] is None else f"{arm[key] / 1e6:.2f}" for key in ("parameters", "decoder_parameters")
        ]
        steps = NONE if arm["steps"] is None else str(arm["steps"])
        cells = [decimal(training["wall_s"], 0), decimal(training["processor_s"], 0), decimal(training["peak_mib"], 0)]
        rows.append([title[name], *parameters, steps, *cells, inference])
    return {
        "caption": "Mean cost of a run, without pieces that were killed: training on the clock and of the processor, "
        "peak memory of the process; inference of the network alone",
        "headings": ["arm", "parameters, M", "of the decoder, M", "steps", "training, s", "processor, s", "memory, MiB",
                     "image with its prompts, ms"],
        "rows": rows,
    }  # fmt: skip


def tables_of_paper(results: Mapping[str, Any], title: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for number, table in paper_tables().items():
        for entry in results["experiments"].values():
            made = _paper_table(number, table.rows, results, entry, title)
            if made is None:
                continue
            columns, rows = made
            found.append(
                {
                    "caption": f"Table {number}: {table.title}. {entry['title']}. Paper: {table.note}",
                    "headings": [table.title, *columns],
                    "rows": rows,
                }
            )
    return found


def _paper_table(
    number: str,
    known: Mapping[str, tuple[float, ...]],
    results: Mapping[str, Any],
    entry: Mapping[str, Any],
    title: Mapping[str, str],
) -> tuple[list[str], list[list[Cell]]] | None:
    """Columns and rows of a table of the paper from an experiment; None where fewer than two of its rows were run."""
    data = entry["data"]
    arms = {arm: own["paper"][number] for arm, own in results["study"]["arms"].items() if number in own["paper"]}
    run = [arm for arm in arms if any(arm in block["arms"] for block in data.values())]
    if len(run) < 2:
        return None
    groups = ["below 1 %", "1 % and more", "all"] if number == "2" else ["all"]
    columns = [f"{block['title']}, {group}" if number == "2" else block["title"]
               for block in data.values() for group in groups]  # fmt: skip
    paper = [f"paper, {name}" for name in ("small", "large", "all")] if number == "2" else ["paper"]
    rows: list[list[Cell]] = []
    for row, values in known.items():
        cells = [(f"{value:.1f}", GREY) for value in values]
        own = [arm for arm in run if arms[arm] == row]
        for arm in own or [""]:
            blocks = [block["arms"].get(arm) for block in data.values()]
            of = [
                NONE if block is None else mean_sd(block["dice"][group], count=number == "2")
                for block in blocks
                for group in groups
            ]
            name = row if not arm or title[arm] == row else f"{row} ({title[arm]})"
            rows.append([name, *of, *cells])
    return [*columns, *paper], rows
