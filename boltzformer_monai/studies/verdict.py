"""What a study shows: every comparison as a sentence and as a row, small objects before means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from boltzformer_monai.studies.cells import NONE, RED, Cell, count_of, interval, p_value, signed, titles
from boltzformer_monai.studies.scores import SMALL

__all__ = ["comparison_table", "data_rows", "verdict"]

_SIGNIFICANT = 0.05


def verdict(results: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What the study shows, in words.

    Of every comparison and experiment one sentence, on small objects where there are any.

    Returns:
        The first line of the page, and a sentence for every comparison.
    """
    title = titles(results)
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
    failed = f", {runs['failed']} failed" if runs["failed"] else ""
    start = f"Preliminary, {runs['done']} of {runs['planned']} runs{failed}: " if open_runs else ""
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


def comparison_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows of all paired differences, of all objects and of small ones."""
    headings = ["comparison", "objects", "difference", "95 % by seed", "(by patient or image)", "p (Holm)", "seeds",
                "targets in images", "could show", "attention"]  # fmt: skip
    title = titles(results)
    rows = [
        _comparison(results, name, row, title)
        for name, entry in results["experiments"].items()
        for row in entry["comparisons"]
    ]
    return headings, rows


def data_rows(
    results: Mapping[str, Any], experiment: str, row: Mapping[str, Any], title: Mapping[str, str]
) -> Iterable[list[Cell]]:
    entry = results["experiments"][experiment]
    for data, found in row["data"].items():
        void = {None: "not measured", True: "void", False: "open"}[found["void"]]
        yield [
            f"{title[row['arm']]} − {title[row['against']]}",
            entry["data"][data]["title"],
            row["group"],
            signed(found["mean"]),
            interval(found["low"], found["high"]),
            str(found["n"]),
            _attention(void, gated=row["gated"]),
        ]


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
    said = f"{title[row['arm']]} − {title[row['against']]}, {where}, {group}: {signed(row['mean'])} points of Dice"
    inside = [interval(row["low"], row["high"], "95 % {}")] if row["low"] is not None else []
    inside += [f"p {p_value(row['adjusted'])}"] if row["adjusted"] is not None else []
    inside += [
        _seeds(row, results["experiments"][experiment]),
        count_of(row["instances"], "target in images", "targets in images"),
    ]
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


def _seeds(row: Mapping[str, Any], experiment: Mapping[str, Any]) -> str:
    """How many; of how many where not all count: those that fail may be no accident."""
    planned = len(experiment["seeds"])
    return count_of(row["n"], "seed") if row["n"] == planned else f"{row['n']} of {count_of(planned, 'seed')}"


def _not_resolved(row: Mapping[str, Any]) -> str:
    if row["detectable"] is None:
        return f"not resolved; {'one seed says' if row['n'] == 1 else 'seeds without a spread say'} nothing of others"
    return f"not resolved; {count_of(row['n'], 'seed')} could show {_could_show(row['detectable'])} points"


def _could_show(detectable: float | None) -> str:
    """No two arms differ by more than 100 points."""
    return NONE if detectable is None else f"{100 * detectable:.1f}" if detectable <= 1 else "> 100"


def _comparison(
    results: Mapping[str, Any], experiment: str, row: Mapping[str, Any], title: Mapping[str, str]
) -> list[Cell]:
    patient = row["by_patient"]
    return [
        f"{title[row['arm']]} − {title[row['against']]}\n{results['experiments'][experiment]['title']}",
        row["group"],
        signed(row["mean"]),
        interval(row["low"], row["high"]),
        interval(patient["low"], patient["high"], "({})") + f"\nof {patient['patients']}",
        p_value(row["adjusted"]),
        str(row["n"]),
        str(row["instances"]),
        _could_show(row["detectable"]),
        _attention(row["void"], gated=row["gated"]),
    ]


def _attention(void: str, *, gated: bool) -> Cell:
    if not gated:
        return {"void": "unused", "partly void": "partly unused", "open": "used"}.get(void, void)
    said = {"void": "void: attention unused", "partly void": "partly void", "open": "used"}.get(void, void)
    return (said, RED) if "void" in void else said
