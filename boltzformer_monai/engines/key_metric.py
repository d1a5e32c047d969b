"""The key metric of the validation: it selects ``model.pt`` and stops training early."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.engines import Evaluator
from monai.handlers import MeanDice
from torch import Tensor

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines.evaluator import ScoreSlices
from boltzformer_monai.engines.loss import StepLoss
from boltzformer_monai.engines.ranks import sums_of_ranks
from boltzformer_monai.errors import ConfigError, did_you_mean
from boltzformer_monai.evaluation import metrics as table
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.summary import SliceScore, summarise_slices
from boltzformer_monai.networks.interfaces import Decoded
from boltzformer_monai.transforms.square import resized_logits

VAL_LOSS = "val_loss"
VAL_DICE = "val_dice"


@dataclass(frozen=True)
class ValidationMetrics:
    """What MONAI's evaluator takes: ``key_val_metric``, ``additional_metrics`` and ``metric_cmp_fn``."""

    key: Mapping[str, Metric]
    additional: Mapping[str, Metric]
    improves: Callable[[float, float], bool]


def validation_metrics(key_metric: str, *, loss: StepLoss, reader: SliceReader, size: int) -> ValidationMetrics:
    """Metrics of the validation: the key metric, and the loss and Dice for the curves.

    Args:
        key_metric: ``"val_loss"``, or the name of a 2-D metric of the table, recorded as ``val_NAME``.
        loss: of the masks. The presence head is excluded: it has no gradient to the masks and would bias the selection.
        reader: the data set.
        size: edge of the network's square in pixels.

    Raises:
        ConfigError: the key metric is unknown, or measured on volumes only.
    """
    metric = find_key_metric(key_metric)
    curves: dict[str, Metric] = {
        VAL_LOSS: LossOfExamples(loss),
        VAL_DICE: MeanDice(include_background=True, output_transform=_binarised),  # at mask size, present targets
    }
    if metric is None:
        return ValidationMetrics({VAL_LOSS: curves.pop(VAL_LOSS)}, curves, operator.lt)
    name = f"val_{metric.name}"
    curves.pop(name, None)
    key = {name: MetricOfTable(metric, ScoreSlices(root=reader.root, size=size, metrics=[metric]))}
    return ValidationMetrics(key, curves, operator.gt if metric.better == "higher" else operator.lt)


def find_key_metric(name: object) -> table.Metric | None:
    """The table's metric of this name; None for the validation loss.

    Raises:
        ConfigError: the key metric is unknown, or measured on volumes only.
    """
    if name == VAL_LOSS:
        return None
    choices = {metric.name: metric for metric in table.metrics_for(2)}
    if isinstance(name, str) and name in choices:
        return choices[name]
    known = [VAL_LOSS, *choices]
    if name in [metric.name for metric in table.metrics_for(3)]:
        msg = f"key_metric {name!r} is measured on whole volumes, the validation on slices; known: {', '.join(known)}"
    else:
        msg = f"unknown key_metric {name!r}; {did_you_mean(str(name), known)}"
    raise ConfigError(msg)


def key_value(evaluator: Evaluator) -> float:
    """The key metric of the last validation."""
    return float(evaluator.state.metrics[evaluator.state.key_metric_name])


def has_improved(evaluator: Evaluator, best: float | None) -> bool:
    """Whether the last validation is better than ``best``, the key metric so far; NaN and infinity never are."""
    value = key_value(evaluator)
    return math.isfinite(value) and (best is None or evaluator.metric_cmp_fn(value, best))


class LossOfExamples(Metric):
    """The loss over all examples of a validation, whatever batches and processes they were computed in.

    Args:
        loss: of the masks.
    """

    def __init__(self, loss: StepLoss) -> None:
        self.loss = loss
        super().__init__(output_transform=_masks_and_labels)

    def reset(self) -> None:
        """Forget all examples."""
        self._sum = self._weight = 0.0

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Add logits ``(B, P, h, w)`` and masks ``(B, P, H, W)``."""
        for logits, target in zip(*(each.split(1) for each in output), strict=True):
            weight = float(self.loss.mask_weight(self.loss.counts(target)))
            self._sum += weight * float(self.loss(logits, target))
            self._weight += weight

    def compute(self) -> float:
        """The mean by weight; NaN without examples."""
        total, weight = sums_of_ranks(self._sum, self._weight)
        return total / weight if weight else math.nan


class MetricOfTable(Metric):
    """A 2-D metric of the table as ignite's: the mean over all targets, as ``evaluate`` reports it.

    Args:
        metric: of the table.
        scorer: computes it on the slices of a batch.
    """

    def __init__(self, metric: table.Metric, scorer: ScoreSlices) -> None:
        self.metric = metric
        self.scorer = scorer
        super().__init__()

    def reset(self) -> None:
        """Forget all scores."""
        self.scorer.scores.clear()

    def iteration_completed(self, engine: Engine) -> None:
        """Score a batch; it needs its rows, which are no part of the output."""
        self.scorer.score_batch(engine)

    def update(self, output: Any) -> None:
        """Unused: see :meth:`iteration_completed`."""

    def compute(self) -> float:
        """The mean; NaN if no case counts."""
        gathered: list[list[SliceScore]] = [self.scorer.scores]
        if idist.get_world_size() > 1:
            gathered = idist.all_gather(self.scorer.scores)  # type: ignore[assignment]
        # Targets fill the last prompts of a slice twice, and distributed samplers repeat slices.
        scores = {(score.image, score.target): score for part in gathered for score in part}
        summary = summarise_slices(scores.values(), metrics=[self.metric], bootstrap=Bootstrap(resamples=1))
        mean = summary["overall"][self.metric.name]["mean"]
        return math.nan if mean is None else float(mean)


def _masks_and_labels(output: Mapping[str, Tensor | Decoded]) -> tuple[Tensor, Tensor]:
    pred, label = output["pred"], output["label"]
    return (pred.logits if isinstance(pred, Decoded) else pred).float(), label  # type: ignore[return-value]


def _binarised(output: Mapping[str, Tensor | Decoded]) -> tuple[Tensor, Tensor]:
    pred, label = _masks_and_labels(output)
    pred = resized_logits(pred, (label.shape[-2], label.shape[-1]))
    return (pred > 0).float(), (label >= 0.5).float()
