"""How many spoiled inputs the tests of this folder examined; collected after those that make them."""

from __future__ import annotations

import pytest

from tests.robustness.explore import MADE

WANTED = {
    "test_corruption": 1200,
    "test_corruption_annotations": 600,
    "test_corruption_dicom": 800,
    "test_corruption_texts": 300,
}
"""The least that each module makes."""


def test_two_thousand_inputs_are_made(request: pytest.FixtureRequest) -> None:
    made = {name: MADE[f"tests.robustness.{name}"] for name in WANTED}
    if not _ran_all(request):
        pytest.skip(f"only a part of the inputs is made in this run: {made}")
    assert all(made[name] >= least for name, least in WANTED.items()), made
    # The scans alone, as the annotations come on top.
    assert made["test_corruption"] + made["test_corruption_dicom"] >= 2000


def _ran_all(request: pytest.FixtureRequest) -> bool:
    """Tell whether this process was to run all tests that make inputs: nothing chosen, nothing left to others."""
    config, modules = request.config, {item.path.stem for item in request.session.items}
    chosen = any(config.getoption(name, None) for name in ("keyword", "markexpr", "lf", "stepwise"))
    makers = any("test_corruption" in text for text in config.getoption("deselect", None) or [])
    parts = any("::" in argument for argument in config.args)
    return set(WANTED) <= modules and not (chosen or makers or parts or hasattr(config, "workerinput"))
