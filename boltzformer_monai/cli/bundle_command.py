"""Options of ``train``, ``evaluate`` and ``demo``, and checks before PyTorch is imported."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.cli.command_line import add_plugin, whole_number
from boltzformer_monai.data.slices.tables import read_description
from boltzformer_monai.errors import ConfigError, why
from boltzformer_monai.limits import LARGEST_SEED, parse_json, read_text
from boltzformer_monai.storage import require_writable

_DEEPEST = 32  # levels of a configuration
FIXED_KEYS = ("bundle_root", "imports", "initialize", "run", "finalize", "training", "evaluating")
"""Keys that the commands rely on."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``train`` and ``evaluate`` share."""
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="slice dataset, made by boltzformer slice")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--device", metavar="NAME", help="cpu, cuda:1, mps, … (the first CUDA GPU if there is one)")
    add("--seed", type=whole_number(0, LARGEST_SEED), metavar="N", help="of everything random (0)")
    add(
        "--set",
        dest="settings",
        type=parse_setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key of the configuration, e.g. batch_size=4 or train#dataset#cache_rate=0.5",
    )
    add(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="configuration (JSON or YAML) that overrides the bundle's",
    )
    add_plugin(parser)
    add_bundle_root(parser)


def add_bundle_root(parser: argparse.ArgumentParser) -> None:
    """Add ``--bundle-root``."""
    parser.add_argument(
        "--bundle-root", "--bundle_root", type=Path, metavar="DIR", help="another copy of the bundle than the package's"
    )


def parse_setting(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` → key and value: a Python literal, JSON, or else the text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    for parse in (ast.literal_eval, json.loads):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):  # too deep for the parser
            return key, parse(value)
    return key, value


def require_training_packages() -> None:
    """Raise a ``ConfigError`` if the extra ``train`` is not installed."""
    missing = [name for name in ("ignite", "tensorboard") if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"training and evaluation need {' and '.join(missing)}; pip install 'boltzformer-monai[train]'"
        raise ConfigError(msg)


def check_options(options: argparse.Namespace) -> None:
    """Check packages, bundle, dataset, output folder and configurations, before PyTorch is imported.

    Args:
        options: of :func:`add_options`.

    Raises:
        BoltzFormerError: one of them cannot be used.
    """
    require_training_packages()
    bundle_root(options.bundle_root)
    read_description(options.data)
    require_writable(options.output, make=False)
    for file in options.config:
        _check_config(file)


def run_bundle(
    name: str,
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    *,
    tracking: str | None = None,
    processes: int = 1,
) -> None:
    """Check input and output, then run a configuration of the bundle.

    Args:
        name: ``"train"`` or ``"evaluate"``.
        options: of :func:`add_options`.
        settings: configuration keys from the command's own options; None keeps the default.
        tracking: ``"mlflow"``, or a file of MONAI's tracking settings.
        processes: of a training.

    Raises:
        BoltzFormerError: a setting is unknown or out of range, data are missing, or the output cannot be written.
    """
    overrides = bundle_overrides(options, settings)
    root = bundle_root(options.bundle_root)
    if processes > 1:
        from boltzformer_monai.cli.train_processes import train_in_processes

        train_in_processes(processes, overrides, root=root, overlays=options.config, tracking=tracking)
    else:
        from boltzformer_monai.engines.bundle import run_workflow

        run_workflow(name, overrides, root=root, overlays=options.config, tracking=tracking)


def bundle_overrides(options: argparse.Namespace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of the configuration: the command's options, then ``--set``.

    Args:
        options: of :func:`add_options`.
        settings: configuration keys from the command's own options; None keeps the default.

    Raises:
        BoltzFormerError: as of :func:`run_bundle`, but for keys and values that only the configuration knows.
    """
    check_options(options)
    named = {
        "dataset_dir": str(options.data.absolute()),  # a name may begin with $, MONAI's prefix of expressions
        "output_dir": str(options.output.absolute()),
        "device": options.device,
        "seed": options.seed,
        "plugins": options.plugins or None,
        **settings,
    }
    for key, value in named.items():
        if isinstance(value, str) and (not value or value.startswith(("$", "@"))):
            msg = f"{key} must not be empty or begin with $ or @, MONAI's prefixes of expressions; got {value!r}"
            raise ConfigError(msg)
    for key, _ in options.settings:
        if key in named:
            msg = f"--set {key}: this command has an option for it (see boltzformer {options.command} --help)"
            raise ConfigError(msg)
        if key in FIXED_KEYS:
            raise ConfigError(f"--set {key}: this command relies on it; use python -m monai.bundle for custom runs")
    return {key: value for key, value in named.items() if value is not None} | dict(options.settings)


def _check_config(file: Path) -> None:
    """Check a configuration before MONAI reads it."""
    import yaml

    if file.suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"--config {file}: a configuration is a .json, .yaml or .yml file")
    try:
        text = read_text(file)
        content = parse_json(text) if file.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError("it must be a mapping of keys to settings")
        _check_nodes(content)
    except RecursionError:
        raise ConfigError(f"--config {file}: cannot be read (it is nested too deeply)") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: cannot be read ({why(error)})") from None


def _check_nodes(node: Any, depth: int = 0) -> None:
    """Raise a ``ValueError`` for what MONAI cannot take: keys that are no texts, and deep nesting."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(node, list):
        node = {str(index): each for index, each in enumerate(node)}
    if isinstance(node, dict):
        for key, each in node.items():
            if not isinstance(key, str):
                raise ValueError(f"its key {key!r} is no text; put it in quotes")
            _check_nodes(each, depth + 1)
