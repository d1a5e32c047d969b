"""What the bundle's configurations call that is more than a constructor: checks, defaults and one-line errors."""

from __future__ import annotations

import inspect
import json
import logging
import os
import pydoc
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ComponentLocator, ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from boltzformer_monai.data.slices.tables import read_description
from boltzformer_monai.engines.settings import TrainingSettings
from boltzformer_monai.errors import ConfigError, did_you_mean, user_error, user_line, why
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.presets import create_boltzformer, network_config
from boltzformer_monai.precision import device_by_name, distributed_device
from boltzformer_monai.registry import use_plugins
from boltzformer_monai.storage import require_writable

_log = logging.getLogger(__name__)

# Below these ids the user's own keys are right; what they name is checked where it is used.
FREE_FORM = ("network_overrides", "settings_overrides", "protocol_settings", "_meta_")
# What a configuration may be overlaid with.
OVERLAYS = {"train": ("multi_gpu_train",)}
# Which setting says where a configuration writes.
_WRITES = {"train": "output_dir", "evaluate": "output_dir", "inference": "output"}
# Plain values that an override may give: the type, and the least value.
_NUMBERS: dict[str, tuple[type, float]] = {
    "seed": (int, 0),
    "image_size": (int, 32),
    "batch_size": (int, 1),
    "workers": (int, 0),
    "threshold": (float, 0),
    "tolerance_mm": (float, 0),
    "resamples": (int, 1),
    "repeats": (int, 1),
}
# MONAI's command line hands JSON's words on as texts, and the text "false" is true to Python.
_JSON_WORDS = {"true": "True", "false": "False", "null": "None"}
# Settings that read these texts themselves.
_READ_WORDS = ("presence", "literal")


def start(bundle_root: str | Path, name: str, *, plugins: str | Sequence[str] = ()) -> None:
    """First expression of every configuration: one-line errors; check keys, values and folders; import plugins.

    MONAI accepts any ``--key value``; a misspelt one would silently train with the default.

    Args:
        bundle_root: the bundle's folder.
        name: of the configuration in use, e.g. ``"train"``.
        plugins: modules or ``.py`` files that register parts.

    Raises:
        ConfigError: an override key is not in the configuration and no argument of the component it is given to, a
            value is none that the key takes, the device is not there, ``bundle_root`` is not the bundle, or a plugin
            cannot be imported.
        DatasetError: there is no slice dataset at ``dataset_dir``.
        StorageError: the output folder cannot be written.
    """
    one_line_errors()
    configs = Path(bundle_root) / "configs"
    if not (configs / f"{name}.json").is_file():
        msg = f"no bundle at {bundle_root}; run from the repository's root or give --bundle_root PATH/TO/boltzformer"
        raise ConfigError(msg)
    parser = _parser_in_use()
    _check_keys(parser, configs, name)
    _check_values(parser)
    _check_places(parser, name)
    use_plugins(plugins)


def _check_keys(parser: ConfigParser, configs: Path, name: str) -> None:
    known = {key for key, _ in _entries(DEFAULT_MLFLOW_SETTINGS["configs"])}  # `--tracking mlflow` adds them
    for file in (name, *OVERLAYS.get(name, ())):
        content = json.loads((configs / f"{file}.json").read_text(encoding="utf-8"))
        known.update(key.replace("#", "::") for key, _ in _entries(content))
    for key, _ in _entries(parser.get()):
        free = key.startswith("_") or any(key == part or key.startswith(f"{part}::") for part in FREE_FORM)
        if key not in known and not free and not _is_argument(parser, key):
            hint = did_you_mean(key, sorted(known), show=_option, otherwise=f"see configs/{name}.json for the keys")
            msg = f"unknown override {_option(key)}; {hint}"
            raise ConfigError(msg)


def _check_values(parser: ConfigParser) -> None:
    for key, value in _entries(parser.get()):
        if isinstance(value, str) and value in _JSON_WORDS and key not in _READ_WORDS:
            msg = f"{_option(key)} is the text {value!r}; write {_JSON_WORDS[value]}"
            raise ConfigError(msg)
    for key, (kind, least) in _NUMBERS.items():
        value = parser.get(key)
        if value is None or (isinstance(value, str) and value.startswith(("$", "@"))):
            continue
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not number or not value >= least:
            what = "a whole number" if kind is int else "a number"
            msg = f"--{key} must be {what} of at least {least:g}, got {value!r}"
            raise ConfigError(msg)
    if (device := _literal(parser, "device")) == "auto":
        msg = "--device auto is what happens without --device; leave it out"
        raise ConfigError(msg)
    if device or parser.get("device") == "":
        device_by_name(device)


def _check_places(parser: ConfigParser, name: str) -> None:
    """Look at what is read and written before the network is made and the data are loaded."""
    dataset = _literal(parser, "dataset_dir")
    if dataset and name in ("train", "evaluate"):
        read_description(Path(dataset))
    if place := _literal(parser, _WRITES.get(name, "")):
        require_writable(Path(place).parent if _WRITES[name] == "output" else Path(place))


def run_workflow(name: str, overrides: Mapping[str, Any], *, root: Path, overlays: Sequence[str | Path] = ()) -> None:
    """Run a configuration of the bundle in this process, as ``python -m monai.bundle run`` does.

    Args:
        name: of the configuration, ``"train"`` or ``"evaluate"``.
        overrides: key → value, as ``--key value`` gives them.
        root: the bundle's folder.
        overlays: configuration files that are laid over it, in this order.

    Raises:
        ConfigError: an override names a part of the configuration that is not there.
        RuntimeError: MONAI's, around a user error; :func:`~boltzformer_monai.errors.user_line` finds it.
    """
    # It warns on standard output that logging stays as it is, which is what is wanted here.
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    try:
        workflow = ConfigWorkflow(
            config_file=[str(root / "configs" / f"{name}.json"), *map(str, overlays)],
            workflow_type="train" if name == "train" else "infer",
            logging_file=False,
        )
        # Not as arguments of the constructor: a key of that name would be taken for one of its own.
        workflow.parser.update({**overrides, "bundle_root": str(root)})
    except (KeyError, TypeError, IndexError) as error:  # a part of a key that leads nowhere
        msg = f"an override leads nowhere ({why(error)}); see configs/{name}.json for the keys"
        raise ConfigError(msg) from error
    workflow.initialize()
    workflow.run()
    workflow.finalize()


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
    except RuntimeError as error:  # MONAI wraps what its expressions raise
        raise user_error(error) or error from error


def _literal(parser: ConfigParser, key: str) -> str:
    """A setting that is plain text; "" where it is none, or an expression."""
    value = parser.get(key) if key else None
    return value if isinstance(value, str) and not value.startswith(("$", "@")) else ""


def _is_argument(parser: ConfigParser, key: str) -> bool:
    """Whether the id is an argument that its component takes, although the configuration does not give it."""
    parent, _, argument = key.rpartition("::")
    component = parser.get(parent) if parent else None
    if not isinstance(component, Mapping) or "_target_" not in component:
        return False
    target = str(component["_target_"])
    module = target if "." in target else f"{ComponentLocator().get_component_module_name(target)}.{target}"
    located: Any = pydoc.locate(module)
    for part in inspect.getmro(located) if inspect.isclass(located) else [located] if callable(located) else []:
        parameters = inspect.signature(part).parameters
        if argument in parameters:
            return True
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            break  # what it does not name it does not hand on either, e.g. to PyTorch's DataLoader
    return False


def _entries(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Id and value of all entries of nested mappings; ids are joined as MONAI does."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield f"{prefix}{key}", value
            yield from _entries(value, f"{prefix}{key}::")


def _option(key: str) -> str:
    """An id as it is given on the command line."""
    return f"--{key.replace('::', '#')}"


def _parser_in_use() -> ConfigParser:
    """The parser that is evaluating the expression we were called from; MONAI hands it to no expression."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    msg = "the bundle's configuration must be run by MONAI's ConfigParser"
    raise ConfigError(msg)


def one_line_errors() -> None:
    """Print an uncaught user error (anywhere in the chain of causes) as one line instead of a traceback."""
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


def start_distributed() -> None:
    """Join the process group that torchrun describes in the environment: NCCL on GPUs, Gloo on CPUs.

    Raises:
        ConfigError: the process was not started by torchrun.
    """
    if "LOCAL_RANK" not in os.environ:
        msg = "multi_gpu_train.json is for torchrun: torchrun --nproc_per_node=2 -m monai.bundle run training …"
        raise ConfigError(msg)
    if not torch.distributed.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(distributed_device())
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")


def mask_size_for(defaults: TrainingSettings, image_size: int) -> int:
    """Mask size in the preset's proportion to another image size."""
    return max(1, defaults.mask_size * image_size // defaults.image_size)


def training_network_config(
    preset: str, *, image_size: int, overrides: Mapping[str, Any] | None = None
) -> NetworkConfig:
    """The network's settings for a preset, at an image size, with overrides.

    Raises:
        ConfigError: unknown preset or setting, or the image size among the overrides: the data must know it too.
    """
    if not isinstance(overrides or {}, Mapping) or not all(isinstance(key, str) for key in overrides or {}):
        msg = f"network_overrides must be a mapping like {{'queries': 32}}, got {overrides!r}"
        raise ConfigError(msg)
    if overrides and "image_size" in overrides:
        msg = "give the image size as --image_size, not among network_overrides: the slices must be fitted to it too"
        raise ConfigError(msg)
    return network_config(preset, **{**(overrides or {}), "image_size": image_size})


def training_network(config: NetworkConfig, *, device: torch.device, precision: str) -> BoltzFormer:
    """A network ready to train: on its device, channels last, computing in the given precision."""
    if config.backbone != "tiny" and not config.pretrained:
        _log.info(
            "the backbone starts from random weights; the paper's starts pre-trained: "
            "--network_overrides \"{'pretrained': True}\" downloads timm's weights"
        )
    network = create_boltzformer(config).to(device).to(memory_format=torch.channels_last)
    return network.set_precision(precision)
