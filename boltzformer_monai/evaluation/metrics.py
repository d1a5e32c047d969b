"""The registry of metrics, from which ``metrics.json``, the tables and the report are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.components import IOU_THRESHOLDS, Components
from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.registry import load_entry, place_of, providers, reason_of, require_one, use_plugins

__all__ = ["METRICS", "Metric", "Value", "measure", "metrics_for", "register_metric"]

Value = float | tuple[float, float] | None
"""A number; ``(part, whole)`` of a ratio of sums, such as found lesions of all lesions; or no value."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric and how it is averaged and displayed.

    Attributes:
        name: key in ``metrics.json`` and column of ``scores.csv``; a Python identifier.
        compute: takes a :class:`MaskPair`; returns a number, ``(part, whole)``, or None to skip the case. NaN and
            infinity, MONAI's values for empty masks, count as None.
        dimensions: 2 for slices, 3 for whole volumes.
        unit: ``""`` for a plain number, ``"%"`` for a share from 0 to 1, ``"mm"``, ``"ml"``, …
        better: which values are.
        title: heading in tables, the name by default.
        description: one sentence for the report.
        average: equal weights of ``"targets"`` or of ``"cases"`` (slices or volumes) in the overall mean.
        section: heading of the table in the report that it stands in; ``""`` for the main one, which is also printed.

    Raises:
        ConfigError: a setting is invalid.
    """

    name: str
    compute: Callable[[MaskPair], Any]
    dimensions: tuple[int, ...] = (2, 3)
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    title: str = ""
    description: str = ""
    average: Literal["targets", "cases"] = "targets"
    section: str = ""

    def __post_init__(self) -> None:
        choices = {"better": ("higher", "lower"), "average": ("targets", "cases")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                msg = f"metric {self.name!r}: {field} must be {' or '.join(allowed)}, got {getattr(self, field)!r}"
                raise ConfigError(msg)
        if not self.name.isidentifier() or not callable(self.compute):
            raise ConfigError(f"metric {self.name!r} needs a name like 'surface_dice' and a function compute(masks)")
        if not self.dimensions or not set(self.dimensions) <= {2, 3}:
            raise ConfigError(f"metric {self.name!r}: dimensions must be (2,), (3,) or (2, 3), got {self.dimensions!r}")

    def of(self, masks: MaskPair) -> Value:
        """Value of one case.

        Raises:
            ConfigError: `compute` returns another type, or a guest's fails.
        """
        try:
            result = self.compute(masks)
        except Exception as error:
            if self.compute.__module__ == __name__:
                raise
            msg = f"metric {self.name!r} fails in {place_of(error)} ({reason_of(error)}); mend its compute"
            raise ConfigError(msg) from error
        try:
            if isinstance(result, tuple):
                part, whole = (float(number) for number in result)
                return (part, whole) if math.isfinite(part) and whole > 0 else None
            value = None if result is None else float(result)
        except (TypeError, ValueError) as error:
            msg = f"metric {self.name!r} must return a number, (part, whole) or None, got {result!r} ({error})"
            raise ConfigError(msg) from None
        return value if value is None or math.isfinite(value) else None


METRICS: dict[tuple[int, str], Metric] = {}
"""The registered metrics by dimension and name, in the order of tables."""


def register_metric(metric: Metric) -> Metric:
    """Register a metric; the same one may be registered again.

    Raises:
        ConfigError: the name is taken by another metric, or by a column of the tables.
    """
    for dimension in metric.dimensions:
        if METRICS.get((dimension, metric.name), metric) != metric or metric.name in RESERVED:
            msg = f"the name {metric.name!r} is taken in the table of {dimension}-D metrics; choose another name"
            raise ConfigError(msg)
    METRICS.update({(dimension, metric.name): metric for dimension in metric.dimensions})
    return metric


RESERVED = frozenset(
    ("image", "volume", "patient", "target", "prompt", "area_fraction", "truth", "predicted", "intersection",
     "presence", "confidence", "diameter_mm", "truth_ml", "predicted_ml", "present", "absent", "without_prediction")
)  # fmt: skip
"""Other names in the tables and ``metrics.json``."""


def metrics_for(dimension: int) -> list[Metric]:
    """The metrics of slices (2) or volumes (3), then those of plugins and installed packages.

    An entry point of the group ``boltzformer_monai.metrics`` is a `Metric`, or a module that registers some.

    Raises:
        ConfigError: one of them cannot be imported, or two distributions offer one name.
    """
    use_plugins()
    for name, offers in providers("boltzformer_monai.metrics").items():
        require_one(f"the metric {name!r}", offers)
        for entry in offers.values():
            offered = load_entry(entry, f"the metric {name!r}")
            if isinstance(offered, Metric):
                register_metric(offered)
            elif not isinstance(offered, ModuleType):
                msg = f"the metric {name!r}: {entry.value} must be a Metric, or a module that registers some"
                raise ConfigError(msg)
    return [metric for (of, _), metric in METRICS.items() if of == dimension]


def measure(masks: MaskPair, metrics: Iterable[Metric]) -> dict[str, Value]:
    """The values of one case by the metrics' names."""
    return {metric.name: metric.of(masks) for metric in metrics}


def _if_present(compute: Callable[[MaskPair], Any]) -> Callable[[MaskPair], Any]:
    return lambda masks: compute(masks) if masks.present else None


def _if_absent(compute: Callable[[MaskPair], Any]) -> Callable[[MaskPair], Any]:
    return lambda masks: None if masks.present else compute(masks)


for _metric in (
    Metric(
        name="dice",
        compute=_if_present(lambda masks: masks.dice),
        title="Dice",
        description="Overlap where the target is present; 0 without a prediction.",
    ),
    Metric(
        name="surface_dice",
        compute=_if_present(lambda masks: masks.surface_dice or 0.0),
        dimensions=(3,),
        title="surface Dice",
        description="Share of both surfaces within the tolerance of each other; 0 without a prediction.",
    ),
    Metric(
        name="hausdorff95_mm",
        compute=lambda masks: masks.hausdorff95_mm,
        dimensions=(3,),
        unit="mm",
        better="lower",
        title="95 % Hausdorff",
        description="The larger 95 % quantile of the distances between the surfaces; none without a prediction.",
    ),
    Metric(
        name="missed",
        compute=_if_present(lambda masks: masks.intersection == 0),
        unit="%",
        better="lower",
        average="cases",
        description="Share of the cases with the target in which not one of its pixels or voxels is predicted.",
    ),
    Metric(
        name="lesion_detection_rate",
        compute=_if_present(lambda masks: masks.lesions),
        dimensions=(3,),
        unit="%",
        average="cases",
        title="lesions found",
        description="Share of the connected components of the truth that the prediction touches.",
    ),
    Metric(
        name="false_components",
        compute=lambda masks: masks.false_components,
        dimensions=(3,),
        better="lower",
        average="cases",
        title="false components per volume",
        description="Connected components of the prediction that touch no truth.",
    ),
    Metric(
        name="false_positive_rate",
        compute=_if_absent(lambda masks: masks.predicted),
        unit="%",
        better="lower",
        average="cases",
        title="false-positive rate",
        description="Share of the cases without the target that have a prediction.",
    ),
    Metric(
        name="false_positive_ml",
        compute=_if_absent(lambda masks: masks.predicted_ml),
        dimensions=(3,),
        unit="ml",
        better="lower",
        average="cases",
        title="false positive",
        description="Predicted volume where the target is absent.",
    ),
):
    register_metric(_metric)


def _of_components(compute: Callable[[Components, float], Any], threshold: float) -> Callable[[MaskPair], Any]:
    return lambda masks: compute(masks.components, threshold)


_DETECTION: tuple[tuple[str, Callable[[Components, float], Any], str, str], ...] = (
    ("precision", Components.precision, "precision", "Share of the predicted components that have a partner."),
    ("recall", Components.recall, "recall", "Share of the components of the truth that have a partner."),
    ("f1", Components.f1, "F1 (RQ)", "Share of the components of both that have a partner: RQ of panoptic quality."),
    ("sq", Components.segmentation_quality, "SQ", "Mean IoU of the partners: segmentation quality."),
    ("pq", Components.panoptic_quality, "PQ", "Panoptic quality, SQ times RQ."),
)
for _suffix, _threshold in IOU_THRESHOLDS.items():
    for _name, _compute, _title, _description in _DETECTION:
        register_metric(
            Metric(
                name=f"{_name}_{_suffix}",
                compute=_of_components(_compute, _threshold),
                unit="%",
                average="cases",
                title=_title,
                description=_description,
                section=f"Components with a partner of IoU above {_threshold:g}",
            )
        )
