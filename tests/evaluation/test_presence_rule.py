"""The presence rule against sequences worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.evaluation.presence_rule import PresenceEvidence, PresenceRule, calibrate, presence_rule

RULE = PresenceRule(high=0.8, low=0.4)


def _kept(*values: float) -> list[int]:
    return np.flatnonzero(RULE.kept(np.array(values))).tolist()


def test_plausible_slices_are_kept_where_one_is_certain() -> None:
    assert _kept(0.4, 0.9, 0.5, 0.1, 0.5, 0.6, 0.3, 0.8) == [0, 1, 2, 4, 5, 7]
    assert _kept(0.9, 0.9) == [0, 1]
    assert _kept(0.1, 0.5, 0.79, 0.5) == []
    assert _kept(0.39, 0.8, 0.39) == [1]
    assert _kept(0.5, 0.1, 0.9) == [0, 2]  # a part for itself need not be certain
    assert _kept() == []


def test_nan_is_not_kept_and_a_stack_is_refused() -> None:
    assert _kept(float("nan"), 0.9) == [1]
    with pytest.raises(ConfigError, match="one sequence"):
        RULE.kept(np.zeros((2, 3)))


@pytest.mark.parametrize(("high", "low"), [(0.4, 0.5), (1.0, 0.5), (0.5, 0.0), (float("nan"), 0.5)])
def test_impossible_thresholds_are_refused(high: float, low: float) -> None:
    with pytest.raises(ConfigError, match="low <= high"):
        PresenceRule(high=high, low=low)


def test_from_and_to_a_description() -> None:
    assert PresenceRule.of({"plane": "axial"}) is None
    assert PresenceRule.of({"presence": RULE.as_dict()}) == RULE
    for damaged in ({"high": 0.5}, {"high": "x", "low": 0.1}, {"high": 0.1, "low": 0.5}, 0.5):
        with pytest.raises(CheckpointError, match="presence thresholds") as caught:
            PresenceRule.of({"presence": damaged})
        assert "\n" not in str(caught.value)


def test_which_rule_is_used() -> None:
    data = {"presence": RULE.as_dict()}
    assert presence_rule(data) == presence_rule(data, use="True") == RULE
    assert presence_rule(data, use=False) is None
    assert presence_rule(data, use="false") is None
    assert presence_rule({}) is None
    with pytest.raises(ConfigError, match="--presence"):
        presence_rule(data, use="maybe")


def _sequence(values: list[float], shown: str) -> PresenceEvidence:
    """``x``: shown and met by a mask, ``o``: shown and missed, ``.``: not shown."""
    return PresenceEvidence(
        np.array(values),
        np.array([letter in "xo" for letter in shown]),
        np.array([letter == "x" for letter in shown]),
    )


def _between(absent: float, present: float) -> float:
    """A third of the way in log-odds."""
    first, last = (np.log(value / (1 - value)) for value in (absent, present))
    return float(1 / (1 + np.exp(-(first + (last - first) / 3))))


def test_high_lies_between_absences_and_objects_and_low_just_below_objects() -> None:
    rule = calibrate([_sequence([0.05, 0.2, 0.9], ".xx"), _sequence([0.1, 0.05], "..")])
    assert rule.high == pytest.approx(_between(0.1, 0.9))
    assert 0.19 < rule.low < 0.2  # a slice of that probability is kept, even rounded
    weak = calibrate([_sequence([0.2, 0.9], "xx"), _sequence([0.6], ".")])
    assert weak.high == pytest.approx(_between(0.6, 0.9))
    assert 0.19 < weak.low < 0.2


def test_only_slices_that_a_mask_meets_count_as_present() -> None:
    rule = calibrate([_sequence([0.99, 0.01, 0.6], ".ox"), _sequence([0.4], ".")])
    assert rule.high == rule.low == pytest.approx(_between(0.4, 0.6))
    missed = calibrate([_sequence([0.01], "o"), _sequence([0.9], "x"), _sequence([0.1], ".")])
    assert missed.low > 0.1


def test_slices_away_from_the_object_speak_for_its_absence_and_neighbours_do_not() -> None:
    assert calibrate([_sequence([0.1, 0.05, 0.7, 0.9], "...x")]).high == pytest.approx(_between(0.1, 0.9))


def test_objects_are_worth_more_than_absences() -> None:
    present = [_sequence([value], "x") for value in (0.3, 0.8, 0.9)]
    absent = [_sequence([value], ".") for value in (0.2, 0.4, 0.5, 0.6)]
    assert 0.28 < calibrate([*present, *absent]).high < 0.3
    # One of each is given up.
    assert calibrate([*present, *absent], lost=0.34).high == pytest.approx(_between(0.5, 0.8))


def test_all_ends_well_on_a_synthetic_split() -> None:
    rng = np.random.default_rng(1)
    sequences = []
    for index in range(60):
        truth = np.zeros(40, bool)
        if index % 3:
            truth[10:25] = True
        odds = rng.normal(-4, 0.7, 40) + truth * rng.normal(7, 0.7, 40)
        sequences.append(PresenceEvidence(1 / (1 + np.exp(-odds)), truth, truth))
    rule = calibrate(sequences)
    kept = [rule.kept(values) for values, _, _ in sequences]
    absent = [keep.any() for keep, (_, truth, _) in zip(kept, sequences, strict=True) if not truth.any()]
    shown = np.concatenate([keep[truth] for keep, (_, truth, _) in zip(kept, sequences, strict=True)])
    assert len(absent) == 20
    assert not any(absent)
    assert shown.mean() >= 0.98


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_saturated_probabilities_still_give_a_rule(certain: float) -> None:
    rule = calibrate([_sequence([certain, certain], "x."), _sequence([certain], ".")])
    assert 0 < rule.low <= rule.high < 1


def test_one_kind_of_volume_only() -> None:
    present_only = calibrate([_sequence([0.3, 0.2], "xx")])
    assert 0.28 < present_only.high < 0.3
    assert 0.19 < present_only.low < 0.2
    assert calibrate([_sequence([0.9, 0.9], "xx")]).high == pytest.approx(_between(0.5, 0.9))
    absent_only = calibrate([_sequence([0.7], ".")])
    assert absent_only.high > 0.7
    assert not absent_only.kept(np.array([0.7])).any()


def test_nothing_to_calibrate_on() -> None:
    for nothing in ([], [_sequence([0.9], "o")]):
        with pytest.raises(ConfigError, match="cannot be calibrated"):
            calibrate(nothing)
    with pytest.raises(ConfigError, match="one length"):
        calibrate([PresenceEvidence(np.zeros(2), np.zeros(3, bool), np.zeros(3, bool))])
    with pytest.raises(ConfigError, match="share"):
        calibrate([_sequence([0.3], "x")], lost=2)
