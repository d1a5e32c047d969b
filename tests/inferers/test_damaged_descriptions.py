"""A checkpoint whose description was altered segments as any other, or is refused in one line."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.inferers import PromptWindows, RunSettings, VolumeSegmenter
from tests.sizes import count

DAMAGED = count(60, thorough=5000)
_VALUES = [
    None, True, 0, -1, 1.5, 10**400, float("nan"), float("inf"), "", "oblique", "PET", "9" * 3000, "two\nlines", b"CT",
    [], [1], [[]], [{}], {}, {"kind": "hu"}, {1: 2}, {"high": 2, "low": 0.1}, torch.zeros(2),
]  # fmt: skip


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Keys that lead to every value within dictionaries and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place] * bool(place) + [each for key, part in inner for each in _places(part, (*place, key))]


def _altered(content: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    description = copy.deepcopy(content["description"])
    *way, last = place
    holder = description
    for key in way:
        holder = holder[key]
    if value is KeyError:
        del holder[last]
    else:
        holder[last] = value
    return {**content, "description": description}


def _use(path: Path) -> None:
    """What inference and the label server read of a description."""
    segmenter = VolumeSegmenter.from_checkpoint(path)
    data = segmenter.description.data
    inferer = segmenter.inferer(RunSettings(prompts=["left kidney", "stone in chest CT"]))
    segmenter.record(inferer.settings)
    for modality in ("CT", "MR"):
        inferer.windows.modality_caveats("unknown", modality, inferer.readings)
        inferer.windows.group(inferer.readings, modality)
    inferer.windows.prompt_caveats(inferer.readings)
    sorted(data.get("learned", {}).get("names", []))


@pytest.fixture
def content(checkpoint: Path) -> dict[str, Any]:
    content = torch.load(checkpoint, weights_only=True)
    learned = {"names": ["left kidney"], "labels": ["ab12"]}
    content["description"]["data"] |= {"presence": {"high": 0.6, "low": 0.2}, "learned": learned}
    return content  # type: ignore[no-any-return]


def test_any_value_in_place_of_another_is_used_or_refused(content: dict[str, Any], tmp_path: Path) -> None:
    path, draw = tmp_path / "model.pt", random.Random(0)
    torch.save(content, path)
    _use(path)
    every = _places(content["description"])
    of_data = [place for place in every if place[0] == "data"]
    refusals = []
    for number in range(DAMAGED):
        place, value = draw.choice(every if number % 4 == 0 else of_data), draw.choice([KeyError, *_VALUES])
        torch.save(_altered(content, place, value), path)
        try:
            _use(path)
        except CheckpointError as error:
            refusals.append(str(error))
        except Exception as error:
            raise AssertionError((place, value)) from error
    assert len(refusals) > DAMAGED / 2
    assert [line for line in refusals if "\n" in line or len(line) > 600] == []


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("data", "targets"), [1], r"targets must be a list, each a mapping.*, got \[1\]\); copy it again"),
        (("data", "targets", 1, "modality"), "PET", "modality 'PET' is another than CT and MR"),
        (("data", "targets", 1, "window"), [40, 400], r"window of targets\[1\] must be a mapping"),
        (("data", "plane"), "oblique", "plane must be one of axial, coronal, sagittal, got 'oblique'"),
        (("data", "learned"), ["liver"], "learned must be a mapping"),
        (("data", "protocol"), ["biomedparse"], "protocol must be a text or nothing"),
        (("data", "protocol_settings"), ["suppress"], "protocol_settings must be a mapping"),
        (("data", "protocol_settings"), {"suppress": [1]}, "protocol_settings must be a mapping"),
    ],
)
def test_the_line_names_file_and_field(
    content: dict[str, Any], tmp_path: Path, place: tuple[Any, ...], value: Any, words: str
) -> None:
    torch.save(_altered(content, place, value), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=rf"model\.pt: its description cannot be used \({words}"):
        VolumeSegmenter.from_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("entry", [{"window": {"kind": "hu", "level": 10**400, "width": 1}}, {"target": "_"}])
def test_targets_that_mean_nothing_are_refused_before_any_scan(entry: dict[str, Any]) -> None:
    sound = {"target": "liver", "modality": "CT", "site": "", "window": {"kind": "percentiles", "lower": 1, "upper": 9}}
    PromptWindows({"targets": [sound]})
    with pytest.raises(CheckpointError, match="training targets cannot be used .*; copy it again"):
        PromptWindows({"targets": [{**sound, **entry}]})
