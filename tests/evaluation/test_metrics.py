"""The table of metrics: what may stand in it, and what `compute` may return."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.evaluation.metrics import METRICS, Metric, measure, metrics_for, register_metric

PAIR = MaskPair(prediction=np.ones((4, 5), bool), truth=np.ones((4, 5), bool), spacing=(1.0, 2.0))


@pytest.fixture
def table() -> Iterator[None]:
    """The table as it is now again afterwards."""
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (None, None),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (torch.tensor([[0.25]]), 0.25),
        (float("nan"), None),
        (float("inf"), None),
        ((3, 4), (3.0, 4.0)),
        ((0, 0), None),
    ],
)
def test_what_a_metric_may_return(result: Any, value: Any) -> None:
    assert Metric(name="extra", compute=lambda masks: result).of(PAIR) == value


@pytest.mark.parametrize("result", ["much", (1,), (1, 2, 3), [0.5, 0.5], np.zeros(3)])
def test_anything_else_is_named(result: Any) -> None:
    with pytest.raises(ConfigError, match="'extra' must return a number"):
        Metric(name="extra", compute=lambda masks: result).of(PAIR)


def test_a_metric_that_fails_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"'extra' fails in test_metrics\.py:\d+ \(ZeroDivisionError: .*\)"):
        Metric(name="extra", compute=lambda masks: 1 / 0).of(PAIR)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "95 % distance"}, "needs a name"),
        ({"compute": 0.5}, "function"),
        ({"better": "more"}, "higher or lower"),
        ({"average": "mean"}, "targets or cases"),
        ({"dimensions": (4,)}, "dimensions"),
        ({"dimensions": ()}, "dimensions"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Metric(**{"name": "extra", "compute": lambda masks: 1.0, **changes})


@pytest.mark.usefixtures("table")
def test_a_registered_metric_is_measured_in_its_dimensions_last() -> None:
    metric = register_metric(Metric(name="pixels", compute=lambda masks: masks.truth_size, dimensions=(2,)))
    register_metric(metric)
    main = [each for each in metrics_for(2) if not each.section]
    assert [each.name for each in main] == ["dice", "missed", "false_positive_rate", "pixels"]
    assert measure(PAIR, main) == {"dice": 1.0, "missed": 0.0, "false_positive_rate": None, "pixels": 20.0}
    assert metrics_for(2)[-1] is metric
    assert "pixels" not in {each.name for each in metrics_for(3)}


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("name", ["dice", "target", "present"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="taken"):
        register_metric(Metric(name=name, compute=lambda masks: 1.0))
