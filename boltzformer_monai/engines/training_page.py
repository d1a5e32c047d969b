"""``training.html``: a training as one page, from its ``history.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.evaluation.figures import loss_curve
from boltzformer_monai.evaluation.html import write_html

__all__ = ["best_row", "data_facts", "text_of", "write_training_page"]

_TITLES = {
    "epoch": "epoch",
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "val_dice": "validation Dice",
}


def write_training_page(
    path: Path,
    *,
    history: Sequence[Mapping[str, float]],
    key_metric: str,
    improves: Callable[[float, float], bool],
    epochs: int,
    outcome: str,
    overlays: Iterable[tuple[str, bytes]] = (),
    facts: Mapping[str, str] | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page atomically; returns its path.

    Args:
        path: of the page.
        history: the content of ``history.json``.
        key_metric: its key that selects the best checkpoint.
        improves: whether a value of the key metric is better than another.
        epochs: that the training may take at most.
        outcome: how it ended, a sentence.
        overlays: caption and PNG.
        facts: data, versions.
        configuration: all settings, by name.
    """
    best = best_row(history, key_metric=key_metric, improves=improves)
    columns = list(dict.fromkeys(name for row in history for name in row))
    cards = [(f"{len(history)} of {epochs}", "epochs")]
    if best is not None:
        cards += [
            (f"{best[key_metric]:.4f}", f"best {_title(key_metric)}"),
            (f"{best['epoch']:g}", "epoch of the best checkpoint"),
        ]
    return write_html(
        path,
        "training.html",
        package=__package__,
        title="Training",
        outcome=outcome,
        cards=cards,
        curve=loss_curve(history, best=None if best is None else best["epoch"]) if history else None,
        headings=[_title(name) for name in columns],
        rows=[[_number(row.get(name)) for name in columns] for row in history],
        best=-1 if best is None else list(history).index(best),
        overlays=list(overlays),
        facts=facts or {},
        configuration={name: text_of(value) for name, value in (configuration or {}).items()},
    )


def best_row(
    history: Sequence[Mapping[str, float]], *, key_metric: str, improves: Callable[[float, float], bool]
) -> Mapping[str, float] | None:
    """The first epoch whose key metric no other surpasses; None where it never had a value."""
    best: Mapping[str, float] | None = None
    for row in history:
        value = row.get(key_metric, math.nan)
        if math.isfinite(value) and (best is None or improves(value, best[key_metric])):
            best = row
    return best


def data_facts(data: Mapping[str, Any]) -> dict[str, str]:
    """Content of :func:`~boltzformer_monai.data.slices.summary.training_data`, in words."""
    facts = {
        f"Data, {split}": ", ".join(f"{number} {what[:-1] if number == 1 else what}" for what, number in counts.items())
        for split, counts in data.get("splits", {}).items()
    }
    for name in ("modalities", "sites", "planes"):
        if name in data:
            facts[name.capitalize()] = ", ".join(f"{each} ({number})" for each, number in data[name].items())
    if "sha256" in data:
        facts["Fingerprint of the data"] = str(data["sha256"])
    if "fold" in data:
        facts["Fold"] = text_of(data["fold"])
    return facts


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:g}" if float(value).is_integer() else f"{value:.4f}"


def text_of(value: object) -> str:
    """A plain value in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {text_of(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
