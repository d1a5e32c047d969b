"""Recipes: one small module per data set, which lists its scans as :class:`~boltzformer_monai.slicing.cases.Case`.

A recipe module has one function, ``cases(folder, *, modality, site, channel, **options) -> list[Case]``; what the
first three leave None it takes from the data set. Options of its own it declares in ``OPTIONS``. Listing reads names
and headers only, no voxels.

To add a recipe here, write the module and name it in :data:`RECIPES`. Another distribution adds one by an entry point
in the group :data:`GROUP`, ``name = "its.module"`` (docs/how-to/extending.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from boltzformer_monai.errors import BoltzFormerError, ConfigError, did_you_mean
from boltzformer_monai.registry import place_of, providers, reason_of, require_one
from boltzformer_monai.slicing.cases import Case

GROUP = "boltzformer_monai.recipes"
"""The entry points by which other distributions add recipes."""

RECIPES: Mapping[str, str] = MappingProxyType(
    {
        name: f"boltzformer_monai.slicing.recipes.{name}"
        for name in ("msd", "amos22", "lidc", "folder", "biomedparse", "images")
    }
)
"""Name on the command line → module, of the recipes of this package."""


@dataclass(frozen=True)
class Option:
    """One setting that only this recipe takes.

    Attributes:
        name: keyword of ``cases``.
        default: the value where none is given.
        help: one line for people.
        choices: the values allowed, as text; empty allows any text.
    """

    name: str
    default: str
    help: str
    choices: tuple[str, ...] = ()

    def check(self, value: object) -> str:
        """Return the value as text.

        Raises:
            ConfigError: it is none of the choices.
        """
        text = str(value).strip()
        if self.choices and text not in self.choices:
            raise ConfigError(f"{self.name} {text!r} is none of {', '.join(self.choices)} ({self.help})")
        return text


@dataclass(frozen=True)
class Recipe:
    """How one data set is listed.

    Attributes:
        name: name on the command line.
        list_cases: the module's ``cases``.
        options: settings of this recipe alone.
        distribution: the distribution that provides it, ``""`` for this one.
    """

    name: str
    list_cases: Callable[..., Sequence[Case]]
    options: tuple[Option, ...] = ()
    distribution: str = ""

    def __call__(
        self,
        folder: Path,
        *,
        modality: str | None = None,
        site: str | None = None,
        channel: int | None = None,
        **options: object,
    ) -> list[Case]:
        """List the scans of a data set.

        Args:
            folder: its folder.
            modality: ``"CT"`` or ``"MR"``: overrides what the data set says, or chooses from one that has both.
            site: overrides its body site.
            channel: which image of scans with several.
            options: what :attr:`options` declares, as text or as what has that text.

        Raises:
            DatasetError: it is not such a data set, or it is damaged or incomplete.
            ConfigError: a setting is missing, unknown or out of range, or the recipe of another distribution fails.
        """
        known = {option.name: option for option in self.options}
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known, otherwise=f"it takes {', '.join(known) or 'none'}")
                raise ConfigError(f"the recipe {self.name} has no option {name!r}; {hint}")
        checked = {name: option.check(options.get(name, option.default)) for name, option in known.items()}
        try:
            cases = list(self.list_cases(Path(folder), modality=modality, site=site, channel=channel, **checked))
        except BoltzFormerError:
            raise
        except Exception as error:
            if not self.distribution:
                raise
            raise _broken(self.name, self.distribution, error, f"fails in {place_of(error)}") from error
        if strange := next((case for case in cases if not isinstance(case, Case)), None):
            msg = f"the recipe {self.name} of {self.distribution or 'this package'} lists {strange!r:.80}, not a Case"
            raise ConfigError(msg)
        return cases


def recipe_names() -> list[str]:
    """Return the names of all recipes, those of other distributions included; nothing is imported."""
    return sorted({*RECIPES, *providers(GROUP)})


def load_recipe(name: str) -> Recipe:
    """Return a recipe, to be called with the folder of the data set.

    Raises:
        ConfigError: there is no such recipe, two distributions provide it, or importing it fails.
    """
    guests = providers(GROUP, name).get(name, {})
    require_one(f"the recipe {name}", [*(["boltzformer-monai"] if name in RECIPES else []), *guests])
    if name not in RECIPES and not guests:
        raise ConfigError(f"unknown recipe {name!r}; {did_you_mean(name, recipe_names())}")
    if name in RECIPES:
        module = importlib.import_module(RECIPES[name])
        return Recipe(name, module.cases, tuple(getattr(module, "OPTIONS", ())))
    ((distribution, entry),) = guests.items()
    try:
        module = entry.load()
        options = tuple(getattr(module, "OPTIONS", ()))
        recipe = Recipe(name, module.cases, options, distribution)
    except Exception as error:  # noqa: BLE001  whatever a module of somebody else does when it is imported
        raise _broken(name, distribution, error, f"cannot be loaded from {entry.value}") from error
    if not callable(recipe.list_cases) or not all(isinstance(option, Option) for option in options):
        msg = f"the recipe {name} of {distribution}: {entry.value} needs a function cases, and OPTIONS made of Option"
        raise ConfigError(msg)
    return recipe


def _broken(name: str, distribution: str, error: Exception, what: str) -> ConfigError:
    return ConfigError(f"the recipe {name} of {distribution} {what} ({reason_of(error)[:200]}); ask its authors")
