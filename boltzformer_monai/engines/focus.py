"""Measure where the sampling of an evaluated network looks, and whether it uses attention at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.data.slices.reader import SliceRow, read_png
from boltzformer_monai.evaluation.focus import FocusScore, layer_focus, partners
from boltzformer_monai.evaluation.mask_pair import dice
from boltzformer_monai.networks.interfaces import ImageFeatures, TextFeatures
from boltzformer_monai.networks.sampling import Randomness
from boltzformer_monai.transforms.load import slice_fit

__all__ = ["MeasureFocus"]


class MeasureFocus:
    """Handler of an evaluation: one :class:`FocusScore` per slice and target that is in it.

    Every slice is encoded and decoded once more, shown as it is, and decoded with the V of another patient's slice; S
    and image stay its own.

    Args:
        evaluator: its data set gives the other slices.
        root: the dataset's folder; scores name images relative to it.
        size: edge of the network's input in pixels.
        logit: smallest logit of a mask's pixels.
        noise: what images ``(B, C, S, S)`` are sampled with; by default the numbers that all share.
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        *,
        root: Path,
        size: int,
        logit: float = 0.0,
        noise: Callable[[Tensor], Randomness] | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.root = root
        self.size = size
        self.logit = logit
        self.noise = noise
        self.scores: list[FocusScore] = []
        loader: Any = evaluator.data_loader
        self.dataset = loader.dataset
        rows = [item["rows"][0] for item in self.dataset.data]
        self.other = dict(zip((row.image for row in rows), partners([row.patient for row in rows]), strict=True))

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator; every run starts with empty scores."""
        engine.add_event_handler(Events.STARTED, lambda _: self.scores.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.measure_batch)

    @torch.no_grad()
    def measure_batch(self, engine: Engine) -> None:
        """Measure the slices of an iteration."""
        network: Any = self.evaluator.network
        batch: Any = engine.state.batch
        device = self.evaluator.state.device
        images = batch["image"].to(device)
        features = network.encode_image(images)
        text = network.encode_text(batch["tokens"].to(device))
        noise = None if self.noise is None else self.noise(images)
        own = network.decode(features, text, generator=noise).logits
        sets = network.attention_sets(features, text, generator=noise, drawn=True)
        swapped = self._with_other_v(features, text, batch["rows"], noise)
        for index, rows in enumerate(batch["rows"]):
            of_slice = [each[index, : len(rows)].cpu().numpy() for each in sets]
            other = None if swapped is None else swapped[index, : len(rows)]
            self.scores.extend(self._score(rows, own[index, : len(rows)], other, of_slice))

    def _with_other_v(
        self, features: ImageFeatures, text: TextFeatures, rows: list[list[SliceRow]], noise: Randomness
    ) -> Tensor | None:
        """Logits with other slices' V; None where there is only one slice."""
        others = [self.other[each[0].image] for each in rows]
        if any(other is None for other in others):
            return None
        network: Any = self.evaluator.network
        images = torch.stack([self.dataset[other]["image"] for other in others])
        levels = network.encode_image(images.to(features.image.device)).levels
        swapped = dataclasses.replace(features, levels=levels)
        return network.decode(swapped, text, generator=noise).logits  # type: ignore[no-any-return]

    def _score(
        self, rows: list[SliceRow], own: Tensor, swapped: Tensor | None, sets: list[np.ndarray]
    ) -> list[FocusScore]:
        """Scores of the P rows of a slice: logits ``(P, s, s)``, and for each layer sets ``(P, …, h_l, w_l)``."""
        label = rows[0].label
        if label is None or not any(row.present for row in rows):
            return []
        values = read_png(label)
        fit = slice_fit(values.shape, rows[0], self.size)
        predicted = [None if each is None else fit.restore(each[None].float().cpu())[0] for each in (own, swapped)]
        found = []
        for index, row in enumerate(rows):
            truth = np.isin(values, row.label_values)
            if not truth.any():
                continue
            share = fit.image(torch.from_numpy(truth)[None, None].float())
            target = share >= share.max().clamp(max=0.5)  # something stays of targets smaller than a pixel
            layers = (layer_focus(each[index], _patches(target, each.shape[-2:])) for each in sets)
            overlaps = [None if each is None else self._dice(each[index], truth) for each in predicted]
            found.append(
                FocusScore(
                    image=row.image.relative_to(self.root).as_posix(),
                    volume=row.volume,
                    patient=row.patient,
                    target=row.target,
                    area_fraction=float(truth.mean()),
                    layers=tuple(layers),
                    dice=overlaps[0] or 0.0,
                    swapped_dice=overlaps[1],
                )
            )
        return found

    def _dice(self, logits: Tensor, truth: np.ndarray) -> float | None:
        predicted = (logits > self.logit).numpy()
        return dice(int((predicted & truth).sum()), int(predicted.sum()), int(truth.sum()))


def _patches(target: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """The patches of a grid ``(h_l, w_l)`` that hold a part of a mask ``(1, 1, S, S)``."""
    return F.adaptive_max_pool2d(target.float(), (size[0], size[1]))[0, 0].numpy() > 0  # type: ignore[no-any-return]
