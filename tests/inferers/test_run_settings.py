"""Settings are validated and normalised once, and their record decides which results are alike."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from boltzformer_monai.data.windows import NAMED_WINDOWS, MRPercentiles, Window
from boltzformer_monai.errors import ConfigError, PromptError
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.run_settings import ModelRecord, RunSettings

MODEL = ModelRecord(sha256="ab", plane="coronal")


def test_values_are_normalised_and_cannot_be_changed() -> None:
    settings = RunSettings(prompts=["liver"], planes="axial", modality="ct", presence="False", window=[40, 400.0])
    assert (settings.prompts, settings.planes, settings.modality) == (("liver",), ("axial",), "CT")
    assert settings.presence is False
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("window", "scale", "recorded"),
    [
        (None, None, None),
        ("lung", NAMED_WINDOWS["lung"], ["lung"]),
        (["lung"], NAMED_WINDOWS["lung"], ["lung"]),
        (["40/400"], Window(40, 400), ["40/400"]),
        (["40", "400"], Window(40, 400), ["40", "400"]),
        ((40.0, 400.0), Window(40, 400), ["40.0", "400.0"]),
        ({"kind": "hu", "level": 40, "width": 400}, Window(40, 400), {"kind": "hu", "level": 40.0, "width": 400.0}),
        (MRPercentiles(1, 99), MRPercentiles(1, 99), {"kind": "percentiles", "lower": 1.0, "upper": 99.0}),
    ],
    ids=str,
)
def test_a_window_is_recorded_as_it_was_given(window: Any, scale: Any, recorded: Any) -> None:
    settings = RunSettings(prompts=["liver"], window=window)
    assert settings.grey_scale == scale
    assert settings.record(MODEL)["window"] == recorded


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0}, {"batch_size": True}, {"threshold": 0.0}, {"threshold": 1.5}, {"threshold": "0.5"},
        {"threshold": float("nan")}, {"repeats": 0}, {"repeats": 2.0}, {"seed": -1}, {"in_plane": "crop"},
        {"tta": 0}, {"tta": 6}, {"tta": 2, "in_plane": "tiles"},
        {"planes": "oblique"}, {"planes": ()}, {"planes": ("axial", "axial")}, {"planes": [["axial"]]}, {"planes": 1},
        {"window": "lunge"}, {"window": [1, 2, 3]}, {"modality": "PET"}, {"presence": "maybe"}, {"literal": 1},
        {"arbitration": "best"}, {"ending": ".png"}, {"ending": ".dcm", "masks": True},
        {"ending": ".rtstruct.dcm", "masks": True}, {"arbitration": ["x" * 10**6]},
        {"window": 5}, {"window": True}, {"window": {1, 2}},
        {"window": "x" * 10**5}, {"modality": "x" * 10**5},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_values_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        RunSettings(prompts=["liver"], **change)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("prompts", [[], "liver", [""], [1], ["Liver", " liver"]], ids=str)
def test_prompts_that_cannot_be_used(prompts: Any) -> None:
    with pytest.raises(PromptError):
        RunSettings(prompts=prompts)


def test_an_unknown_name_brings_the_nearest_known_one() -> None:
    assert RunSettings.of({"prompts": ["liver"], "seed": 3}) == RunSettings(prompts=("liver",), seed=3)
    with pytest.raises(ConfigError, match="unknown setting 'threshhold'; did you mean 'threshold'"):
        RunSettings.of({"prompts": ["liver"], "threshhold": 0.4})


def test_the_record_holds_every_setting_but_the_batch_size_and_resolves_what_the_model_decides() -> None:
    settings = RunSettings(prompts=["liver"])
    record = settings.record(dataclasses.replace(MODEL, presence=PresenceRule(high=0.5, low=0.2)))
    names = {field.name for field in dataclasses.fields(RunSettings)} - {"batch_size"}
    assert set(record) == names | {"model", "precision", "device", "package"}
    assert (record["planes"], record["presence"]) == (["coronal"], {"high": 0.5, "low": 0.2})
    assert json.loads(json.dumps(record)) == record
    assert dataclasses.replace(settings, batch_size=1).record(MODEL) == settings.record(MODEL)
    assert dataclasses.replace(settings, planes=("coronal",)).record(MODEL) == settings.record(MODEL)
