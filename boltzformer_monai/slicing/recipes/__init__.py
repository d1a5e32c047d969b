"""Recipes: one small module per data set, which lists its scans as :class:`~boltzformer_monai.slicing.cases.Case`.

A recipe module has one function, ``cases(folder, *, modality, site, channel, **options) -> list[Case]``; what the
first three leave None it takes from the data set. Options of its own it declares in ``OPTIONS``. Listing reads names
and headers only, no voxels. To add a recipe, write the module and name it in :data:`RECIPES`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from boltzformer_monai.errors import ConfigError

if TYPE_CHECKING:
    from boltzformer_monai.slicing.cases import Case

__all__ = ["RECIPES", "Option", "Recipe", "load_recipe"]

RECIPES: Mapping[str, str] = MappingProxyType(
    {name: f"boltzformer_monai.slicing.recipes.{name}" for name in ("msd", "amos22", "lidc", "folder", "biomedparse")}
)
"""Name on the command line → module."""


@dataclass(frozen=True)
class Option:
    """One setting that only this recipe takes.

    Attributes:
        name: keyword of ``cases``.
        default: what counts when nobody gives it.
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
            msg = f"{self.name} {text!r} is none of {', '.join(self.choices)} ({self.help})"
            raise ConfigError(msg)
        return text


@dataclass(frozen=True)
class Recipe:
    """How one data set is listed.

    Attributes:
        name: name on the command line.
        list_cases: the module's ``cases``.
        options: settings of this recipe alone.
    """

    name: str
    list_cases: Callable[..., list[Case]]
    options: tuple[Option, ...] = ()

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
            channel: which picture of scans with several.
            options: what :attr:`options` declares, as text or as what has that text.

        Raises:
            DatasetError: it is not such a data set, or it is damaged or incomplete.
            ConfigError: a setting is missing, unknown or out of range.
        """
        known = {option.name: option for option in self.options}
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}"
                msg = f"the recipe {self.name} has no option {name!r}; {hint}"
                raise ConfigError(msg)
        checked = {name: option.check(options.get(name, option.default)) for name, option in known.items()}
        return self.list_cases(Path(folder), modality=modality, site=site, channel=channel, **checked)


def load_recipe(name: str) -> Recipe:
    """Return a recipe, to be called with the folder of the data set.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in RECIPES:
        msg = f"unknown recipe {name!r}; known are {', '.join(RECIPES)}"
        raise ConfigError(msg)
    module = importlib.import_module(RECIPES[name])
    return Recipe(name, module.cases, tuple(getattr(module, "OPTIONS", ())))
