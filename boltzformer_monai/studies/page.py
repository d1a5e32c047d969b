"""The page of a study: its verdict in words first, small objects before means, n beside every rate."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.evaluation.focus import GATE
from boltzformer_monai.evaluation.html import write_html
from boltzformer_monai.studies.paper import paper_tables
from boltzformer_monai.studies.scores import SMALL, STRATA

__all__ = ["comparison_table", "focus_tables", "headline_tables", "verdict", "write_page"]

_SIGNIFICANT = 0.05
_NONE = "–"
_GREY, _RED, _TEXT = "paper", "void", "text"

Cell = str | tuple[str, str]


def write_page(
    path: str | os.PathLike[str],
    results: Mapping[str, Any],
    *,
    figures: Sequence[tuple[str, bytes]] = (),
    chosen: str = "",
) -> Path:
    """Write the page atomically; it opens without a network.

    Args:
        path: the HTML file.
        results: of :func:`~boltzformer_monai.studies.results.collect`.
        figures: caption and PNG.
        chosen: how the figures' images were chosen.
    """
    study, experiments = results["study"], results["experiments"]
    title = _titles(results)
    headings, comparisons = comparison_table(results)
    first, sentences = verdict(results)
    return write_html(
        path,
        "study.html",
        package=__package__,
        title=study["title"],
        verdict=first,
        sentences=sentences,
        question=study["question"],
        runs=_runs(results),
        failures=[f"{each['run']}: {each['reason']}" for entry in experiments.values() for each in entry["failed"]],
        gate=f"{100 * GATE:g}",
        headline=headline_tables(results),
        tests=next((row["family"] for entry in experiments.values() for row in entry["comparisons"]), 0),
        comparison_headings=headings,
        comparisons=comparisons,
        by_data_headings=["comparison", "data", "objects", "difference", "95 % by seed", "seeds", "attention"],
        by_data=[
            line
            for name, entry in experiments.items()
            for row in entry["comparisons"]
            if len(row["data"]) > 1
            for line in _by_data(results, name, row, title)
        ],
        experiments=[_experiment(entry, title) for entry in experiments.values()],
        papers=_paper_tables(results, title),
        figures=list(figures),
        chosen=chosen,
        facts=_facts(results),
        run_headings=["run", "key", "commit", "date (UTC)", "device", "sha256 of the checkpoint"],
        run_rows=_run_rows(experiments, title),
    )  # fmt: skip


def verdict(results: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What the study shows, in words.

    Of every comparison and experiment one sentence, on small objects where there are any.

    Returns:
        The first line of the page, and a sentence for every comparison.
    """
    title = _titles(results)
    states: dict[str, int] = {}
    sentences = []
    for name, entry in results["experiments"].items():
        for row in _headline(entry["comparisons"]):
            state = _state(row)
            if row["of_paper"]:
                states[state] = states.get(state, 0) + 1
            sentences.append(_sentence(results, name, row, title, state))
    runs = results["runs"]
    open_runs = runs["done"] < runs["planned"]
    start = f"Preliminary, {runs['done']} of {runs['planned']} runs: " if open_runs else ""
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    total = sum(states.values())
    if not total:
        line = "there is nothing to compare yet."
    elif states.get("void", 0) == total:
        line = "void: attention is unused in every comparison, so nothing can be said of the paper's order."
    elif states.get("as claimed", 0) == total:
        line = f"the paper's order shows in all {total} comparisons."
    else:
        line = f"the paper's order does not show as a whole: of {total} comparisons {counted}."
        if not states.get("as claimed"):
            line = f"the paper's order does not show: of {total} comparisons {counted}."
    line = start + (line if start else line[0].upper() + line[1:])
    return line, sentences


def headline_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every experiment with runs ``caption``, ``headings`` and ``rows``: Dice of small objects, arms × data sets."""
    title = _titles(results)
    begun = (entry for entry in results["experiments"].values() if any(each["arms"] for each in entry["data"].values()))
    return [_headline_table(entry, title) for entry in begun]


def focus_tables(results: Mapping[str, Any], experiment: str) -> list[dict[str, Any]]:
    """The enrichment by layer of an experiment's arms, a table for every target of its data sets."""
    title = _titles(results)
    blocks = results["experiments"][experiment]["data"].values()
    return [{**table, "data": block["title"]} for block in blocks for table in _focus(block["arms"], title)]


def comparison_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows of all paired differences, of all objects and of small ones."""
    headings = ["comparison", "objects", "difference", "95 % by seed", "(by patient or image)", "p (Holm)", "seeds",
                "targets in images", "could show", "attention"]  # fmt: skip
    title = _titles(results)
    rows = [
        _comparison(results, name, row, title)
        for name, entry in results["experiments"].items()
        for row in entry["comparisons"]
    ]
    return headings, rows


def _titles(results: Mapping[str, Any]) -> dict[str, str]:
    return {name: arm["title"] or name for name, arm in results["study"]["arms"].items()}


def _headline(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of every pair of arms the row on small objects, or on all where there are no small ones."""
    chosen: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        pair = row["arm"], row["against"]
        if row["group"] == SMALL or pair not in chosen:
            chosen[pair] = row
    return list(chosen.values())


def _state(row: Mapping[str, Any]) -> str:
    if row["void"] == "void" and row["gated"]:
        return "void"
    if row["adjusted"] is None or row["adjusted"] >= _SIGNIFICANT:
        return "not resolved"
    return "as claimed" if row["mean"] > 0 else "reversed"


def _sentence(
    results: Mapping[str, Any], experiment: str, row: Mapping[str, Any], title: Mapping[str, str], state: str
) -> str:
    where = results["experiments"][experiment]["title"]
    group = "all objects" if row["group"] == "all" else f"objects {row['group']} of the image"
    said = f"{title[row['arm']]} − {title[row['against']]}, {where}, {group}: {_signed(row['mean'])} points of Dice"
    inside = [_interval(row["low"], row["high"], "95 % {}")] if row["low"] is not None else []
    inside += [f"p {_p(row['adjusted'])}"] if row["adjusted"] is not None else []
    inside += [_count(row["n"], "seed"), _count(row["instances"], "target in images", "targets in images")]
    if (planned := len(results["experiments"][experiment]["data"])) > 1:
        inside.append(f"mean of {len(row['data'])} of {planned} data sets")
    if row["left_out"]:
        inside.append(f"without {row['left_out']} scores of what one arm alone has scored")
    meaning = {
        "void": "void: attention unused",
        "as claimed": row["claim"] or "as claimed",
        "reversed": "the reverse of what was expected",
        "not resolved": _not_resolved(row),
    }[state]
    attention = {
        "void": "" if state == "void" else "; the better arm does not use attention",
        "partly void": "; on some of its data sets the better arm does not use attention",
        "not measured": "; whether attention is used was not measured",
    }.get(row["void"], "")
    return f"{said} ({', '.join(inside)}): {meaning}{attention}."


def _not_resolved(row: Mapping[str, Any]) -> str:
    if row["detectable"] is None:
        return f"not resolved; {'one seed says' if row['n'] == 1 else 'seeds without a spread say'} nothing of others"
    return f"not resolved; {_count(row['n'], 'seed')} could show {_could_show(row['detectable'])} points"


def _could_show(detectable: float | None) -> str:
    """No two arms differ by more than 100 points."""
    return _NONE if detectable is None else f"{100 * detectable:.1f}" if detectable <= 1 else "> 100"


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
                _mean_sd(block["arms"][arm]["dice"][group], count=True, seeds=True) if arm in block["arms"] else _NONE
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


def _comparison(
    results: Mapping[str, Any], experiment: str, row: Mapping[str, Any], title: Mapping[str, str]
) -> list[Cell]:
    patient = row["by_patient"]
    return [
        f"{title[row['arm']]} − {title[row['against']]}\n{results['experiments'][experiment]['title']}",
        row["group"],
        _signed(row["mean"]),
        _interval(row["low"], row["high"]),
        _interval(patient["low"], patient["high"], "({})") + f"\nof {patient['patients']}",
        _p(row["adjusted"]),
        str(row["n"]),
        str(row["instances"]),
        _could_show(row["detectable"]),
        _attention(row["void"], gated=row["gated"]),
    ]


def _by_data(
    results: Mapping[str, Any], experiment: str, row: Mapping[str, Any], title: Mapping[str, str]
) -> Iterable[list[Cell]]:
    entry = results["experiments"][experiment]
    for data, found in row["data"].items():
        void = {None: "not measured", True: "void", False: "open"}[found["void"]]
        yield [
            f"{title[row['arm']]} − {title[row['against']]}",
            entry["data"][data]["title"],
            row["group"],
            _signed(found["mean"]),
            _interval(found["low"], found["high"]),
            str(found["n"]),
            _attention(void, gated=row["gated"]),
        ]


def _attention(void: str, *, gated: bool) -> Cell:
    if not gated:
        return {"void": "unused", "partly void": "partly unused", "open": "used"}.get(void, void)
    said = {"void": "void: attention unused", "partly void": "partly void", "open": "used"}.get(void, void)
    return (said, _RED) if "void" in void else said


def _experiment(entry: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    runs = entry["runs"]
    folds = f", {entry['folds']} folds" if entry["folds"] else ""
    seeds = ", ".join(map(str, entry["seeds"]))
    return {
        "title": entry["title"],
        "note": f"Seeds {seeds}{folds}; {runs['done']} of {runs['planned']} runs done.",
        "blocks": [_block(block, title) for block in entry["data"].values() if block["arms"]],
    }


def _block(block: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
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
    held_out = _count(len(block["held_out"]), "patient")
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
            [title[name], str(len(arm["seeds"])), *(_mean_sd(arm["dice"][group], count=True) for group in groups)]
            for name, arm in arms.items()
        ],
    }


def _missed(arms: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    groups = [group for group in (SMALL, *STRATA, "all")
              if any(arm["missed"][group]["instances"] for arm in arms.values())]  # fmt: skip
    rows = []
    for name, arm in arms.items():
        rate = arm["false_positive_rate"]
        absent = _NONE if rate["mean"] is None else f"{100 * rate['mean']:.1f}\nn {rate['cases']}"
        rows.append([title[name], *(_mean_sd(arm["missed"][group], count=True) for group in groups), absent])
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
            rows.append([title[name], _NONE, _NONE, _NONE, _NONE, "not measured"])
            continue
        state: Cell = "used" if gate["open"] else ("unused" if gate["learned"] else "too little learned", _RED)
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
    inside = [f"{100 * layer[key]:.0f}" if layer[key] is not None else _NONE for key in ("set_size", "empty")]
    return f"{_number(layer['focus'], 1)}\n({', '.join(inside)})"


def _targets(block: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    arms, rows = block["arms"], []
    for target, size in block["sizes"].items():
        area = _NONE if size["median"] is None else f"{size['median']:.3g}\n{size['min']:.2g} to {size['max']:.2g}"
        cells = (_mean_sd(arm["targets"][target]) if target in arm["targets"] else _NONE for arm in arms.values())
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
        inference = _NONE if arm["inference_s"] is None else f"{1000 * arm['inference_s']:.0f}"
        parameters = [
            _NONE if arm[key] is None else f"{arm[key] / 1e6:.2f}" for key in ("parameters", "decoder_parameters")
        ]
        steps = _NONE if arm["steps"] is None else str(arm["steps"])
        cells = [_number(training["wall_s"], 0), _number(training["processor_s"], 0), _number(training["peak_mib"], 0)]
        rows.append([title[name], *parameters, steps, *cells, inference])
    return {
        "caption": "Mean cost of a run, without pieces that were killed: training on the clock and of the processor, "
        "peak memory of the process; inference of the network alone",
        "headings": ["arm", "parameters, M", "of the decoder, M", "steps", "training, s", "processor, s", "memory, MiB",
                     "image with its prompts, ms"],
        "rows": rows,
    }  # fmt: skip


def _paper_tables(results: Mapping[str, Any], title: Mapping[str, str]) -> list[dict[str, Any]]:
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
        cells = [(f"{value:.1f}", _GREY) for value in values]
        own = [arm for arm in run if arms[arm] == row]
        for arm in own or [""]:
            blocks = [block["arms"].get(arm) for block in data.values()]
            of = [
                _NONE if block is None else _mean_sd(block["dice"][group], count=number == "2")
                for block in blocks
                for group in groups
            ]
            name = row if not arm or title[arm] == row else f"{row} ({title[arm]})"
            rows.append([name, *of, *cells])
    return [*columns, *paper], rows


def _runs(results: Mapping[str, Any]) -> str:
    runs = results["runs"]
    failed = f", {runs['failed']} failed" if runs["failed"] else ""
    return f"{runs['done']} of {runs['planned']} runs are done{failed}."


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    made, study = results["made"], results["study"]
    held_out = {
        block["title"]: block["held_out"]
        for entry in results["experiments"].values()
        for block in entry["data"].values()
        if block["held_out"]
    }
    facts = {
        "Command": made["command"],
        "Commit": made["commit"] or "not a checkout",
        "Commits of the runs": _of_runs(results["experiments"], lambda run: (run["commit"] or _NONE)[:10]),
        "Devices of the runs": _of_runs(results["experiments"], lambda run: str(run["device"])),
        "Date (UTC)": made["date"],
        "Version": made["version"],
        "Libraries": ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version),
        "Machine": f"{made['machine']}, {made['cores']} cores, {made['gpu'] or 'no GPU'}; "
        f"{study['threads']} thread(s) a run",
    }
    return facts | {f"Held out of {name}": ", ".join(patients) for name, patients in held_out.items()}


def _of_runs(experiments: Mapping[str, Any], name: Callable[[Mapping[str, Any]], str]) -> str:
    """What made how many runs: those of one version are mixed, whatever commits and devices."""
    arms = (arm for entry in experiments.values() for block in entry["data"].values() for arm in block["arms"].values())
    names = {run["key"]: name(run) for arm in arms for run in arm["runs"]}
    return ", ".join(f"{each} ({_count(count, 'run')})" for each, count in Counter(names.values()).most_common())


def _run_rows(experiments: Mapping[str, Any], title: Mapping[str, str]) -> list[list[Cell]]:
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for entry in experiments.values():
        for block in entry["data"].values():
            for arm, found in block["arms"].items():
                for run in found["runs"]:
                    fold = "" if run["fold"] is None else f", fold {run['fold']}"
                    name = f"{title[arm]}, {block['title']}, seed {run['seed']}{fold}"
                    checkpoint = (run["checkpoint_sha256"] or _NONE)[:16]
                    commit = (run["commit"] or _NONE)[:10]
                    rows[run["key"], arm, block["title"]] = [
                        name,
                        run["key"],
                        commit,
                        run["date"],
                        run["device"],
                        checkpoint,
                    ]
    return list(rows.values())


def _mean_sd(entry: Mapping[str, Any], *, count: bool = False, seeds: bool = False) -> str:
    """``"71.2 ± 0.4"`` in %, and below the number of instances and seeds."""
    if entry["mean"] is None:
        return _NONE
    text = f"{100 * entry['mean']:.1f}"
    text += "" if entry["sd"] is None else f" ± {100 * entry['sd']:.1f}"
    text += f"\nn {entry['instances']}" if count else ""
    return f"{text}, {_count(entry['n_seeds'], 'seed')}" if seeds else text


def _number(value: float | None, decimals: int) -> str:
    return _NONE if value is None else f"{value:.{decimals}f}"


def _signed(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _interval(low: float | None, high: float | None, form: str = "{}") -> str:
    return _NONE if low is None or high is None else form.format(f"{_signed(low)} to {_signed(high)}")


def _p(value: float | None) -> str:
    return _NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
