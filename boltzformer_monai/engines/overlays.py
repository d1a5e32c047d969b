"""Truth and prediction on the same few validation slices, after every validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events

from boltzformer_monai.data.slices.reader import SliceRow, read_mask, read_png
from boltzformer_monai.engines.data import Item
from boltzformer_monai.evaluation.figures import OverlayPanel
from boltzformer_monai.evaluation.mask_pair import dice
from boltzformer_monai.evaluation.strata import SMALL_AREA_FRACTION
from boltzformer_monai.evaluation.tiles import tile_panels
from boltzformer_monai.networks.interfaces import Decoded
from boltzformer_monai.transforms.load import slice_fit

__all__ = ["Overlay", "WatchedSlices", "around_target", "choose_watched", "draw_overlays"]

_AROUND = 6.0  # edge of the cut-out, in extents of the target
_LEAST_MM = 48.0
_CHOICE = 3  # stream of the seed


@dataclass(frozen=True)
class Overlay:
    """Prediction for a target of a slice, cut out around the target.

    Attributes:
        image: ``(h, w)`` uint8.
        truth: ``(h, w)`` bool.
        prediction: ``(h, w)`` bool.
        target: its name.
        dice: of the whole slice.
        aspect: height of a pixel over its width.
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    target: str
    dice: float
    aspect: float


class WatchedSlices:
    """Handler of the validation: ``state.overlays`` are those of the same slices and targets, every time.

    The predictions are the validation's own; nothing is computed twice.

    Args:
        items: examples of the validation.
        size: edge of the network's input in pixels.
        seed: of the choice.
        count: most slices; 0 watches none.
    """

    def __init__(self, items: Sequence[Item], *, size: int, seed: int, count: int = 8) -> None:
        rows = {_key(row): row for item in items for row in item["rows"] if row.present}
        self.rows = choose_watched(list(rows.values()), count=count, seed=seed)
        self.size = size
        self._wanted = {_key(row) for row in self.rows}
        self._found: dict[tuple[str, str], Overlay] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, in every process."""
        engine.add_event_handler(Events.STARTED, lambda _: self._found.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        prediction = output["pred"]
        logits = prediction.logits if isinstance(prediction, Decoded) else prediction
        for index, rows in enumerate(batch["rows"]):
            for prompt, row in enumerate(rows):
                key = _key(row)
                if key in self._wanted and key not in self._found:
                    self._found[key] = self._overlay(row, logits[index, prompt])

    def _overlay(self, row: SliceRow, logits: Any) -> Overlay:
        image, truth = read_png(row.image), read_mask(row)
        native = slice_fit(image.shape, row, self.size).restore(logits[None, None].float().cpu())[0, 0]
        predicted = (native > 0).numpy()
        part = around_target(truth, row.spacing[:2])
        return Overlay(
            image=image[part],
            truth=truth[part],
            prediction=predicted[part],
            target=row.target,
            dice=dice(int((predicted & truth).sum()), int(predicted.sum()), int(truth.sum())) or 0.0,
            aspect=row.spacing[0] / row.spacing[1],
        )

    def _finish(self, engine: Engine) -> None:
        parts: list[dict[tuple[str, str], Overlay]] = [self._found]
        if idist.get_world_size() > 1:
            parts = idist.all_gather(self._found)  # type: ignore[assignment]
        found = {key: overlay for part in parts for key, overlay in part.items()}
        engine.state.overlays = [found[key] for key in map(_key, self.rows) if key in found]  # type: ignore[attr-defined]


def choose_watched(rows: Sequence[SliceRow], *, count: int, seed: int) -> list[SliceRow]:
    """Choose rows by seed: half of them small objects where there are as many, of many targets and patients.

    Args:
        rows: with visible targets.
        count: at most so many.
        seed: the same rows and seed give the same choice.

    Returns:
        The largest object last.
    """
    order = np.random.default_rng([seed, _CHOICE]).permutation(len(rows))
    shuffled = [rows[index] for index in order]
    small = _spread([row for row in shuffled if row.area_fraction < SMALL_AREA_FRACTION])
    large = _spread([row for row in shuffled if row.area_fraction >= SMALL_AREA_FRACTION])
    half = max(count // 2, count - len(large))
    chosen = small[:half] + large[: count - min(half, len(small))]
    return sorted(chosen, key=lambda row: row.area_fraction)


def _spread(rows: Sequence[SliceRow]) -> list[SliceRow]:
    """Every target once, then every target a second time, …; among them patients that were not taken yet first."""
    targets, patients = Counter[str](), Counter[str]()
    ranked = []
    for row in rows:
        ranked.append(((targets[row.target], patients[row.patient]), row))
        targets[row.target] += 1
        patients[row.patient] += 1
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def draw_overlays(overlays: Sequence[Overlay]) -> np.ndarray:
    """Overlays with target and Dice above each: prediction filled green, truth outlined red; ``(H, W, 3)`` uint8."""
    panels = [
        OverlayPanel(each.image, each.prediction, each.truth, f"{each.target}: Dice {each.dice:.2f}")
        for each in overlays
    ]
    return tile_panels(panels, aspects=[each.aspect for each in overlays])


def _key(row: SliceRow) -> tuple[str, str]:
    return str(row.image), row.target


def around_target(truth: np.ndarray, spacing: tuple[float, float]) -> tuple[slice, slice]:
    """A square around the target, a few times its extent, within the slice; everything if there is no target."""
    places = np.argwhere(truth)
    if not len(places):
        return slice(None), slice(None)
    first, last = places.min(axis=0), places.max(axis=0) + 1
    edge_mm = max(_LEAST_MM, _AROUND * float(((last - first) * spacing).max()))
    parts = []
    for start, stop, length, mm in zip(first, last, truth.shape, spacing, strict=True):
        edge = min(length, max(1, round(edge_mm / mm)))
        low = min(max(0, int(start + stop - edge) // 2), length - edge)
        parts.append(slice(low, low + edge))
    return parts[0], parts[1]
