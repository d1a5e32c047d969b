"""Functions behind the bundle's configurations: checks, defaults and one-line errors."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import logging
import math
import pydoc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ComponentLocator, ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, DEFAULT_MLFLOW_SETTINGS
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from boltzformer_monai.data.planes import checked_planes
from boltzformer_monai.data.slices.tables import read_description
from boltzformer_monai.data.split import MOST_FOLDS, check_folds
from boltzformer_monai.engines.key_metric import find_key_metric
from boltzformer_monai.engines.resume import AUTO
from boltzformer_monai.engines.settings import TrainingSettings
from boltzformer_monai.errors import ConfigError, did_you_mean, user_error, user_line, why
from boltzformer_monai.evaluation.mask_pair import check_tolerance
from boltzformer_monai.field_types import check_value
from boltzformer_monai.limits import LARGEST_SEED, gigabytes, machine_memory
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.mask_decoder import BOLTZMANN
from boltzformer_monai.networks.presets import network_config
from boltzformer_monai.precision import Precision, device_by_name
from boltzformer_monai.registry import use_plugins
from boltzformer_monai.storage import require_writable

_log = logging.getLogger(__name__)

# Keys below these ids are free; they are checked where they are used.
FREE_FORM = ("init_from", "network_overrides", "settings_overrides", "protocol_settings", "_meta_")
# Overlays of a configuration.
OVERLAYS = {"train": ("multi_gpu_train",)}
# The output setting of each configuration.
_WRITES = {"train": "output_dir", "evaluate": "output_dir", "inference": "output"}
# Numbers that an override may give: type, least and largest value.
_NUMBERS: dict[str, tuple[type, float, float]] = {
    "seed": (int, 0, LARGEST_SEED),
    "image_size": (int, 32, 2**20),
    "batch_size": (int, 1, 2**20),
    "global_batch": (int, 1, 2**31 - 1),
    "workers": (int, 0, 2**10),
    "save_minutes": (float, 0, math.inf),
    "save_steps": (int, 0, 2**31 - 1),
    "threshold": (float, 0, 1),
    "tolerance_mm": (float, 0, math.inf),
    "overlays": (int, 0, 64),
    "resamples": (int, 1, 2**20),
    "repeats": (int, 1, 100),
    "tta": (int, 1, 5),
    "folds": (int, 2, MOST_FOLDS),
    "fold": (int, 0, MOST_FOLDS - 1),
}
_PATHS = ("dataset_dir", "demo_dir", "output_dir", "resume", "checkpoint", "image", "output")
# MONAI's command line passes JSON literals as strings, and the string "false" is truthy.
_JSON_WORDS = {"true": "True", "false": "False", "null": "None"}
# Settings that parse these strings.
_READ_WORDS = ("presence", "literal")


def start(bundle_root: str | Path, name: str, *, plugins: str | Sequence[str] = ()) -> None:
    """Check keys, values and folders, and import plugins: the first expression of every configuration.

    MONAI accepts any ``--key value``, so a misspelt key would silently train with the default.

    Args:
        bundle_root: the bundle's folder.
        name: of the configuration in use, e.g. ``"train"``.
        plugins: modules or ``.py`` files that register parts.

    Raises:
        ConfigError: an override key is neither in the configuration nor an argument of its component, a value, device
            or key metric is invalid, ``bundle_root`` is not the bundle, or a plugin cannot be imported.
        DatasetError: there is no slice dataset at ``dataset_dir``.
        StorageError: the output folder cannot be written.
    """
    one_line_errors()
    configs = Path(str(bundle_root)) / "configs"
    if not (configs / f"{name}.json").is_file():
        msg = f"no bundle at {bundle_root}; run in the bundle's folder or give --bundle_root PATH/TO/boltzformer"
        raise ConfigError(msg)
    parser = _parser_in_use()
    _check_keys(parser, configs, name)
    _check_values(parser, _shipped(configs, name))
    _replace_components(parser, _shipped(configs, name))
    _check_places(parser, name)
    _check_tracking(parser)
    use_plugins(plugins)
    if name == "train" and not is_expression(metric := parser.get("key_metric")):
        find_key_metric(metric)


def find_bundle() -> str:
    """Where the bundle is without ``--bundle_root``: in a clone's ``bundles/boltzformer``, else in the current folder.

    The model zoo's commands run in the bundle's folder. :func:`start` checks that it is one.
    """
    clone = "bundles/boltzformer"
    return clone if Path(clone, "configs").is_dir() else "."


def _check_keys(parser: ConfigParser, configs: Path, name: str) -> None:
    known = {key for key, _ in _entries(DEFAULT_MLFLOW_SETTINGS["configs"])}  # `--tracking mlflow` adds them
    for file in (name, *OVERLAYS.get(name, ())):
        known.update(key.replace("#", "::") for key, _ in _entries(_shipped(configs, file)))
    for key, _ in _entries(parser.get()):
        free = key.startswith("_") or any(key == part or key.startswith(f"{part}::") for part in FREE_FORM)
        if key not in known and not free and not _is_argument(parser, key):
            hint = did_you_mean(key, sorted(known), show=_option, otherwise=f"see configs/{name}.json for the keys")
            raise ConfigError(f"unknown override {_option(key)}; {hint}")


def _replace_components(parser: ConfigParser, shipped: Mapping[str, Any]) -> None:
    """Take from components with another ``_target_`` the shipped arguments that this one does not have, e.g. a loss."""
    for key, component in _entries(shipped):
        given = parser.get(key)
        if not isinstance(component, Mapping) or not isinstance(given, dict) or "_target_" not in component:
            continue
        if (target := given.get("_target_")) == component["_target_"] or is_expression(target):
            continue
        try:
            located = _located(target)
        except Exception as error:  # whatever importing somebody's module raises
            raise ConfigError(f"{_option(key)}#_target_ {target} cannot be imported: {why(error)}") from error
        if not callable(located):
            msg = f"{_option(key)}#_target_ {target}: there is no such class or function; give it as MODULE.NAME"
            raise ConfigError(msg)
        left = [name for name, value in component.items() if name[0] != "_" and given.get(name) == value]
        for argument in left:
            if not _is_argument(parser, f"{key}::{argument}"):
                del given[argument]
        arguments = {name: value for name, value in given.items() if not name.startswith("_")}
        try:
            inspect.signature(located).bind(**arguments)
        except TypeError as error:
            msg = f"{_option(key)}#_target_ {target}: {error}; give it as {_option(key)}#ARGUMENT"
            raise ConfigError(msg) from None
        except ValueError:  # a class of C++ has no signature
            continue


def _shipped(configs: Path, name: str) -> dict[str, Any]:
    """A configuration without overrides."""
    return json.loads((configs / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _check_values(parser: ConfigParser, shipped: Mapping[str, Any]) -> None:
    for key, value in _entries(parser.get()):
        if isinstance(value, str) and value in _JSON_WORDS and key not in _READ_WORDS:
            raise ConfigError(f"{_option(key)} is the text {value!r}; write {_JSON_WORDS[value]}")
    plain = {key: value for key, value in parser.get().items() if not is_expression(value)}
    for key, value in plain.items():
        if value is None and shipped.get(key) is not None:
            raise ConfigError(f"--{key} must not be None; leave it out for the default")
    for key, (kind, least, most) in _NUMBERS.items():
        value = plain.get(key, least)
        if value is None and key in shipped and shipped[key] is None:
            continue  # an option that is off
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            what = "a whole number" if kind is int else "a number"
            limits = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:.10g}"
            raise ConfigError(f"--{key} must be {what} {limits}, got {value!r}")
    check_folds(plain.get("folds"), plain.get("fold"))
    for key in _PATHS:
        if not isinstance(plain.get(key, ""), str | Path | None):
            raise ConfigError(f"--{key} must be a text, got {plain[key]!r}")
    if not isinstance(plain.get("device", ""), str | torch.device):
        raise ConfigError(f"--device must be a name such as 'cpu' or 'cuda:1', got {plain['device']!r}")
    if (device := _literal(parser, "device")) == "auto":
        raise ConfigError("--device auto is what happens without --device; leave it out")
    if device or parser.get("device") == "":
        device_by_name(device)


def _check_places(parser: ConfigParser, name: str) -> None:
    """Check input and output folders before the network is built and data are loaded."""
    dataset = _literal(parser, "dataset_dir")
    if dataset and name in ("train", "evaluate"):
        read_description(Path(dataset))
    resume = _literal(parser, "resume")
    if resume and resume != AUTO and not Path(resume).exists():
        raise ConfigError(f"--resume {resume}: no such file or folder; give auto, a state, or a folder of a training")
    if place := _literal(parser, _WRITES.get(name, "")):
        require_writable(Path(place).parent if _WRITES[name] == "output" else Path(place))


def _check_tracking(parser: ConfigParser) -> None:
    """Check that what ``--tracking`` adds can be used."""
    lists = [value for key, value in _entries(parser.get()) if key.endswith("handlers") and isinstance(value, list)]
    kinds = {each.get("_target_") for handlers in lists for each in handlers if isinstance(each, Mapping)}
    if "MLFlowHandler" in kinds and importlib.util.find_spec("mlflow") is None:
        raise ConfigError("--tracking mlflow needs MLflow; pip install 'boltzformer-monai[tracking]'")


def run_workflow(
    name: str,
    overrides: Mapping[str, Any],
    *,
    root: Path,
    overlays: Sequence[str | Path] = (),
    tracking: str | None = None,
    before: Callable[[ConfigParser], None] | None = None,
) -> None:
    """Run a configuration of the bundle in this process, as ``python -m monai.bundle run`` does.

    Args:
        name: of the configuration, ``"train"`` or ``"evaluate"``.
        overrides: key → value, as ``--key value`` gives them.
        root: the bundle's folder.
        overlays: configuration files that override it, in this order.
        tracking: ``"mlflow"``, or a file of MONAI's tracking settings.
        before: called between initialisation and run; finds the parts by ``parser.get_parsed_content``.

    Raises:
        ConfigError: an override refers to a missing part of the configuration.
        RuntimeError: MONAI's, around a user error; :func:`~boltzformer_monai.errors.user_line` finds it.
    """
    workflow = _workflow(name, overrides, root, overlays)
    if tracking is not None:
        workflow.patch_bundle_tracking(workflow.parser, _tracking_settings(tracking))
    workflow.initialize()
    if before is not None:
        before(workflow.parser)
    workflow.run()
    workflow.finalize()


def check_training(
    overrides: Mapping[str, Any], *, root: Path, overlays: Sequence[str | Path] = ()
) -> tuple[TrainingSettings, str]:
    """Check keys and values of a training as its start does, its settings and its network's.

    Nothing is written, and no network is built.

    Args:
        overrides: key → value.
        root: the bundle's folder.
        overlays: configuration files that override it, in this order.

    Returns:
        The settings, with the preset that ``auto`` means here, and the key metric.

    Raises:
        BoltzFormerError: one is unknown or out of range, or there is no dataset.
    """
    parser = _workflow("train", overrides, root, overlays).parser
    configs = root / "configs"
    _check_keys(parser, configs, "train")
    _check_values(parser, _shipped(configs, "train"))
    use_plugins(parser.get("plugins"))
    try:
        settings, _, key_metric = map(parser.get_parsed_content, ("settings", "network_config", "key_metric"))
    except RuntimeError as error:  # MONAI wraps exceptions of expressions
        if (known := user_error(error)) is None:
            raise
        raise known from None  # from what holds it, it would be its own cause
    find_key_metric(key_metric)
    return settings, str(key_metric)


def check_evaluation(overrides: Mapping[str, Any], *, root: Path) -> None:
    """Check keys and values of an evaluation as its start and its parts do; nothing is loaded.

    Args:
        overrides: key → value.
        root: the bundle's folder.

    Raises:
        ConfigError: one is unknown or out of range.
    """
    parser = _workflow("evaluate", overrides, root, ()).parser
    _check_keys(parser, root / "configs", "evaluate")
    _check_values(parser, _shipped(root / "configs", "evaluate"))
    plain = {key: value for key, value in parser.get().items() if not is_expression(value)}
    for key in ("focus", "fresh_draws"):
        check_value(f"--{key}", plain.get(key, False), bool)
    check_value("--precision", plain.get("precision", "auto"), Precision)
    check_tolerance(plain.get("tolerance_mm", 1.0))
    if not 0 < (threshold := plain.get("threshold", 0.5)) < 1:
        raise ConfigError(f"--threshold must be above 0 and below 1, got {threshold}")
    if plain.get("planes") is not None:
        checked_planes(plain["planes"])


def _workflow(name: str, overrides: Mapping[str, Any], root: Path, overlays: Sequence[str | Path]) -> ConfigWorkflow:
    # Silence its warning about the missing logging file.
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    try:
        workflow = ConfigWorkflow(
            config_file=[str(root / "configs" / f"{name}.json"), *map(str, overlays)],
            workflow_type="train" if name == "train" else "infer",
            logging_file=False,
        )
        # As constructor arguments, keys could collide with its own parameters.
        workflow.parser.update({**overrides, "bundle_root": str(root)})
    except (KeyError, TypeError, IndexError) as error:  # a key below a missing part
        raise ConfigError(f"an override leads nowhere ({why(error)}); see configs/{name}.json for the keys") from error
    return workflow


def _tracking_settings(tracking: str) -> dict[str, Any]:
    if tracking in DEFAULT_EXP_MGMT_SETTINGS:
        return copy.deepcopy(DEFAULT_EXP_MGMT_SETTINGS[tracking])  # MONAI makes them part of the configuration
    return ConfigParser.load_config_files(tracking)  # type: ignore[no-any-return]


def make_training(
    overrides: Mapping[str, Any], *, root: Path
) -> tuple[SupervisedTrainer, SupervisedEvaluator, torch.optim.lr_scheduler.LRScheduler]:
    """Trainer, evaluator and scheduler as the bundle's ``train.json`` wires them, for
    :func:`~boltzformer_monai.engines.trainer.run_training`.

    Args:
        overrides: key → value; besides plain values and expressions also objects, e.g. a network as ``network_def``.
        root: the bundle's folder.

    Raises:
        BoltzFormerError: there is nothing to train on, or a setting is out of range.
    """
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "train.json"))
    parser.update(dict(overrides))
    try:
        return tuple(map(parser.get_parsed_content, ("train#trainer", "validate#evaluator", "scheduler")))  # type: ignore[return-value]
    except RuntimeError as error:  # MONAI wraps exceptions of expressions
        if (known := user_error(error)) is None:
            raise
        raise known from None  # from what holds it, it would be its own cause


def _literal(parser: ConfigParser, key: str) -> str:
    """A string setting; "" for other types and expressions."""
    value = parser.get(key) if key else None
    return value if isinstance(value, str) and not is_expression(value) else ""


def is_expression(value: object) -> bool:
    """Whether MONAI evaluates a setting instead of taking it as it is."""
    return isinstance(value, str) and value.startswith(("$", "@"))


def _is_argument(parser: ConfigParser, key: str) -> bool:
    """Whether the id is a valid argument of its component that the configuration omits."""
    parent, _, argument = key.rpartition("::")
    component = parser.get(parent) if parent else None
    if not isinstance(component, Mapping) or "_target_" not in component:
        return False
    located = _located(component["_target_"])
    for part in inspect.getmro(located) if inspect.isclass(located) else [located] if callable(located) else []:
        parameters = inspect.signature(part).parameters
        if argument in parameters:
            return True
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            break  # without **kwargs nothing is passed on to the base class, e.g. PyTorch's DataLoader
    return False


def _located(target: object) -> Any:
    """The class or function that a ``_target_`` names; ``None`` if there is none."""
    name = str(target)
    return pydoc.locate(name if "." in name else f"{ComponentLocator().get_component_module_name(name)}.{name}")


def _entries(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All entries of nested mappings, with MONAI's ids."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield f"{prefix}{key}", value
            yield from _entries(value, f"{prefix}{key}::")


def _option(key: str) -> str:
    """An id as a command-line option."""
    return f"--{key.replace('::', '#')}"


def _parser_in_use() -> ConfigParser:
    """The calling ConfigParser, found on the stack: MONAI does not pass it to expressions."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    raise ConfigError("the bundle's configuration must be run by MONAI's ConfigParser")


def one_line_errors() -> None:
    """Print uncaught user errors (anywhere in the chain of causes) as one line instead of a traceback."""
    previous = sys.excepthook
    if getattr(previous, "prints_one_line", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if (line := user_line(error)) is not None:
            sys.stderr.write(f"error: {line}\n")
        elif issubclass(kind, KeyboardInterrupt):
            sys.stderr.write("\ninterrupted\n")  # behind the progress bar
        else:
            previous(kind, error, trace)

    hook.prints_one_line = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def mask_size_for(defaults: TrainingSettings, image_size: int) -> int:
    """Scale the preset's mask size to another image size."""
    return max(1, defaults.mask_size * image_size // defaults.image_size)


def training_network_config(
    preset: str, *, image_size: int, overrides: Mapping[str, Any] | None = None
) -> NetworkConfig:
    """Network settings of a preset at an image size, with overrides.

    Raises:
        ConfigError: unknown preset or setting, the image size among the overrides (the data must know it too), or a
            network that the machine's memory cannot hold.
    """
    if not isinstance(overrides or {}, Mapping) or not all(isinstance(key, str) for key in overrides or {}):
        raise ConfigError(f"network_overrides must be a mapping like {{'queries': 32}}, got {overrides!r}")
    if overrides and "image_size" in overrides:
        msg = "give the image size as --image_size, not among network_overrides: the slices must be fitted to it too"
        raise ConfigError(msg)
    config = network_config(preset, **{**(overrides or {}), "image_size": image_size})
    if (needed := _least_bytes(config)) > (memory := machine_memory()):
        msg = (
            f"this network needs more than {gigabytes(needed)} for its weights and one image, and the machine has "
            f"{gigabytes(memory)}; choose a smaller image_size, dim, hidden or number of layers"
        )
        raise ConfigError(msg)
    return config


def _least_bytes(config: NetworkConfig) -> int:
    """What weights, one image and its finest feature map take in float32, without backbone and guests."""
    dim, width = config.dim, config.text_width
    feed_forward = 2 * dim * config.hidden
    weights = 36 * dim**2 + config.pixel_layers * (4 * dim**2 + feed_forward)
    if config.text_model is None:
        weights += config.text_layers * 12 * width**2
    if config.decoder == BOLTZMANN:
        weights += config.layers * (8 * dim**2 + feed_forward) + 2 * config.queries * dim
    return 4 * (weights + dim * (config.image_size // 4) ** 2 + config.in_channels * config.image_size**2)
