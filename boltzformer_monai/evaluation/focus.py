"""Where the sampling looks: layer by layer, how much more often than by chance a sampled patch holds the target.

And the gate, whether attention is used at all: the Dice with another image's visual features V. Where that costs
nothing, a comparison of attention policies says nothing.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai.csv_cells import to_cell
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.bootstrap import Bootstrap, Observation
from boltzformer_monai.evaluation.strata import SMALL_AREA_FRACTION
from boltzformer_monai.storage import replacing

__all__ = [
    "GATE", "FocusScore", "LayerFocus", "focus_lines", "focus_table", "layer_focus", "partners", "sets_table",
    "summarise_focus", "verdict", "write_focus_csv",
]  # fmt: skip

GATE = 0.1
"""Dice that small objects must lose by another image's V; with less, attention counts as unused."""

_COLUMNS = ("image", "volume", "patient", "target", "area_fraction", "dice", "swapped_dice")
_NO_VALUE = "–"
_OF_LAYER = ("focus", "on_target", "by_chance", "size", "empty")


@dataclass(frozen=True)
class LayerFocus:
    """How the attention sets of one layer meet one target in one slice; means over its queries (and heads).

    Attributes:
        on_target: share of a query's attended patches that hold a part of the target.
        by_chance: share of all patches that do, above 0.
        size: attended share of all patches.
        empty: share of the sets that were drawn empty; their queries attend to everything, and count so in the others.
    """

    on_target: float
    by_chance: float
    size: float
    empty: float

    @property
    def focus(self) -> float:
        """``on_target`` / ``by_chance``: 1 = chance."""
        return self.on_target / self.by_chance


@dataclass(frozen=True)
class FocusScore:
    """One target that is in a slice.

    Attributes:
        image: name of the slice's image.
        volume: id of its volume.
        patient: pseudonym.
        target: canonical target name.
        area_fraction: the target's share of the slice, above 0.
        layers: one entry per layer; none for a decoder without attention sets.
        dice: with the image's own V.
        swapped_dice: with another image's V; None where there is no other image.
    """

    image: str
    volume: str
    patient: str
    target: str
    area_fraction: float
    layers: tuple[LayerFocus, ...]
    dice: float
    swapped_dice: float | None


def layer_focus(drawn: np.ndarray, on_target: np.ndarray) -> LayerFocus:
    """Compare the sets of one layer with a target.

    Args:
        drawn: bool ``(…, h_l, w_l)``, the sets as the policy drew them, possibly empty.
        on_target: bool ``(h_l, w_l)``, the patches that hold a part of the target, at least one.

    Raises:
        ConfigError: shapes do not fit, or no patch holds the target.
    """
    if drawn.shape[-2:] != on_target.shape or not on_target.any():
        msg = f"sets on a grid {drawn.shape[-2:]} need a target on it, got {on_target.shape}, {on_target.sum()} patches"
        raise ConfigError(msg)
    sets = drawn.reshape(-1, on_target.size)
    empty = ~sets.any(1)
    attended = sets | empty[:, None]
    sizes = attended.sum(1)
    hits = attended[:, on_target.ravel()].sum(1)
    return LayerFocus(
        on_target=float((hits / sizes).mean()),
        by_chance=float(on_target.mean()),
        size=float(sizes.mean() / on_target.size),
        empty=float(empty.mean()),
    )


def partners(patients: Sequence[str]) -> list[int | None]:
    """For every image one to take V from: half the images on, then on to one of another patient.

    Of a single patient's images another one; None where there is only one image.
    """
    count = len(patients)
    found: list[int | None] = []
    for index, patient in enumerate(patients):
        others = [(index + count // 2 + step) % count for step in range(count)]
        stranger = next((other for other in others if patients[other] != patient), None)
        another = next((other for other in others if other != index), None)
        found.append(another if stranger is None else stranger)
    return found


def summarise_focus(scores: Iterable[FocusScore], *, bootstrap: Bootstrap | None = None) -> dict[str, Any]:
    """Means over the slices that show a target, with intervals by patient.

    Returns:
        ``by_target``, ``small`` (targets below 1 % of the slice) and ``overall``, each with ``layers``: for every layer
        ``focus``, ``on_target``, ``by_chance``, ``size`` and ``empty``; and with ``dice``, ``swapped_dice`` and
        ``drop``, their difference. Each is ``mean``, ``low``, ``high``, ``cases`` and ``patients``; every slice and
        target counts the same.
        ``gate``: ``least``, the drop of the small targets from which attention counts as used, and whether it is
        (``used``); None without such targets.
    """
    cases = sorted(scores, key=lambda score: (score.volume, score.image, score.target))
    method = bootstrap or Bootstrap()
    targets = sorted({case.target for case in cases})
    small = _entry([case for case in cases if case.area_fraction < SMALL_AREA_FRACTION], method)
    drop = small["drop"]["mean"]
    return {
        "by_target": {target: _entry([case for case in cases if case.target == target], method) for target in targets},
        "small": small,
        "overall": _entry(cases, method),
        "gate": {"least": GATE, "used": None if drop is None else drop >= GATE},
    }


def _entry(cases: Sequence[FocusScore], bootstrap: Bootstrap) -> dict[str, Any]:
    def estimate(value: Callable[[FocusScore], float | None]) -> dict[str, Any]:
        values = [(case.patient, value(case)) for case in cases]
        found = [Observation(patient, each) for patient, each in values if each is not None]
        return bootstrap.estimate(found).as_dict()

    def of_layer(name: str, layer: int) -> Callable[[FocusScore], float]:
        return lambda case: float(getattr(case.layers[layer], name))

    layers = len(cases[0].layers) if cases else 0
    return {
        "layers": [{name: estimate(of_layer(name, layer)) for name in _OF_LAYER} for layer in range(layers)],
        "dice": estimate(lambda case: case.dice),
        "swapped_dice": estimate(lambda case: case.swapped_dice),
        "drop": estimate(lambda case: None if case.swapped_dice is None else case.dice - case.swapped_dice),
    }


def focus_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a summary: per target, of small targets and of all, both Dice and the focus by layer."""
    groups = _groups(summary)
    layers = max(len(entry["layers"]) for _, entry in groups)
    headings = ["target", "n (slices)", "Dice", "with another V", *(f"layer {layer + 1}" for layer in range(layers))]
    rows = []
    for name, entry in groups:
        numbers = [_decimals(entry[key]["mean"], 3) for key in ("dice", "swapped_dice")]
        focus = [_decimals(layer["focus"]["mean"], 1) for layer in entry["layers"]] or [_NO_VALUE] * layers
        rows.append([name, str(entry["dice"]["cases"]), *numbers, *focus])
    return headings, rows


def sets_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the sets by layer, over all targets: how large they are, and how many were drawn empty."""
    layers = summary["overall"]["layers"]
    headings = ["", *(f"layer {layer + 1}" for layer in range(len(layers)))]
    names = {"size": "attended patches", "empty": "sets drawn empty"}
    rows = [
        [title, *(f"{_decimals(None if (mean := of[name]['mean']) is None else 100 * mean, 1)} %" for of in layers)]
        for name, title in names.items()
    ]
    return headings, rows


def focus_lines(summary: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """The focus by layer of every target, for :func:`~boltzformer_monai.evaluation.figures.focus_by_layer`."""
    return {name: [of["focus"]["mean"] for of in entry["layers"]] for name, entry in summary["by_target"].items()}


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence: whether small targets need attention."""
    small, gate = summary["small"], summary["gate"]
    if gate["used"] is None:
        return "No small targets (below 1 % of the slice) to judge by whether attention is used."
    drop = small["drop"]
    lost = (
        f"Small targets (below 1 % of the slice; n = {drop['cases']}, {drop['patients']} patients) lose "
        f"{drop['mean']:.3f} Dice with another slice's visual features"
    )
    judged = "attention is used" if gate["used"] else f"less than {gate['least']:g}, so attention is unused"
    return f"{lost}: {judged}."


def _groups(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    named = {"small": "below 1 % of the slice", "overall": "all"}
    return [*summary["by_target"].items(), *((title, summary[key]) for key, title in named.items())]


def _decimals(value: float | None, decimals: int) -> str:
    return _NO_VALUE if value is None else f"{value:.{decimals}f}"


def write_focus_csv(scores: Sequence[FocusScore], path: str | os.PathLike[str]) -> Path:
    """Write one row per slice and target atomically: both Dice, then ``focus_1``, ``size_1``, … of every layer."""
    target = Path(path)
    layers = len(scores[0].layers) if scores else 0
    names = [f"{name}_{layer + 1}" for name in _OF_LAYER for layer in range(layers)]
    with replacing(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*_COLUMNS, *names])
        for score in scores:
            values = [getattr(layer, name) for name in _OF_LAYER for layer in score.layers]
            table.writerow([*(to_cell(getattr(score, name)) for name in _COLUMNS), *map(repr, values)])
    return target
