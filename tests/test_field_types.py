"""No setting of network or training takes a value of another type: a text ``"false"`` would be true."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from boltzformer_monai.engines.settings import SETTINGS, TrainingSettings
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.field_types import check_types
from boltzformer_monai.networks.presets import PRESETS, network_config

FOREIGN = ("false", "", b"x", [], 2.5, True, None, 3, {"a": object()}, object())


@dataclasses.dataclass
class _Settings:
    flag: bool = False
    count: int = 1
    share: float = 0.5
    limit: float | None = None
    name: str = "a"
    kind: Literal["a", "b"] = "a"
    mean: tuple[float, ...] = (0.5,)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


TAKEN: dict[str, tuple[Any, ...]] = {
    "flag": (True, False),
    "count": (0, -3),
    "share": (1, 0.25),
    "limit": (None, 1, 0.25),
    "name": ("", "false"),
    "kind": ("a", "b"),
    "mean": ((), (1, 0.5)),
    "weights": ({}, {"a": 1}),
    "more": ({"a": None},),
}
REFUSED: dict[str, tuple[Any, ...]] = {
    "flag": ("false", "True", 0, 1, None),
    "count": ("1", 1.0, True, None),
    "share": ("0.5", True, None),
    "limit": ("null", False),
    "name": (1, None, True, b"a"),
    "kind": ("c", 1, None),
    "mean": ([0.5], "ab", 0.5, ("a",), (True,)),
    "weights": ({"a": "1"}, {1: 1.0}, [], "a"),
    "more": ("{}", {1: 1}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_values_of_their_type_and_no_others(name: str) -> None:
    for value in TAKEN[name]:
        check_types(_Settings(**{name: value}))
    for value in REFUSED[name]:
        with pytest.raises(ConfigError, match=f"^{name} must be .*, got "):
            check_types(_Settings(**{name: value}))


def test_the_type_is_in_words() -> None:
    for settings, words in (
        (_Settings(flag="false"), "flag must be true or false, got 'false'"),  # type: ignore[arg-type]
        (_Settings(limit="1"), "limit must be a number or nothing, got '1'"),  # type: ignore[arg-type]
        (_Settings(mean=(0.5, "a")), r"mean must be a list, each a number, got \(0.5, 'a'\)"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=f"^{words}$"):
            check_types(settings)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PRESETS["tiny"])])
def test_no_setting_of_a_network_takes_another_type(field: str) -> None:
    """Of every kind of value at least six are of a wrong type."""
    refused = 0
    for value in FOREIGN:
        try:
            assert getattr(network_config("tiny", **{field: value}), field) == value
        except ConfigError:
            refused += 1
    assert refused >= 6


@pytest.mark.parametrize("field", dataclasses.fields(TrainingSettings), ids=lambda field: field.name)
def test_no_setting_of_the_training_takes_another_type(field: dataclasses.Field[Any]) -> None:
    kind = type(getattr(SETTINGS["tiny"], field.name))
    for value in ("false", b"x", [0], object()):
        if kind is str and field.name == "preset" and isinstance(value, str):
            continue
        with pytest.raises(ConfigError, match=f"^{field.name} must be "):
            dataclasses.replace(SETTINGS["tiny"], **{field.name: value})
