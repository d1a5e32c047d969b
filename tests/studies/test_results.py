"""What is collected of a study's runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.storage import write_json
from boltzformer_monai.studies.plan import Study, runs_of
from boltzformer_monai.studies.results import collect
from boltzformer_monai.studies.runner import RESULT, run_folder
from boltzformer_monai.studies.scores import ScoreRow, write_rows
from tests.studies.cases import content


def _collected(folder: Path, **changes: Any) -> dict[str, Any]:
    """Of runs in which attention is not used, and Boltzmann sampling is better."""
    study = Study.model_validate(content(**changes))
    runs = [*runs_of(study, "main", {"slices": ""})]
    for run in runs:
        place = run_folder(folder, run)
        place.mkdir(parents=True, exist_ok=True)
        row = ScoreRow(
            arm=run.arm, seed=run.seed, fold=None, data="slices", patient="p", image="i", target="t", area_share=0.01,
            diameter_mm=None, dice=0.6 if run.arm == "boltzmann" else 0.5, missed=False, confidence=None,
        )  # fmt: skip
        write_rows([row], place / "scores.csv")
        facts = {"gate": {"dice": 0.5, "swapped": 0.5, "instances": 1}}
        write_json(place / RESULT, {"facts": facts, "made": {"device": "cpu"}})
    return collect(study, folder, {"main": runs})[0]["experiments"]["main"]


@pytest.mark.parametrize(
    ("network", "gated"), [({"policy": "full", "queries": 3}, True), ({"backbone": "resnet18"}, False)]
)
def test_only_arms_that_differ_by_their_decoder_are_voided(
    tmp_path: Path, network: dict[str, Any], gated: bool
) -> None:
    (row,) = _collected(tmp_path, arms__full__network=network)["comparisons"]
    assert (row["void"], row["gated"]) == ("void", gated)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"facts": 3, "made": {}}'])
def test_a_damaged_result_is_one_line(tmp_path: Path, text: str) -> None:
    study = Study.model_validate(content())
    runs = [*runs_of(study, "main", {"slices": ""})]
    place = run_folder(tmp_path, runs[0])
    place.mkdir(parents=True)
    (place / RESULT).write_text(text)
    with pytest.raises(ConfigError, match="result.json: cannot be read .*; remove it, and start the study again"):
        collect(study, tmp_path, {"main": runs})
