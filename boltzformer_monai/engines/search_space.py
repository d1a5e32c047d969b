"""What a search tries: keys of the configuration, each with its range or its choices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from boltzformer_monai.errors import ConfigError, why
from boltzformer_monai.limits import read_json

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["MOST_POINTS", "PAPER", "Space"]

MOST_POINTS = 100_000

Value: TypeAlias = bool | int | float | str | None


class _Dimension(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Range(_Dimension):
    @model_validator(mode="after")
    def _ordered(self) -> _Range:
        low, high = self.low, self.high  # type: ignore[attr-defined]
        if not low <= high:
            raise ValueError(f"low {low} is above high {high}")
        if self.log and low <= 0:  # type: ignore[attr-defined]
            raise ValueError(f"log needs a low above 0, got {low}")
        return self

    def corners(self) -> tuple[Value, ...]:
        """The least and the largest value."""
        return self.low, self.high  # type: ignore[attr-defined]


class _FloatRange(_Range):
    type: Literal["float"]
    low: float
    high: float
    log: bool = False

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)


class _IntRange(_Range):
    type: Literal["int"]
    low: int
    high: int
    log: bool = False

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log)


class _Choice(_Dimension):
    type: Literal["choice"]
    values: list[Value] = Field(min_length=1)

    @model_validator(mode="after")
    def _different(self) -> _Choice:
        for place, value in enumerate(self.values):
            if value in self.values[:place]:  # 1, 1.0 and True are one value to Optuna
                raise ValueError(f"{value!r} is among the values twice")
        return self

    def corners(self) -> tuple[Value, ...]:
        """All values."""
        return tuple(self.values)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


_DIMENSIONS: TypeAdapter[dict[str, _FloatRange | _IntRange | _Choice]] = TypeAdapter(
    dict[str, Annotated[_FloatRange | _IntRange | _Choice, Field(discriminator="type")]]
)
PAPER: Mapping[str, Any] = {
    "learning_rate": {"type": "choice", "values": [2e-5, 4e-5, 5e-5, 1e-4]},
    "weight_decay": {"type": "choice", "values": [1e-4, 1e-3, 1e-2]},
}
"""The search of appendix A.4."""


class Space:
    """Keys of the configuration and their dimensions.

    Args:
        content: key → ``{"type": "float" | "int", "low": …, "high": …, "log": …}`` or
            ``{"type": "choice", "values": […]}``.

    Attributes:
        content: as given.
        dimensions: key → dimension.

    Raises:
        ConfigError: a dimension is unknown or contradicts itself, or there is none.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = dict(content)
        try:
            self.dimensions = _DIMENSIONS.validate_python(self.content)
        except ValidationError as error:
            first = error.errors()[0]
            place = "#".join(str(part) for part in first["loc"]) or "it"
            raise ConfigError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
        if not self.dimensions:
            raise ConfigError("there is no key to search over")

    @classmethod
    def read(cls, path: Path) -> Space:
        """Read a space from a JSON file.

        Raises:
            ConfigError: it cannot be read, or is none.
        """
        try:
            content = read_json(path)
            if not isinstance(content, dict):
                raise ValueError("it must be a mapping of keys to ranges or choices")
            return cls(content)
        except (OSError, ValueError, ConfigError) as error:
            msg = f'{path}: is no search space ({why(error)}); see "Searching settings" in docs/how-to/training.md'
            raise ConfigError(msg) from None

    def distributions(self) -> dict[str, BaseDistribution]:
        """The dimensions as Optuna's."""
        return {key: dimension.distribution() for key, dimension in self.dimensions.items()}

    def grid(self) -> list[dict[str, Value]]:
        """All combinations of the choices.

        Raises:
            ConfigError: a dimension has no choices, or there are too many combinations.
        """
        choices = {}
        count = 1
        for key, dimension in self.dimensions.items():
            if not isinstance(dimension, _Choice):
                raise ConfigError(f"{key}: a grid needs choices; take --space for ranges")
            choices[key] = dimension.values
            count *= len(dimension.values)
        if count > MOST_POINTS:
            raise ConfigError(f"the grid has {count} points; at most {MOST_POINTS} are possible")
        return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]

    def corners(self) -> Iterator[dict[str, Value]]:
        """Points that together have every choice and both ends of every range."""
        ends = {key: dimension.corners() for key, dimension in self.dimensions.items()}
        for place in range(max(map(len, ends.values()))):
            yield {key: values[min(place, len(values) - 1)] for key, values in ends.items()}
