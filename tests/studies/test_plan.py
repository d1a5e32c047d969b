"""Studies as files: mistakes in one line, the runs they ask for, and which of them are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.studies.plan import Study, merged, read_study, runs_of, settings_of
from tests.studies.cases import content, write


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experimnts": {}}, "unknown field experimnts; did you mean 'experiments'?"),
        ({"experiments__main__seads": 3}, "unknown field experiments.main.seads; did you mean 'seeds'?"),
        (
            {"experiments__main__arms": ["boltzman"]},
            "experiments.main: unknown arm 'boltzman'; did you mean 'boltzmann'?",
        ),
        ({"experiments__main__data": ["slice"]}, "experiments.main: unknown data set 'slice'; did you mean 'slices'?"),
        ({"experiments__main__arms": ["full", "full"]}, "experiments.main names one arm twice"),
        ({"experiments__main__seeds": [1, 1]}, "experiments.main names one seed twice"),
        (
            {"experiments__main__seeds": 0},
            "experiments.main.seeds: give a list, or how many there are, from 1 to 1000, got 0",
        ),
        ({"experiments__main__seeds": "5"}, "experiments.main.seeds: give a list, or how many there are, got '5'"),
        ({"experiments__main__seeds": [-1]}, "experiments.main.seeds.0: Input should be greater than or equal to 0"),
        ({"experiments__main__folds": 1}, "experiments.main.folds: Input should be greater than or equal to 2"),
        ({"comparisons": [{"arm": "full", "against": "full"}]}, "the arm 'full' is compared with itself"),
        ({"comparisons": [{"arm": "ful", "against": "full"}]}, "comparisons: unknown arm 'ful'; did you mean 'full'?"),
        ({"data__slices": {}}, "data.slices: give either a folder or a maker"),
        ({"data__slices__settings": {"size": 3}}, "data.slices: settings are a maker's, and a folder has none"),
        ({"data__slices__split": "tset"}, "data.slices.split: Input should be 'train', 'val' or 'test'"),
        (
            {"data__slices__split": "test", "experiments__main__folds": 3},
            "experiments.main: folds are evaluated each on its own; data.slices names a split",
        ),
        (
            {"comparisons": [{"arm": "full", "against": "no prior"}]},
            "comparisons: no experiment has both 'full' and 'no prior'",
        ),
        (
            {"comparisons": [{"arm": "full", "against": "boltzmann"}, {"arm": "boltzmann", "against": "full"}]},
            "comparisons: 'boltzmann' and 'full' are compared twice",
        ),
        (
            {"arms__full__paper": {"3": "full"}},
            "arms.full.paper: unknown row of Table 3 'full'; known: full attention, 0.5",
        ),
        ({"arms__full__paper": {"12": "full"}}, "the paper has no Table '12' of Dice"),
        ({"arms__full__network": 3}, "arms.full.network: Input should be a valid dictionary"),
        ({"title": None}, "title: Input should be a valid string"),
        ({"data__slices__folder": "~nobody-has-this-name/x"}, "data.slices.folder: is no path ("),
        ({"data__slices__folder": "a\0b"}, "data.slices.folder: is no path ("),
        ({"arms__full__title": "Boltzmann"}, "arms.boltzmann and arms.full have the same title 'Boltzmann'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{", "\x00"])
def test_a_file_that_is_no_study(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ConfigError, match="is no study"):
        read_study(tmp_path / "study.json")
    with pytest.raises(ConfigError, match="is no study"):
        read_study(tmp_path / "other.json")


def test_an_arm_that_stands_there_twice_is_not_lost(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace('"no prior"', '"full"'))
    with pytest.raises(ConfigError, match='the key "full" occurs twice; keep one of them'):
        read_study(path)


def test_folders_are_relative_to_the_file(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, data__slices__folder="../there"))
    assert study.data["slices"].folder == str((tmp_path.parent / "there").resolve())


def _keys(**changes: Any) -> dict[tuple[str, int, int | None], str]:
    study = Study.model_validate(content(**changes))
    return {(run.arm, run.seed, run.fold): run.key for run in runs_of(study, "main", {"slices": "abc"})}


def test_runs_come_seed_by_seed_and_their_keys_hold_all_that_decides_them() -> None:
    keys = _keys()
    assert list(keys) == [("boltzmann", 0, None), ("full", 0, None), ("boltzmann", 1, None), ("full", 1, None)]
    assert len({*keys.values()}) == 4
    folds = _keys(experiments__main__folds=2)
    assert list(folds)[:4] == [("boltzmann", 0, 0), ("full", 0, 0), ("boltzmann", 0, 1), ("full", 0, 1)]
    assert len({*folds.values(), *keys.values()}) == 12
    # What the page says changes no run; what is trained, or on what, does.
    assert _keys(title="Other", arms__full__title="Other", threads=2, data__slices__licence="Other") == keys
    for changes in (
        {"training__epochs": 3}, {"network__queries": 4}, {"evaluation__resamples": 11}, {"data__slices__split": "val"},
        {"experiments__main__network": {"queries": 4}}, {"data__slices__training": {"epochs": 3}},
    ):  # fmt: skip
        assert not {*_keys(**changes).values()} & {*keys.values()}, changes
    study = Study.model_validate(content())
    (other, *_) = runs_of(study, "main", {"slices": "abd"})
    assert other.key not in keys.values()


def test_arms_of_the_same_settings_are_one_run() -> None:
    keys = _keys(arms__full__network={"policy": "boltzmann"}, arms__boltzmann__network={"policy": "boltzmann"})
    assert keys["boltzmann", 0, None] == keys["full", 0, None]


@pytest.mark.parametrize(("kind", "maker"), [("boltzformer", "demo"), ("needle", "needle")])
def test_an_arm_s_override_goes_before_an_earlier_key_of_that_name(kind: str, maker: str) -> None:
    study = Study.model_validate(
        content(
            data={"d": {"maker": maker}},
            experiments={
                "e": {
                    "kind": kind, "data": ["d"], "arms": ["boltzmann", "full"], "seeds": 1,
                    "training": {"learning_rate": 1e-3, "weight_decay": 0.1},
                }
            },
            arms__full__training={"settings_overrides": {"learning_rate": 1e-4}},
        )
    )  # fmt: skip
    training = settings_of(study, "e", "d", "full")["training"]
    assert {**training.pop("settings_overrides", {}), **training}["learning_rate"] == 1e-4
    assert training["weight_decay"] == 0.1
    assert settings_of(study, "e", "d", "boltzmann")["training"]["learning_rate"] == 1e-3


def test_later_settings_go_before_earlier_ones() -> None:
    changes = {
        "data__slices__training": {"epochs": 5, "batch_size": 4},
        "experiments__main__training": {"epochs": 7, "settings_overrides": {"clip": 1.0}},
        "arms__full__training": {"settings_overrides": {"ema": 0.9}},
    }
    study = Study.model_validate(content(**changes))
    settings = settings_of(study, "main", "slices", "full")
    training = settings["training"]
    assert (training["epochs"], training["batch_size"]) == (7, 4)
    assert training["settings_overrides"] == {"clip": 1.0, "ema": 0.9}
    assert training["network_overrides"] == {**study.network, "policy": "full"}
    assert settings["base_network"] == study.network
    assert merged({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"c": 2}}  # only mappings of settings are merged
