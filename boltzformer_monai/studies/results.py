"""From the runs that are done to the numbers of a study: means by seed, paired comparisons, gates, costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from boltzformer_monai.evaluation.focus import GATE
from boltzformer_monai.studies.plan import Comparison, Run, Study
from boltzformer_monai.studies.provenance import provenance
from boltzformer_monai.studies.runner import read_failure, read_result, run_folder
from boltzformer_monai.studies.scores import (
    GROUPS,
    SMALL,
    ScoreRow,
    common_rows,
    in_group,
    mean_dice,
    missed_share,
    patient_interval,
    read_rows,
)
from boltzformer_monai.studies.statistics import Paired, correct_family, mean_sd, paired_difference

__all__ = ["collect"]

COMPARED = ("all", SMALL)
"""Groups of objects with a paired test."""
_SHARED = ("backbone", "pixel_decoder", "text_encoder")
_COSTS = ("wall_s", "processor_s", "peak_mib")
_OF_DECODER = frozenset(
    ("decoder_settings", "policy", "policy_settings", "base_temperature", "sample_ratio", "exact", "per_head",
     "threshold", "text_prior", "pigma_channels", "pigma_correction", "mask_bias", "level_logits", "presence", "fast",
     "queries", "layers")
)  # fmt: skip
"""Settings of the network that change nothing but its decoder."""


class _Done:
    """The finished runs of an experiment on a data set."""

    def __init__(self, runs: Iterable[tuple[Run, Mapping[str, Any], list[ScoreRow]]]) -> None:
        self.rows: dict[str, dict[int, list[ScoreRow]]] = defaultdict(lambda: defaultdict(list))
        self.facts: dict[str, dict[int, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        self.made: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for run, result, rows in runs:
            self.rows[run.arm][run.seed].extend(rows)
            self.facts[run.arm][run.seed].append(result["facts"])
            self.made[run.arm].append({"key": run.key, "seed": run.seed, "fold": run.fold, **result["made"]})


def collect(study: Study, folder: Path, planned: Mapping[str, Sequence[Run]]) -> tuple[dict[str, Any], list[ScoreRow]]:
    """All numbers of a study so far.

    A seed counts for an arm once all its folds are done, and for a comparison once both arms have it.

    Args:
        study: the study.
        folder: its results.
        planned: of :func:`~boltzformer_monai.studies.runner.planned_runs`; experiments whose data are missing are
            counted alone.

    Returns:
        JSON values, and the rows of all runs that are done.

    Raises:
        BoltzFormerError: a file of a run is damaged.
    """
    experiments: dict[str, Any] = {}
    everything: dict[tuple[Any, ...], ScoreRow] = {}
    for name, runs in planned.items():
        plan = study.experiments[name]
        by_data: dict[str, list[tuple[Run, Mapping[str, Any], list[ScoreRow]]]] = defaultdict(list)
        whole = {(run.data, run.arm, run.seed): True for run in runs}
        failed, done = [], 0
        for run in runs:
            result = read_result(folder, run)
            if result is None:
                whole[run.data, run.arm, run.seed] = False
                if (reason := read_failure(folder, run)) is not None:
                    failed.append({"run": str(run), "key": run.key, "reason": reason})
                continue
            done += 1
            rows = [_renamed(row, run) for row in read_rows(run_folder(folder, run) / "scores.csv")]
            everything |= {(row.arm, row.seed, row.fold, row.data, row.image, row.target): row for row in rows}
            by_data[run.data].append((run, result, rows))
        found = {
            data: _Done(each for each in by_data[data] if whole[data, each[0].arm, each[0].seed]) for data in plan.data
        }
        experiments[name] = {
            "title": plan.title or name,
            "seeds": plan.seeds,
            "folds": plan.folds,
            "runs": {"done": done, "planned": len(runs)},
            "failed": failed,
            "data": {data: _data(study, data, plan.arms, each) for data, each in found.items()},
            "comparisons": _comparisons(study, name, found),
        }
    _correct(experiments)
    keys = {run.key: run_folder(folder, run) for runs in planned.values() for run in runs}
    return {
        "study": _described_study(study),
        "made": provenance(),
        "runs": {
            "done": sum((place / "result.json").is_file() for place in keys.values()),
            "planned": len(keys) + sum(each.count for name, each in study.experiments.items() if name not in planned),
            "failed": len({each["key"] for entry in experiments.values() for each in entry["failed"]}),
        },
        "experiments": experiments,
    }, list(everything.values())


def _described_study(study: Study) -> dict[str, Any]:
    """The study's file, with the names of data folders alone: results are published, and paths name a machine."""
    content = study.model_dump()
    for source in content["data"].values():
        if source["folder"] is not None:
            source["folder"] = Path(source["folder"]).name
    return content


def _renamed(row: ScoreRow, run: Run) -> ScoreRow:
    """A row of a run that another arm with the same settings did."""
    return row if (row.arm, row.data) == (run.arm, run.data) else replace(row, arm=run.arm, data=run.data)


def _data(study: Study, name: str, arms: Sequence[str], done: _Done) -> dict[str, Any]:
    source = study.data[name]
    some = [facts for arm in arms for each in done.facts.get(arm, {}).values() for facts in each]
    first = next((rows for arm in arms for rows in done.rows.get(arm, {}).values()), [])
    return {
        "title": source.title or name,
        "licence": source.licence,
        "figures": source.figures,
        "split": next((facts["split"] for facts in some if "split" in facts), None),
        "held_out": sorted({patient for facts in some for patient in facts.get("held_out", ())}),
        "sizes": _sizes(first),
        "arms": {arm: _arm(done, arm) for arm in arms if done.rows.get(arm)},
        "pairing": _pairing(arms, done),
    }


def _sizes(rows: Sequence[ScoreRow]) -> dict[str, dict[str, Any]]:
    """Area of the targets in % of the image (the paper's Table 9), of what was evaluated."""
    shares: dict[str, list[float]] = defaultdict(list)
    absent: dict[str, int] = defaultdict(int)
    for row in rows:
        shares[row.target] += [100 * row.area_share] if row.dice is not None else []
        absent[row.target] += row.dice is None
    return {
        target: {
            "mean": fmean(values) if values else None,
            "median": median(values) if values else None,
            "min": min(values, default=None),
            "max": max(values, default=None),
            "present": len(values),
            "absent": absent[target],
        }
        for target, values in sorted(shares.items())
    }


def _arm(done: _Done, arm: str) -> dict[str, Any]:
    rows, facts = done.rows[arm], done.facts[arm]
    flat = [each for of_seed in facts.values() for each in of_seed]
    targets = sorted({row.target for of_seed in rows.values() for row in of_seed})
    return {
        "seeds": sorted(rows),
        "dice": {group: _by_seed({seed: mean_dice(each, group) for seed, each in rows.items()}) for group in GROUPS},
        "missed": {
            group: _by_seed({seed: missed_share(each, group) for seed, each in rows.items()}) for group in GROUPS
        },
        "targets": {
            target: _by_seed(
                {seed: mean_dice([row for row in each if row.target == target]) for seed, each in rows.items()}
            )
            for target in targets
        },
        "false_positive_rate": _rate([each.get("false_positive_rate") for each in flat]),
        "gate": _gate([each.get("gate") for each in flat]),
        "focus": _focus([each.get("focus") for each in flat]),
        "parameters": next((each["parameters"] for each in flat if "parameters" in each), None),
        "decoder_parameters": next((each["decoder_parameters"] for each in flat if "decoder_parameters" in each), None),
        "steps": next((each["steps"] for each in flat if "steps" in each), None),
        "training": {name: _mean(each.get("training", {}).get(name) for each in flat) for name in _COSTS},
        "evaluation": {name: _mean(each.get("evaluation", {}).get(name) for each in flat) for name in _COSTS},
        "inference_s": _mean(each.get("inference_s") for each in flat),
        "runs": [
            {**made, "checkpoint_sha256": each.get("checkpoint_sha256")}
            for made, each in zip(done.made[arm], flat, strict=True)
        ],
    }


def _by_seed(means: Mapping[int, Any]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and what each seed's mean is of."""
    values = {seed: mean.value for seed, mean in means.items() if mean.value is not None}
    mean, sd = mean_sd(list(values.values()))
    counts = list(means.values())
    return {
        "mean": mean,
        "sd": sd,
        "n_seeds": len(values),
        "instances": max((each.instances for each in counts), default=0),
        "patients": max((each.patients for each in counts), default=0),
        "by_seed": {str(seed): value for seed, value in sorted(values.items())},
    }


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None


def _rate(entries: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    known = [each for each in entries if each and each["mean"] is not None]
    return {
        "mean": _mean(each["mean"] for each in known),
        "cases": max((each["cases"] for each in known), default=0),
        "n_runs": len(known),
    }


def _gate(entries: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Dice of the small objects with their own V and with another image's, and whether the difference is enough.

    Objects with a Dice below that difference cannot lose so much: too little is learned to tell.
    """
    known = [each for each in entries if each and each.get("dice") is not None and each.get("swapped") is not None]
    if not known:
        return None
    own, swapped = (fmean(each[name] for each in known) for name in ("dice", "swapped"))
    instances = max(int(each.get("instances", 0)) for each in known)
    return {
        "dice": own, "swapped": swapped, "cost": own - swapped, "open": own - swapped >= GATE, "learned": own >= GATE,
        "instances": instances, "of": known[0].get("of", SMALL), "n_runs": len(known),
    }  # fmt: skip


def _focus(entries: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Target → layer by layer: mean over runs of enrichment, set size and share of empty sets, with instances."""
    found: dict[str, list[Sequence[Mapping[str, Any]]]] = defaultdict(list)
    for entry in entries:
        for target, layers in (entry or {}).items():
            found[target].append(layers)
    return {
        target: [
            {key: _mean(layer.get(key) for layer in of_layer) for key in ("focus", "set_size", "empty", "instances")}
            for of_layer in zip(*runs, strict=False)
        ]
        for target, runs in sorted(found.items())
    }


def _pairing(arms: Sequence[str], done: _Done) -> dict[str, Any]:
    """Whether arms of a seed begin with the same weights and see the same examples in the same order, by hash."""
    differing: dict[str, list[str]] = {}
    seeds = sorted({seed for arm in arms for seed in done.facts.get(arm, {})})
    compared = 0
    for seed in seeds:
        reference: Mapping[str, Any] | None = None
        for arm in arms:
            for number, facts in enumerate(done.facts.get(arm, {}).get(seed, [])):
                if "initial" not in facts:
                    continue
                if reference is None:
                    reference = facts
                    continue
                if number:
                    continue  # other folds see other data
                compared += 1
                same = reference["initial"]
                parts = [part for part in same if facts["initial"].get(part) != same[part]]
                parts += ["order of the data"] if facts.get("order") != reference.get("order") else []
                if parts:
                    differing[arm] = sorted({*differing.get(arm, ()), *parts})
    unpaired = [arm for arm, parts in differing.items() if {*parts} & {*_SHARED, "order of the data"}]
    unknown = [
        arm
        for arm in arms
        if any("initial" not in facts for of_seed in done.facts.get(arm, {}).values() for facts in of_seed)
    ]
    return {"compared": compared, "differing": differing, "unpaired": unpaired, "unknown": unknown}


def _comparisons(study: Study, experiment: str, found: Mapping[str, _Done]) -> list[dict[str, Any]]:
    """Paired differences by seed: of every data set, and of their mean, which is what is tested.

    Where all objects are small there is one test, not two of the same.
    """
    arms = study.experiments[experiment].arms
    rows: list[dict[str, Any]] = []
    for pair in (each for each in study.comparisons if {each.arm, each.against} <= {*arms}):
        gated = _is_of_attention(study, experiment, pair)
        made = [row for group in COMPARED if (row := _comparison(pair, group, found, gated=gated)) is not None]
        small = {row["instances"] for row in made if row["group"] == SMALL}
        rows += [row for row in made if row["group"] == SMALL or row["instances"] not in small]
    return rows


def _is_of_attention(study: Study, experiment: str, pair: Comparison) -> bool:
    """Whether two arms differ by settings of one decoder alone, so that only attention can make a difference."""
    kind, base = study.experiments[experiment].kind, study.experiments[experiment].network
    one, other = study.arms[pair.arm], study.arms[pair.against]
    ours, theirs = ({**study.network, **base, **each.network} for each in (one, other))
    differing = {name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name)}
    return (one.kind or kind) == (other.kind or kind) and differing <= _OF_DECODER and one.training == other.training


def _comparison(pair: Comparison, group: str, found: Mapping[str, _Done], *, gated: bool) -> dict[str, Any] | None:
    by_data = {data: _differences(done, pair.arm, pair.against, group) for data, done in found.items()}
    used = {data: each for data, each in by_data.items() if each}
    seeds = sorted(set.intersection(*(set(each) for each in used.values()))) if used else []
    if not seeds:
        return None
    differences = {seed: fmean(each[seed] for each in used.values()) for seed in seeds}
    each_s = [
        [row for data in used for seed in seeds for row in found[data].rows[arm][seed]]
        for arm in (pair.arm, pair.against)
    ]
    ours, theirs = common_rows(*each_s)
    interval = patient_interval(ours, theirs, group)
    void = {data: _is_void(found[data], pair, fmean(each.values())) for data, each in used.items()}
    return {
        "arm": pair.arm,
        "against": pair.against,
        "claim": pair.claim,
        "of_paper": pair.of_paper,
        "group": group,
        **asdict(paired_difference(list(differences.values()))),
        "differences": {str(seed): value for seed, value in differences.items()},
        "instances": len(in_group(ours, group)) // len(seeds),
        "left_out": sum(len(in_group(rows, group)) for rows in each_s) - 2 * len(in_group(ours, group)),
        "by_patient": {"low": interval.low, "high": interval.high, "patients": interval.patients},
        "void": _all_or_some(list(void.values())),
        "gated": gated,
        "data": {data: {**_described(list(each.values())), "void": void[data]} for data, each in used.items()},
    }


def _described(differences: Sequence[float]) -> dict[str, Any]:
    """Of one data set: without a test, which would be one more of the family."""
    found = paired_difference(differences)
    return {name: getattr(found, name) for name in ("mean", "sd", "n", "low", "high", "detectable")}


def _differences(done: _Done, arm: str, against: str, group: str) -> dict[int, float]:
    """Seed → mean Dice of an arm less that of another, over what both have scored."""
    values = {}
    for seed in sorted(set(done.rows.get(arm, {})) & set(done.rows.get(against, {}))):
        both = common_rows(done.rows[arm][seed], done.rows[against][seed])
        one, other = (mean_dice(rows, group).value for rows in both)
        if one is not None and other is not None:
            values[seed] = one - other
    return values


def _is_void(done: _Done, pair: Comparison, difference: float) -> bool | None:
    """Whether the better arm's masks do not need attention, so that its lead is not due to what it attends to.

    The worse one's need not: an arm that has not learned to use attention where the other has is worse by that.
    None where it was not measured.
    """
    better = pair.arm if difference >= 0 else pair.against
    gate = _gate([each.get("gate") for of_seed in done.facts[better].values() for each in of_seed])
    return None if gate is None else not gate["open"]


def _all_or_some(void: Sequence[bool | None]) -> str:
    """``"void"``, ``"partly void"``, ``"open"`` or ``"not measured"``, of those where it was measured."""
    known = [each for each in void if each is not None]
    if not known:
        return "not measured"
    return "void" if all(known) else "partly void" if any(known) else "open"


def _correct(experiments: Mapping[str, Any]) -> None:
    """Holm's correction over all comparisons of the study so far."""
    every = [row for entry in experiments.values() for row in entry["comparisons"]]
    family = [Paired(**{field.name: row[field.name] for field in fields(Paired)}) for row in every]
    for row, corrected in zip(every, correct_family(family), strict=True):
        row["adjusted"], row["detectable"] = corrected.adjusted, corrected.detectable
        row["family"] = sum(each.p is not None for each in family)
