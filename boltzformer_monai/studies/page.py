"""The page of a study: its verdict in words first, small objects before means, n beside every rate."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.evaluation.focus import GATE
from boltzformer_monai.evaluation.html import write_html
from boltzformer_monai.studies.cells import NONE, Cell, count_of, titles
from boltzformer_monai.studies.tables import data_block, headline_tables, tables_of_paper
from boltzformer_monai.studies.verdict import comparison_table, data_rows, verdict

__all__ = ["write_page"]


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
    title = titles(results)
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
            for line in data_rows(results, name, row, title)
        ],
        experiments=[_experiment(entry, title) for entry in experiments.values()],
        papers=tables_of_paper(results, title),
        figures=list(figures),
        chosen=chosen,
        facts=_facts(results),
        run_headings=["run", "key", "commit", "date (UTC)", "device", "sha256 of the checkpoint"],
        run_rows=_run_rows(experiments, title),
    )  # fmt: skip


def _experiment(entry: Mapping[str, Any], title: Mapping[str, str]) -> dict[str, Any]:
    runs = entry["runs"]
    folds = f", {entry['folds']} folds" if entry["folds"] else ""
    seeds = ", ".join(map(str, entry["seeds"]))
    return {
        "title": entry["title"],
        "note": f"Seeds {seeds}{folds}; {runs['done']} of {runs['planned']} runs done.",
        "blocks": [data_block(block, title) for block in entry["data"].values() if block["arms"]],
    }


def _runs(results: Mapping[str, Any]) -> str:
    runs = results["runs"]
    failed = f", {runs['failed']} failed" if runs["failed"] else ""
    return f"{runs['done']} of {runs['planned']} runs are done{failed}."


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    made = results["made"]
    held_out = {
        block["title"]: block["held_out"]
        for entry in results["experiments"].values()
        for block in entry["data"].values()
        if block["held_out"]
    }
    facts = {
        "Command": made["command"],
        "Commit": made["commit"] or "not a checkout",
        "Commits of the runs": _of_runs(results["experiments"], lambda run: (run["commit"] or NONE)[:10]),
        "Devices of the runs": _of_runs(results["experiments"], lambda run: str(run["device"])),
        "Date (UTC)": made["date"],
        "Version": made["version"],
        "Libraries": ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version),
        "Machine": f"{made['machine']}, {made['cores']} cores, {made['gpu'] or 'no GPU'}",
        "Threads of the runs": _of_runs(results["experiments"], lambda run: count_of(run["threads"], "thread")),
    }
    return facts | {f"Held out of {name}": ", ".join(patients) for name, patients in held_out.items()}


def _of_runs(experiments: Mapping[str, Any], name: Callable[[Mapping[str, Any]], str]) -> str:
    """What made how many runs: those of one version are mixed, whatever commits and devices."""
    arms = (arm for entry in experiments.values() for block in entry["data"].values() for arm in block["arms"].values())
    names = {run["key"]: name(run) for arm in arms for run in arm["runs"]}
    return ", ".join(f"{each} ({count_of(count, 'run')})" for each, count in Counter(names.values()).most_common())


def _run_rows(experiments: Mapping[str, Any], title: Mapping[str, str]) -> list[list[Cell]]:
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for entry in experiments.values():
        for block in entry["data"].values():
            for arm, found in block["arms"].items():
                for run in found["runs"]:
                    fold = "" if run["fold"] is None else f", fold {run['fold']}"
                    name = f"{title[arm]}, {block['title']}, seed {run['seed']}{fold}"
                    checkpoint = (run["checkpoint_sha256"] or NONE)[:16]
                    commit = (run["commit"] or NONE)[:10]
                    rows[run["key"], arm, block["title"]] = [
                        name,
                        run["key"],
                        commit,
                        run["date"],
                        run["device"],
                        checkpoint,
                    ]
    return list(rows.values())
