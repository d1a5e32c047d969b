"""The reference of the documentation, made from the code: commands, bundle, settings and every public name."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import runpy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import griffe

from boltzformer_monai.cli import build_parser
from boltzformer_monai.engines.settings import SETTINGS, TrainingSettings
from boltzformer_monai.experts.settings import ExpertSettings
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "boltzformer_monai"
CONFIGS = ROOT / "bundles" / "boltzformer" / "configs"
KEYS: Mapping[str, str] = runpy.run_path(str(Path(__file__).with_name("bundle_keys.py")))["KEYS"]
"""Keys of the bundle that are no setting of a class → what they are."""


def pages() -> dict[str, str]:
    """Path below ``reference/`` without ending → Markdown."""
    return {
        "commands": commands_page(),
        "bundle": bundle_page(),
        "settings": settings_page(),
        **{f"api/{package}": api_page(package) for package in packages()},
    }


# Commands


def commands_page() -> str:
    """Every command with every option, from its parser."""
    lines = [
        "# Commands", "", "Made from the parsers of the command line; `boltzformer COMMAND --help` says the same.", "",
        "Exit codes: 0 success, 2 a mistake in the command or something that cannot be used (one line says what to "
        "do), 130 interrupted by Ctrl-C. Commands with further codes name them.", "",
    ]  # fmt: skip
    for name, parser in commands():
        lines += [f"## boltzformer {name}", "", described(parser), ""]
        groups = [(group.title or "", group._group_actions) for group in parser._action_groups]
        for title, actions in groups:
            rows = [option_row(action) for action in actions if is_option(action)]
            if rows:
                caption = {"options": "", "positional arguments": ""}.get(title, f"**{title[:1].upper()}{title[1:]}**")
                lines += [caption, "", *table(("", "", "default"), rows), ""]
        if parser.epilog:
            lines += [parser.epilog, ""]
    return "\n".join(lines)


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Name, with that of the subcommand, and parser of each command."""

    def below(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not nested:
            yield name, parser
        for action in nested:
            for each, child in action.choices.items():
                yield from below(child, f"{name} {each}".strip())

    yield from below(build_parser(), "")


def described(parser: argparse.ArgumentParser) -> str:
    """The description as Markdown; its indented blocks are code already."""
    return re.sub(r"::$", ":", (parser.description or "").strip(), flags=re.MULTILINE)


def is_option(action: argparse.Action) -> bool:
    """Whether users are told of it."""
    return not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS


def option_row(action: argparse.Action) -> tuple[str, str, str]:
    """Names with their values, meaning, default."""
    value = argparse.HelpFormatter("")._format_args(action, _metavar(action)) if action.nargs != 0 else ""
    names = " or ".join(code_text(f"{name} {value}".strip()) for name in action.option_strings) or code_text(value)
    text = escaped((action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%"))
    if action.required and action.option_strings:
        text = f"{text} (required)" if text else "required"
    hidden = any(action.default is each for each in (None, False, argparse.SUPPRESS)) or action.default in ([], "")
    said = "default" in text or f"({action.default})" in text
    return names, text, "" if hidden or said else f"`{action.default}`"


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


# Bundle


def bundle_page() -> str:
    """Every key of the bundle's configurations: those that users set, and the components."""
    lines = [
        "# Bundle", "",
        "Made from `bundles/boltzformer/configs`. Every key can be set: `--KEY VALUE` with `python -m monai.bundle "
        "run`, `--set KEY=VALUE` with `boltzformer train` and `evaluate`; `train#trainer#max_epochs` goes into a "
        "component. A misspelt key is an error that names the nearest one.", "",
    ]  # fmt: skip
    for name in ("train", "evaluate", "inference", "multi_gpu_train"):
        config = read_config(name)
        described = {key: value for key, value in config.items() if key_text(name, key) is not None}
        others = {key: value for key, value in config.items() if key not in described}
        lines += [f"## {name}.json", ""]
        if described:
            rows = [(f"`{key}`", key_text(name, key) or "", default(value)) for key, value in described.items()]
            lines += [*table(("key", "", "default"), rows), ""]
        parts = [(f"`{key}`", component(value)) for key, value in others.items()]
        lines += ["Components and expressions:", "", *table(("key", "what it is made of"), parts), ""]
    return "\n".join(lines)


def read_config(name: str) -> dict[str, Any]:
    """A configuration of the bundle."""
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def key_text(config: str, key: str) -> str | None:
    """What a key means; None for a component."""
    if (text := KEYS.get(f"{config}.{key}", KEYS.get(key))) is not None:
        return text
    source = {"train": TrainingSettings, "inference": RunSettings}.get(config)
    return field_texts(source).get(key) if source is not None else None


def component(value: Any) -> str:
    """A component by its class, an expression as it stands."""
    if isinstance(value, dict) and "_target_" in value:
        return f"`{value['_target_']}`"
    if isinstance(value, dict):
        return ", ".join(f"`{key}`" for key in value)
    if isinstance(value, list):
        return "<br>".join(code(each) for each in value)
    return code(value)


def default(value: Any) -> str:
    """A default; those of the preset by their name."""
    if isinstance(value, str) and (preset := re.fullmatch(r"\$@defaults\.(\w+)", value)):
        return f"the [preset's](settings.md#training) `{preset[1]}`"
    return "" if value is None else code(value)


# Settings


def settings_page() -> str:
    """Fields of the settings' classes, with their texts and, where there are presets, the values of each."""
    lines = [
        "# Settings", "", "Made from the classes that hold them.", "",
        "## Training", "",
        "`TrainingSettings`, by preset: keys of `train.json`, or of its `settings_overrides`. "
        "[Training](../how-to/training.md#settings) says which are the paper's.", "",
        *table(("", "", "default", "presets"), preset_rows(TrainingSettings, SETTINGS)), "",
        "## Network", "", "`NetworkConfig`, by preset: keys of `network_overrides`, and of `create_boltzformer`.", "",
        *table(("", "", "default", "presets"), preset_rows(NetworkConfig, PRESETS)), "",
        "## Inference", "",
        "`RunSettings`: what a segmentation is asked for, by command, bundle, server and Python.", "",
        *table(("", "", "default"), field_rows(RunSettings)), "",
        "## Expert", "", "`ExpertSettings`: `--set` of `boltzformer expert train`.", "",
        *table(("", "", "default"), field_rows(ExpertSettings)), "",
        "## Label server", "", "`ServerSettings`: `--conf KEY VALUE` of `boltzformer serve`.", "",
        *table(("", "", "default"), server_rows()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def preset_rows(kind: type, presets: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row per field: its default, and the presets that have another value."""
    rows = []
    for name, text, value in field_rows(kind):
        values = {preset: code(getattr(settings, name.strip("`"))) for preset, settings in presets.items()}
        others = (f"{preset}: {each}" for preset, each in values.items() if each != (value or code(None)))
        if name != "`preset`":
            rows.append((name, text, "" if value == "required" else value, "<br>".join(others)))
    return rows


def field_rows(kind: type) -> list[tuple[str, str, str]]:
    """A row per field, with its default."""
    texts = field_texts(kind)
    return [(f"`{field.name}`", texts[field.name], field_default(field)) for field in dataclasses.fields(kind)]


def field_default(field: dataclasses.Field[Any]) -> str:
    """The default, empty where there is none."""
    if field.default is not dataclasses.MISSING:
        return "" if field.default is None else code(field.default)
    return code(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "required"


def server_rows() -> list[tuple[str, str, str]]:
    """The label server's settings, read without importing it, since MONAI Label may be missing."""
    kind = load(f"{PACKAGE}.label.server_settings")["ServerSettings"]
    texts, rows = attribute_texts(kind), []
    for name, member in kind.attributes.items():
        if texts.get(name):
            value = "" if member.value is None else str(member.value)
            rows.append((f"`{name}`", texts[name], "" if value in ("None", "()") or "(" in value else code_text(value)))
    return rows


def field_texts(kind: type) -> dict[str, str]:
    """Field → what it is, in Markdown."""
    return attribute_texts(load(kind.__module__)[kind.__name__])


def attribute_texts(kind: griffe.Class) -> dict[str, str]:
    """Attribute → text, from the texts below the fields and the section ``Attributes`` of the class."""
    texts = {name: "" for name in kind.attributes if not name.startswith("_")}
    for name, member in kind.attributes.items():
        if member.docstring:
            texts[name] = prose(member.docstring.value)
    for section in kind.docstring.parse("google") if kind.docstring else ():
        if section.kind is griffe.DocstringSectionKind.attributes:
            texts.update({each.name: prose(each.description) for each in section.value})
    return texts


@functools.cache
def package_tree() -> griffe.Module:
    """The package's syntax trees, with nothing imported."""
    return griffe.load(PACKAGE, search_paths=[str(ROOT)], allow_inspection=False)


def load(module: str) -> griffe.Module:
    """A module of :func:`package_tree`."""
    return package_tree()[module.removeprefix(f"{PACKAGE}.")] if module != PACKAGE else package_tree()


# Python


def packages() -> list[str]:
    """Dotted names of the package and of all packages in it."""
    return sorted([PACKAGE, *_packages(ROOT / PACKAGE, PACKAGE)])


def _packages(folder: Path, name: str) -> Iterator[str]:
    for init in folder.glob("*/__init__.py"):
        child = f"{name}.{init.parent.name}"
        yield child
        yield from _packages(init.parent, child)


def modules(package: str) -> list[str]:
    """Dotted names of the public modules in a package itself."""
    folder = ROOT.joinpath(*package.split("."))
    return [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]


def api_page(package: str) -> str:
    """A package: what it exports, then its own names and those of its modules."""
    members = load(package).members.items()
    exported = [name for name, member in members if member.is_alias and member.is_exported]
    own = [name for name, member in members if not (member.is_alias or member.is_module or name.startswith("_"))]
    names = json.dumps(own) if own else "false"
    head = _options(show_root_heading="false", show_root_toc_entry="false", members=names)
    lines = [f"# {package}", "", f"::: {package}", *head]
    if exported:
        lines += ["", f"Can be imported from here: {', '.join(f'`{name}`' for name in sorted(exported))}."]
    for module in modules(package):
        lines += ["", f"::: {module}", *_options(heading_level="2")]
    return "\n".join([*lines, ""])


def _options(**options: str) -> list[str]:
    return ["    options:", *(f"      {key}: {value}" for key, value in options.items())]


# Markdown


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    head = list(head)
    return [_line(head), _line("---" for _ in head), *(_line(row) for row in rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def code(value: Any) -> str:
    """A value as code."""
    return code_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def code_text(text: str) -> str:
    """Text as code in a cell of a table."""
    return f"`{text}`".replace("|", "\\|")


def prose(text: str) -> str:
    """A docstring's paragraph as the text of a cell: one line, Sphinx's roles and double backquotes as code."""
    text = re.sub(r":\w+:`~?([\w.]+)`", lambda role: f"`{role[1].rsplit('.', 1)[-1]}`", " ".join(text.split()))
    return escaped(text.replace("``", "`"))


def escaped(text: str) -> str:
    """Text that may hold bars and angle brackets, in a cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")
