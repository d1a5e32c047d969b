"""Parts that others bring: registered by name in code, by an installed package, or by a plugin the user names.

A checkpoint only ever holds a *name*. The code behind it comes from this package, from the entry points of an installed
one, or from a module that the user names in the environment variable ``BOLTZFORMER_PLUGINS``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from boltzformer_monai.errors import ConfigError, did_you_mean, reject_unknown

PLUGINS = "BOLTZFORMER_PLUGINS"
"""Environment variable: modules or ``.py`` files to import, separated like the folders of ``PATH``."""

_Part = TypeVar("_Part")
_Factory = TypeVar("_Factory", bound=Callable[..., Any])


def load_plugin(name: str) -> ModuleType:
    """Import a module by its name, or from a ``.py`` file; its parts register themselves.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        file = Path(name).resolve(strict=True)
        if (known := sys.modules.get(file.stem)) is not None and getattr(known, "__file__", None) == str(file):
            return known
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise ImportError("it is no module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the code of others raises
        reason = " ".join(str(error).split()) or type(error).__name__
        msg = f"the plugin {name} cannot be imported ({reason}); install it, or give the path of its .py file"
        raise ConfigError(msg) from error
    sys.modules[file.stem] = module
    return module


class Registry(Generic[_Part]):
    """What makes the parts of one kind, by name.

    Args:
        kind: what the parts are called, e.g. ``"decoder"``.
        group: of the entry points under which installed packages offer theirs.
    """

    def __init__(self, kind: str, *, group: str) -> None:
        self.kind = kind
        self.group = group
        self._factories: dict[str, Callable[..., _Part]] = {}

    def register(self, name: str) -> Callable[[_Factory], _Factory]:
        """Decorator of a class or function that makes the part ``name``.

        Raises:
            ConfigError: the name is taken.
        """

        def add(factory: _Factory) -> _Factory:
            taken = self._factories.get(name)
            if taken is not None and getattr(taken, "__qualname__", None) != getattr(factory, "__qualname__", None):
                msg = f"the {self.kind} {name!r} is registered already; choose another name"
                raise ConfigError(msg)
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> list[str]:
        """All names, those of plugins and installed packages included."""
        for plugin in os.environ.get(PLUGINS, "").split(os.pathsep):
            if plugin:
                load_plugin(plugin)
        return sorted({*self._factories, *entry_points(group=self.group).names})

    def find(self, name: str) -> Callable[..., _Part] | None:
        """What makes the part ``name``; None where nobody does.

        Raises:
            ConfigError: a plugin or the installed package that offers it cannot be imported.
        """
        if name in self._factories or name not in self.names():
            return self._factories.get(name)
        if name not in self._factories:
            entry = next(iter(entry_points(group=self.group, name=name)))
            try:
                factory = entry.load()
            except Exception as error:  # whatever the code of others raises
                msg = f"the {self.kind} {name!r} cannot be imported from {entry.value} ({error}); mend that package"
                raise ConfigError(msg) from error
            self._factories.setdefault(name, factory)
        return self._factories[name]

    def make(self, name: str, *arguments: Any, settings: Mapping[str, Any]) -> _Part:
        """Make the part ``name`` of the arguments that all of its kind take, and its own settings.

        Raises:
            ConfigError: nobody makes such a part, or it does not take these settings.
        """
        factory = self.find(name)
        if factory is None:
            msg = (
                f"unknown {self.kind} {name!r}; {did_you_mean(name, self.names())} "
                f"One of your own needs its package installed, or {PLUGINS}=MODULE"
            )
            raise ConfigError(msg)
        signature = inspect.signature(factory)
        takes = signature.parameters.values()
        if not any(each.kind is each.VAR_KEYWORD for each in takes):
            known = [each.name for each in takes if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
            reject_unknown(settings, known[len(arguments) :], what=f"setting of the {self.kind} {name!r}")
        try:
            signature.bind(*arguments, **settings)
        except TypeError as error:
            msg = f"the {self.kind} {name!r}: {error}"
            raise ConfigError(msg) from error
        return factory(*arguments, **settings)
