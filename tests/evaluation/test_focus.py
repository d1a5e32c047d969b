"""Where the sampling looks: shares over chance, whose images lend their V, and what is said of it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.focus import (
    FocusScore,
    LayerFocus,
    focus_lines,
    focus_table,
    layer_focus,
    partners,
    sets_table,
    summarise_focus,
    verdict,
    write_focus_csv,
)
from boltzformer_monai.evaluation.metrics import metrics_for
from boltzformer_monai.evaluation.report import write_report
from boltzformer_monai.evaluation.summary import SliceScore, summarise_slices

TARGET = np.zeros((4, 4), bool)
TARGET[0, :2] = True  # 2 of 16 patches


def sets(*chosen: list[tuple[int, int]]) -> np.ndarray:
    drawn = np.zeros((len(chosen), 4, 4), bool)
    for one, places in zip(drawn, chosen, strict=True):
        for place in places:
            one[place] = True
    return drawn


def test_shares_by_hand():
    found = layer_focus(sets([(0, 0), (3, 3)], [(2, 2), (2, 3), (0, 0), (0, 1)]), TARGET)
    assert found == LayerFocus(on_target=0.5, by_chance=2 / 16, size=3 / 16, empty=0.0)
    assert found.focus == 4.0


def test_an_empty_set_attends_to_everything():
    found = layer_focus(sets([(0, 0)], []), TARGET)
    assert found == LayerFocus(on_target=(1 + 2 / 16) / 2, by_chance=2 / 16, size=17 / 32, empty=0.5)
    assert layer_focus(sets([], []), TARGET).focus == 1.0


def test_sets_drawn_at_random_are_at_chance():
    rng = np.random.default_rng(0)
    truth = rng.random((12, 12)) < 0.05
    assert layer_focus(rng.random((4000, 3, 12, 12)) < 0.1, truth).focus == pytest.approx(1, abs=0.03)


def test_sets_per_head_count_like_queries():
    drawn = sets([(0, 0)], [(3, 3)], [(0, 1)], [(1, 1)])
    assert layer_focus(drawn.reshape(2, 2, 4, 4), TARGET) == layer_focus(drawn, TARGET)


def test_what_does_not_fit_is_refused():
    for target in (TARGET[:2], np.zeros((4, 4), bool)):
        with pytest.raises(ConfigError, match="need a target on it"):
            layer_focus(sets([(0, 0)]), target)


def test_v_comes_from_another_patient():
    patients = ["a"] * 3 + ["b"] * 5 + ["c"] * 2
    found = partners(patients)
    assert all(patients[other] != patient for other, patient in zip(found, patients, strict=True))
    assert found[0] == 5
    assert partners(["a", "a", "a"]) == [1, 2, 0]
    assert partners(["a"]) == [None]
    assert partners([]) == []


def score(image: str, *, focus: float = 4.0, patient: str = "p", area: float = 0.001, swapped: float | None = 0.2,
          target: str = "nodule", layers: int = 2) -> FocusScore:  # fmt: skip
    of_layer = LayerFocus(on_target=0.1 * focus, by_chance=0.1, size=0.05, empty=0.25)
    return FocusScore(image, "v", patient, target, area, (of_layer,) * layers, 0.5, swapped)


def test_every_slice_counts_the_same():
    summary = summarise_focus([score("1", focus=2), score("2", focus=6), score("3", focus=1, target="liver", area=0.2)])
    nodule = summary["by_target"]["nodule"]
    assert len(nodule["layers"]) == 2
    assert nodule["layers"][1]["focus"]["mean"] == pytest.approx(4)
    assert nodule["layers"][1]["focus"]["cases"] == 2
    assert nodule["layers"][0]["size"]["mean"] == pytest.approx(0.05)
    assert summary["overall"]["layers"][0]["focus"]["mean"] == pytest.approx(3)
    assert summary["small"]["layers"][0]["focus"]["mean"] == pytest.approx(4)
    assert focus_lines(summary) == {"liver": pytest.approx([1, 1]), "nodule": pytest.approx([4, 4])}


@pytest.mark.parametrize(
    ("swapped", "used", "words"),
    [
        (0.2, True, "n = 2, 2 patients) lose 0.300 Dice with another slice's visual features: attention is used."),
        (0.45, False, "less than 0.1, so attention is unused."),
        (None, None, "No small targets"),
    ],
)
def test_the_gate(swapped: float | None, used: bool | None, words: str):
    large = score("3", target="liver", area=0.2, swapped=swapped)
    cases = [score("1", swapped=swapped), score("2", swapped=swapped, patient="q")] if swapped is not None else []
    summary = summarise_focus([*cases, large])
    assert summary["gate"] == {"least": 0.1, "used": used}
    if swapped is not None:
        assert summary["small"]["drop"]["mean"] == pytest.approx(0.5 - swapped)
    assert words in verdict(summary)


def test_tables():
    summary = summarise_focus([score("1"), score("2", target="liver", area=0.2, swapped=None)])
    headings, rows = focus_table(summary)
    assert headings == ["target", "n (slices)", "Dice", "with another V", "layer 1", "layer 2"]
    assert rows == [
        ["liver", "1", "0.500", "–", "4.0", "4.0"],
        ["nodule", "1", "0.500", "0.200", "4.0", "4.0"],
        ["below 1 % of the slice", "1", "0.500", "0.200", "4.0", "4.0"],
        ["all", "2", "0.500", "0.200", "4.0", "4.0"],
    ]
    assert sets_table(summary)[1] == [["attended patches", "5.0 %", "5.0 %"], ["sets drawn empty", "25.0 %", "25.0 %"]]


@pytest.mark.parametrize("layers", [2, 0])  # 0: a decoder without attention sets
def test_the_page_shows_it(tmp_path: Path, layers: int):
    values = {metric.name: None for metric in metrics_for(2)}
    slices = summarise_slices([SliceScore("1", "v", "p", "nodule", "nodule", 0.1, 5, 5, 5, values)])
    focus = summarise_focus([score("1", layers=layers), score("2", layers=layers)])
    page = write_report(tmp_path / "report.html", title="E", metrics={"slices": slices, "focus": focus}).read_text()
    assert "Where the sampling looks" in page
    assert "attention is used" in page
    assert ("layer 2" in page) == ("<img" in page) == (layers == 2)


def test_nothing_measured(tmp_path: Path):
    summary = summarise_focus([])
    assert summary["by_target"] == {}
    assert summary["overall"]["dice"]["cases"] == 0
    assert focus_table(summary)[1][0][0] == "below 1 % of the slice"
    assert write_focus_csv([], tmp_path / "focus.csv").read_text().count("\n") == 1


def test_the_table_of_slices(tmp_path: Path):
    write_focus_csv([score("=1"), score("2", swapped=None)], tmp_path / "focus.csv")
    with (tmp_path / "focus.csv").open(encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["image"], first["target"], first["dice"], first["swapped_dice"]) == ("'=1", "nodule", "0.5", "0.2")
    assert float(first["focus_2"]) == pytest.approx(4)
    assert float(first["empty_1"]) == 0.25
    assert second["swapped_dice"] == ""
