"""Parts that others bring: registered by name in code, by an installed package, or by a plugin the user names.

A checkpoint only ever holds a *name*. The code behind it comes from this package, from the entry points of an installed
one, or from a module that the user names with ``--plugin`` or in the environment variable ``BOLTZFORMER_PLUGINS``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, get_type_hints

from boltzformer_monai.errors import ConfigError, did_you_mean
from boltzformer_monai.field_types import check_value, is_scalar

PLUGINS = "BOLTZFORMER_PLUGINS"
"""Environment variable: modules or ``.py`` files to import, separated like the folders of ``PATH``."""
OF_YOUR_OWN = "One of your own needs its package installed, or --plugin MODULE."

_Part = TypeVar("_Part")
_Factory = TypeVar("_Factory", bound=Callable[..., Any])


def load_plugin(name: str) -> ModuleType:
    """Import a module by its name, or from a ``.py`` file; its parts register themselves.

    Raises:
        ConfigError: it cannot be imported.
    """
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:  # whatever the code of others raises
            raise _not_imported(name, error) from error
    file = Path(name).resolve()
    module_name = f"{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:8]}"  # files of one name are two modules
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, file)
    try:
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except (Exception, SystemExit) as error:  # whatever the code of others raises
        sys.modules.pop(module_name, None)
        raise _not_imported(name, error) from error
    return module


def load_entry(entry: EntryPoint, part: str) -> Any:
    """Load what an installed package offers; ``part`` says what for the message, e.g. ``"the decoder 'dot'"``.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # whatever the code of others raises
        msg = f"{part} cannot be imported from {entry.value} ({reason_of(error)}); mend that package"
        raise ConfigError(msg) from error


def providers(group: str, name: str | None = None) -> dict[str, dict[str, EntryPoint]]:
    """Name of a part → distribution → its entry point, of what installed packages offer in a group."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=group) if name is None else entry_points(group=group, name=name):
        found.setdefault(entry.name, {})[entry.dist.name if entry.dist else entry.module] = entry
    return found


def require_one(part: str, distributions: Iterable[str]) -> None:
    """Refuse to choose between distributions that provide the same part.

    Raises:
        ConfigError: there are several; it names them.
    """
    names = list(distributions)
    if len(names) > 1:
        raise ConfigError(f"{part} is provided by {' and by '.join(names)}; uninstall all but one")


def _not_imported(name: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"the plugin {name} cannot be imported ({reason_of(error)}); give an installed module, or a .py file"
    )


def reason_of(error: BaseException) -> str:
    """Why the code of others failed, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(f"{type(error).__name__}: {error}".split())


def place_of(error: BaseException) -> str:
    """File and line in which the code of others failed."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def use_plugins(names: str | Sequence[str] = ()) -> None:
    """Import plugins, here and in the processes that this one starts; also those of ``BOLTZFORMER_PLUGINS``.

    Args:
        names: a module or ``.py`` file, or several.

    Raises:
        ConfigError: one cannot be imported.
    """
    given: list[Any] = list(names) if isinstance(names, list | tuple) else [names]  # of whatever type a user gave
    listed = [each for each in os.environ.get(PLUGINS, "").split(os.pathsep) if each]
    for name in (*listed, *given):
        if not isinstance(name, str):
            raise ConfigError(f"a plugin is the name of a module or the path of a .py file, not {name!r}")
        load_plugin(name)
    absolute = [str(Path(name).resolve()) if name.endswith(".py") else name for name in given]
    if new := [name for name in absolute if name not in listed]:
        os.environ[PLUGINS] = os.pathsep.join([*listed, *new])


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
        self._settled: set[str] = set()  # names of which it is known that only one distribution provides them

    def register(self, name: str) -> Callable[[_Factory], _Factory]:
        """Decorator of a class or function that makes the part ``name``.

        Raises:
            ConfigError: the name is taken; only the same code may register again.
        """

        def add(factory: _Factory) -> _Factory:
            taken = self._factories.get(name)
            if taken is not None and _origin(taken) != _origin(factory):
                raise ConfigError(f"the {self.kind} {name!r} is registered already; choose another name")
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> list[str]:
        """All names, those of plugins and installed packages included."""
        use_plugins()
        return sorted({*self._factories, *entry_points(group=self.group).names})

    def find(self, name: str) -> Callable[..., _Part] | None:
        """What makes the part ``name``; None where nobody does.

        Raises:
            ConfigError: a plugin or the installed package that offers it cannot be imported, or several offer it.
        """
        if name not in self._factories:
            use_plugins()
        if name not in self._factories or name not in self._settled:
            part = f"the {self.kind} {name!r}"
            offers = providers(self.group, name).get(name, {})
            require_one(part, offers)
            for distribution, entry in offers.items():
                offered = load_entry(entry, part)
                taken = self._factories.setdefault(name, offered)  # loading it may have registered it, too
                if _origin(taken) != _origin(offered):
                    require_one(part, (_provider(taken), distribution))
            self._settled.add(name)
        return self._factories.get(name)

    def make(self, name: str, *arguments: Any, settings: Mapping[str, Any]) -> _Part:
        """Make the part ``name`` of the arguments that all of its kind take, and its own settings.

        Raises:
            ConfigError: nobody makes such a part, or it does not take these settings.
        """
        factory = self.find(name)
        if factory is None:
            names = self.names()
            hint = did_you_mean(name, names, otherwise=f"known: {', '.join(names)}.")
            raise ConfigError(f"unknown {self.kind} {name!r}; {hint} {OF_YOUR_OWN}")
        signature = inspect.signature(factory)
        takes = list(signature.parameters.values())
        if not any(each.kind is each.VAR_KEYWORD for each in takes):
            known = [each.name for each in takes if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
            own = sorted(known[len(arguments) :])
            if unknown := next((setting for setting in settings if setting not in own), None):
                msg = f"unknown setting {unknown!r} of the {self.kind} {name!r}; {did_you_mean(unknown, own)}"
                raise ConfigError(msg)
        for setting, kind in _annotations(factory).items():
            if setting in settings and is_scalar(kind):
                check_value(f"{setting} of the {self.kind} {name!r}", settings[setting], kind)
        try:
            signature.bind(*arguments, **settings)
        except TypeError as error:
            raise ConfigError(f"the {self.kind} {name!r}: {error}") from error
        return factory(*arguments, **settings)


def _annotations(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of a factory's arguments, as far as they can be known."""
    try:
        return get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError):  # a name that only type checkers import
        return {}


def _provider(factory: Callable[..., Any]) -> str:
    """Who brings a factory: this distribution, or the module of a plugin."""
    module = getattr(factory, "__module__", "")
    return "boltzformer-monai" if module.startswith("boltzformer_monai.") else f"the module {module}"


def _origin(factory: Callable[..., Any]) -> tuple[object, object]:
    """Where a factory is written: modules that are imported twice, under two names, have the same."""
    module = sys.modules.get(getattr(factory, "__module__", ""))
    return getattr(module, "__file__", None), getattr(factory, "__qualname__", None)
