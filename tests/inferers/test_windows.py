from __future__ import annotations

import pytest

from boltzformer_monai.data.windows import NAMED_WINDOWS, GreyScale, MRPercentiles
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers import PromptWindows

ABDOMEN, CHEST = NAMED_WINDOWS["abdomen"], NAMED_WINDOWS["chest"]
DATA = {
    "targets": [
        {"target": "liver", "modality": "CT", "site": "abdomen", "window": ABDOMEN.to_dict()},
        {"target": "inferior vena cava", "modality": "CT", "site": "abdomen", "window": ABDOMEN.to_dict()},
        {"target": "aorta", "modality": "CT", "site": "abdomen", "window": ABDOMEN.to_dict()},
        {"target": "aorta", "modality": "CT", "site": "chest", "window": CHEST.to_dict()},
        {"target": "lung nodule", "modality": "CT", "site": "chest", "window": CHEST.to_dict()},
    ]
}


def _groups(windows: PromptWindows, prompts: list[str], modality: str) -> list[tuple[GreyScale, list[int]]]:
    return windows.group(windows.read(prompts), modality)


def test_prompts_are_grouped_by_the_window_of_their_target() -> None:
    groups = _groups(PromptWindows(DATA), ["liver", "lung nodule in chest CT", "the LIVER in abdominal CT"], "CT")
    assert groups == [(ABDOMEN, [0, 2]), (CHEST, [1])]


def test_a_synonym_finds_its_target() -> None:
    reordered = {"targets": DATA["targets"][::-1]}
    assert _groups(PromptWindows(reordered), ["postcava"], "CT") == [(ABDOMEN, [0])]


def test_of_one_target_at_two_sites_the_prompt_may_name_one() -> None:
    groups = _groups(PromptWindows(DATA), ["aorta", "aorta in chest CT", "aorta in abdominal CT"], "CT")
    assert groups == [(ABDOMEN, [0, 2]), (CHEST, [1])]


def test_a_spelling_has_the_window_of_its_target_and_no_part_of_a_name_decides() -> None:
    assert _groups(PromptWindows(DATA), ["pulmonary nodules", "Lung nodules"], "CT") == [(CHEST, [0, 1])]
    data = {"targets": [*DATA["targets"], {**DATA["targets"][4], "target": "liver lesion"}]}  # in the chest window
    assert _groups(PromptWindows(data), ["hepatic lesion", "liver"], "CT") == [(CHEST, [0]), (ABDOMEN, [1])]


def test_an_unknown_target_takes_the_site_that_the_prompt_names() -> None:
    assert _groups(PromptWindows(DATA), ["a shadow in chest CT"], "CT") == [(CHEST, [0])]


def test_a_fixed_window_serves_all_prompts() -> None:
    groups = _groups(PromptWindows(DATA, window=[50, 300]), ["liver", "lung nodule"], "CT")
    assert len(groups) == 1
    assert groups[0][1] == [0, 1]


def test_mr_never_gets_a_ct_window() -> None:
    assert _groups(PromptWindows(DATA), ["liver"], "MR") == [(MRPercentiles(), [0])]


def test_an_unstated_modality_is_that_of_the_training_or_an_error() -> None:
    assert PromptWindows(DATA).modality("unknown") == "CT"
    assert PromptWindows(DATA).modality("MR") == "MR"
    with pytest.raises(ConfigError, match="--modality"):
        PromptWindows({}).modality("unknown")
