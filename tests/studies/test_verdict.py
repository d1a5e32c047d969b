"""The verdict of a study says what its numbers say."""

from __future__ import annotations

from typing import Any

import pytest

from boltzformer_monai.studies.scores import SMALL
from boltzformer_monai.studies.verdict import verdict


def _row(mean: float, p: float | None, *, void: str = "open", group: str = SMALL, n: int = 5) -> dict[str, Any]:
    return {
        "arm": "b", "against": "f", "claim": "sampling helps", "of_paper": True, "group": group, "mean": mean,
        "sd": 0.01, "n": n, "low": mean - 0.01, "high": mean + 0.01, "p": p, "adjusted": p,
        "detectable": 0.02 if n > 1 else None, "instances": 30, "left_out": 0, "void": void, "gated": True,
        "data": {"d": {}},
    }  # fmt: skip


def _verdict(*rows: dict[str, Any], done: int = 10, failed: int = 0, seeds: int = 5) -> tuple[str, list[str]]:
    arms = {"b": {"title": "Boltzmann"}, "f": {"title": "full"}}
    experiments = {
        f"e{number}": {"title": f"E{number}", "seeds": [*range(seeds)], "data": {"d": {}}, "comparisons": [row]}
        for number, row in enumerate(rows)
    }
    runs = {"done": done, "planned": 10, "failed": failed}
    return verdict({"study": {"arms": arms}, "runs": runs, "experiments": experiments})


@pytest.mark.parametrize(
    ("rows", "first"),
    [
        ([_row(0.05, 0.001)], "The paper's order shows in all 1 comparisons."),
        ([_row(0.05, 0.2)], "The paper's order does not show: of 1 comparisons 1 not resolved."),
        ([_row(0.05, None, n=1)], "The paper's order does not show: of 1 comparisons 1 not resolved."),
        ([_row(-0.05, 0.001)], "The paper's order does not show: of 1 comparisons 1 reversed."),
        (
            [_row(-0.05, 0.001), _row(0.05, 0.001)],
            "The paper's order does not show as a whole: of 2 comparisons 1 reversed, 1 as claimed.",
        ),
        ([_row(0.05, 0.001, void="void")], "Void: attention is unused in every comparison, so nothing can be said"),
        (
            [_row(0.05, 0.001, void="void"), _row(0.05, 0.001)],
            "The paper's order does not show as a whole: of 2 comparisons 1 void, 1 as claimed.",
        ),
        ([], "There is nothing to compare yet."),
    ],
)
def test_the_first_line_is_what_the_tests_say(rows: list[dict[str, Any]], first: str) -> None:
    line, sentences = _verdict(*rows)
    assert line.startswith(first)
    assert len(sentences) == len(rows)
    assert _verdict(*rows, done=3)[0].startswith("Preliminary, 3 of 10 runs: ")


def test_what_failed_is_said() -> None:
    line, (sentence,) = _verdict(_row(0.05, 0.001, n=3), done=8, failed=2)
    assert line == "Preliminary, 8 of 10 runs, 2 failed: the paper's order shows in all 1 comparisons."
    assert ", 3 of 5 seeds, " in sentence


def test_sentences_have_numbers_with_their_n() -> None:
    (sentence,) = _verdict(_row(-0.0123, 0.04))[1]
    assert sentence == (
        "Boltzmann − full, E0, objects below 0.1 % of the image: −1.2 points of Dice (95 % −2.2 to −0.2, p 0.040, "
        "5 seeds, 30 targets in images): the reverse of what was expected."
    )
    assert "not resolved; 5 seeds could show 2.0 points." in _verdict(_row(0.01, 0.5))[1][0]
    assert "5 seeds could show > 100 points." in _verdict({**_row(0.01, 0.5), "detectable": 4.9})[1][0]
    assert "one seed says nothing of others" in _verdict(_row(0.01, None, n=1))[1][0]
    assert "void: attention unused." in _verdict(_row(0.01, 0.001, void="void"))[1][0]
    partly = _verdict(_row(0.05, 0.001, void="partly void"))[1][0]
    assert partly.endswith("sampling helps; on some of its data sets the better arm does not use attention.")
    assert _verdict(_row(0.05, 0.001, void="not measured"))[1][0].endswith("was not measured.")


def test_what_the_paper_does_not_claim_is_said_but_not_counted() -> None:
    line, sentences = _verdict(_row(0.05, 0.001), {**_row(-0.05, 0.001), "of_paper": False})
    assert line == "The paper's order shows in all 1 comparisons."
    assert len(sentences) == 2


def test_arms_that_differ_by_more_than_attention_are_not_voided() -> None:
    """Whether attention is used is no condition for one decoder to be better than another."""
    line, (sentence,) = _verdict({**_row(-0.4, 0.001, void="void"), "gated": False})
    assert line == "The paper's order does not show: of 1 comparisons 1 reversed."
    assert sentence.endswith("the reverse of what was expected; the better arm does not use attention.")


def test_a_sentence_says_what_is_left_out() -> None:
    row = _row(0.05, 0.001)
    experiment = {
        "title": "E",
        "seeds": [0, 1, 2, 3, 4],
        "data": {"d": {}, "e": {}},
        "comparisons": [{**row, "left_out": 3}],
    }
    arms, runs = {"b": {"title": "B"}, "f": {"title": "F"}}, {"done": 1, "planned": 1, "failed": 0}
    results = {"study": {"arms": arms}, "runs": runs, "experiments": {"e": experiment}}
    (sentence,) = verdict(results)[1]
    assert "mean of 1 of 2 data sets, without 3 scores of what one arm alone has scored" in sentence
    same = _row(0.0, None)
    assert "seeds without a spread say nothing of others" in _verdict({**same, "detectable": None})[1][0]


def test_small_objects_go_before_all() -> None:
    small, every = _row(0.05, 0.5), _row(0.05, 0.001, group="all")
    arms = {"b": {"title": "Boltzmann"}, "f": {"title": "full"}}
    results = {
        "study": {"arms": arms},
        "runs": {"done": 1, "planned": 1, "failed": 0},
        "experiments": {
            "e": {"title": "E", "seeds": [0, 1, 2, 3, 4], "data": {"d": {}}, "comparisons": [every, small]}
        },
    }
    line, sentences = verdict(results)
    assert "1 not resolved" in line
    assert ["objects below 0.1 %" in sentence for sentence in sentences] == [True]
