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


def test_a_site_is_found_in_any_spelling_and_none_is_not_every_one() -> None:
    of_site = {name: {**DATA["targets"][2], "site": name, "window": w.to_dict()} for name, w in NAMED_WINDOWS.items()}
    bare = {**DATA["targets"][2], "site": "", "window": NAMED_WINDOWS["bone"].to_dict()}
    windows = PromptWindows({"targets": [bare, of_site["abdomen"], {**of_site["chest"], "site": "Thorax"}]})
    prompts = ["aorta", "aorta in thoracic CT", "aorta in the chest", "chest CT of the aorta", "aorta in the belly"]
    assert _groups(windows, prompts, "CT") == [(NAMED_WINDOWS["bone"], [0]), (CHEST, [1, 2, 3]), (ABDOMEN, [4])]
    windows = PromptWindows({"targets": [of_site["abdomen"], of_site["lung"]]})
    assert _groups(windows, ["aorta in chest CT"], "CT") == [(NAMED_WINDOWS["lung"], [0])]  # the chest holds the lungs


MIXED = PromptWindows(
    {
        "targets": [
            {"target": "lung nodule", "modality": "CT", "site": "lung", "window": NAMED_WINDOWS["lung"].to_dict()},
            {"target": "liver", "modality": "CT", "site": "abdomen", "window": NAMED_WINDOWS["liver"].to_dict()},
            {"target": "prostate", "modality": "MR", "site": "prostate", "window": MRPercentiles().to_dict()},
        ]
    }
)


def test_a_target_of_another_modality_has_a_caveat_and_no_other_targets_window() -> None:
    readings = MIXED.read(["prostate", "liver", "zebra"])
    assert MIXED.group(readings, "CT") == [(ABDOMEN, [0, 2]), (NAMED_WINDOWS["liver"], [1])]
    (caveat,) = MIXED.modality_caveats("CT", "CT", readings)
    assert (caveat.kind, caveat.prompt, caveat.doubtful) == ("another modality", "prostate", True)
    assert caveat.text == "'prostate' was trained on MR only; on CT its mask means little"
    assert [each.prompt for each in MIXED.modality_caveats("MR", "MR", readings)] == ["liver"]


def test_a_scan_of_a_modality_that_no_target_has_is_said_once() -> None:
    windows = PromptWindows(DATA)
    (caveat,) = windows.modality_caveats("MR", "MR", windows.read(["liver", "aorta"]))
    assert (caveat.kind, caveat.prompt, caveat.doubtful) == ("another modality", None, True)


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


def test_a_model_without_a_vocabulary_calls_no_prompt_unknown() -> None:
    windows = PromptWindows({"plane": "axial", "targets": []})
    readings = windows.read(["Liver", "flux capacitor"])
    (caveat,) = windows.prompt_caveats(readings)
    assert (caveat.kind, caveat.prompt, caveat.doubtful) == ("no vocabulary", None, False)
    assert not any(windows.is_unknown(reading) for reading in readings)
    assert [reading.shown for reading in readings] == ["Liver", "flux capacitor"]
    sentences = windows.read(["CT imaging of the spleen within the abdomen", "Nodule in chest CT", "Liver"])
    abdomen, chest = (NAMED_WINDOWS[name] for name in ("abdomen", "chest"))
    assert windows.group(sentences, "CT") == [(abdomen, [0, 2]), (chest, [1])]
