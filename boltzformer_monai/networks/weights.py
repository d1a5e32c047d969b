"""Checkpoints: the weights with a description of the network and of the slices it was trained on.

A checkpoint is ``{"model": state dict, "description": plain values}``, read by ``torch.load(weights_only=True)``, so an
untrusted file runs no code. Loading is strict: all weights fit, or the error names those that do not.
"""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from boltzformer_monai.errors import CheckpointError, ConfigError, cannot_open, why
from boltzformer_monai.field_types import check_value
from boltzformer_monai.modality import stored_modality
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.mapped import load_weights
from boltzformer_monai.networks.presets import create_boltzformer
from boltzformer_monai.storage import disk_refusal, replacing

Named = Callable[[str], str]
"""Writes the name of a weight."""

FORMAT = "boltzformer-checkpoint"
VERSION = 2
"""Version 1, with aggregation and presence head outside the decoder, can still be read."""

# What torch.load raises on truncated and altered files.
_DAMAGE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    MemoryError, struct.error, pickle.UnpicklingError,
)  # fmt: skip

# What an altered description raises.
_CLAIMS = (LookupError, AttributeError, TypeError, ValueError, RuntimeError, ArithmeticError, ConfigError)

_ZIP = b"PK\x03\x04"  # magic number of PyTorch's archives
# Fields of a trained target; the window's values are checked where it is applied.
_TARGET = {"target": str, "modality": str, "site": str, "window": Mapping[str, str | float]}


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically.

    Args:
        content: ``{"model": state dict, "description": plain values}``.
        path: of the file; its folder is created.

    Raises:
        StorageError: it cannot be written; an existing checkpoint is left untouched.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # PyTorch's ZIP writer hides the error of the disk
            if (refusal := disk_refusal(error)) is None:
                raise
            raise refusal from None


class Description:
    """Metadata of a checkpoint; saved like a module, through its state dict.

    Args:
        network: every setting of the network.
        data: what inference needs to know about the training slices: plane, modality, targets with their windows.
    """

    def __init__(self, network: NetworkConfig, data: Mapping[str, Any]) -> None:
        self.network = network
        self.data: dict[str, Any] = dict(data)

    def state_dict(self) -> dict[str, Any]:
        """Plain values only."""
        # The checkpoint contains the pre-trained weights: loading must not download them again.
        network = dataclasses.asdict(dataclasses.replace(self.network, pretrained=False))
        network["mean"], network["std"] = list(self.network.mean), list(self.network.std)
        del network["fast"]  # not a property of the weights
        return {"format": FORMAT, "version": VERSION, "network": network, "data": self.data}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved description.

        Raises:
            CheckpointError: its format or version is another, or it has unknown network settings.
            ConfigError: a value has the wrong type, or is no plane or modality.
        """
        if state.get("format") != FORMAT or state.get("version") not in (1, VERSION):
            found = f"{state.get('format')!r} of version {state.get('version')!r}"
            raise CheckpointError(f"not a BoltzFormer checkpoint of version 1 or {VERSION}: it says {found}")
        settings = dict(state["network"])
        if state["version"] == 1 and str(settings.get("backbone")).startswith("focalnet"):
            settings["backbone_settings"] = {"normalize_modulator": True}  # version 1 set it for every FocalNet
        known = {field.name for field in dataclasses.fields(NetworkConfig)}
        if unknown := sorted(set(settings) - known):
            msg = f"the checkpoint was made by a newer version: unknown network settings {', '.join(unknown)}"
            raise CheckpointError(msg)
        settings["pretrained"] = False  # an untrusted file must not trigger downloads
        settings["mean"], settings["std"] = tuple(settings["mean"]), tuple(settings["std"])
        self.network = NetworkConfig(**{"fast": self.network.fast, **settings})
        self.data = dict(state["data"])
        _check_data(self.data)


def _check_data(data: Mapping[str, Any]) -> None:
    """Check the types of what inference and the label server read of the training slices.

    Raises:
        ConfigError: a value has the wrong type, or is no plane or modality.
    """
    check_value("plane", data.get("plane", "axial"), Literal["axial", "coronal", "sagittal"])
    check_value("planes", data.get("planes", ["axial"]), list[Literal["axial", "coronal", "sagittal"]])
    check_value("protocol", data.get("protocol"), str | None)
    check_value("protocol_settings", data.get("protocol_settings", {}), Mapping[str, bool | float | str])
    check_value("learned", data.get("learned", {}), Mapping[str, list[str]])
    check_value("targets", targets := data.get("targets", []), list[Mapping[str, Any]])
    for number, entry in enumerate(targets):
        for field, kind in _TARGET.items():
            check_value(f"{field} of targets[{number}]", entry.get(field), kind)
        stored_modality(entry["modality"])


def read_weights(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a ``.pt`` or ``.safetensors`` file without running any code from it.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint.
    """
    file = Path(path)
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder, not a checkpoint; give the model.pt in it")
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}; train one, or give the path of a model.pt")
    _check_records(file)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(file))
    except _DAMAGE as error:
        # PyTorch's message advises loading the file unsafely, so it is not passed on.
        raise _unreadable(file, error) from error
    except Exception as error:  # safetensors has an exception type of its own
        if type(error).__module__.startswith("safetensors"):
            raise CheckpointError(f"{file} cannot be read as a checkpoint ({why(error)})") from error
        raise
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a checkpoint")
    return content


def _unreadable(file: Path, error: BaseException) -> CheckpointError:
    if (closed := cannot_open(file, error)) is not None:
        return CheckpointError(str(closed))
    if found := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
        msg = (
            f"{file} cannot be read as a checkpoint: loading its {found[1]} could run code; save its weights alone, "
            "as .safetensors"
        )
        return CheckpointError(msg)
    msg = f"{file} cannot be read as a checkpoint: it is damaged, or not a model.pt of this package; copy it again"
    return CheckpointError(msg)


def _check_records(file: Path) -> None:
    """Refuse archives that PyTorch does not write: decompressing them could fill the memory (ZIP bomb).

    Raises:
        CheckpointError: a record is compressed, or the records together are larger than the file.
    """
    try:
        with file.open("rb") as start:
            if start.read(len(_ZIP)) != _ZIP:  # PyTorch's older format, safetensors, or no checkpoint
                return
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (*_DAMAGE, zipfile.BadZipFile) as error:
        raise _unreadable(file, error) from error
    if (
        any(record.compress_type != zipfile.ZIP_STORED for record in records)
        or sum(record.file_size for record in records) > file.stat().st_size
    ):
        msg = f"{file} holds compressed or overlapping records, which no checkpoint of PyTorch has; save it anew"
        raise CheckpointError(msg)


def load_checkpoint(path: str | Path, *, device: torch.device | str = "cpu") -> tuple[BoltzFormer, Description]:
    """Load a network, in evaluation mode on ``device``, and its description.

    Raises:
        CheckpointError: the file is missing, damaged or of another package, or weights and description disagree.
    """
    network, description = described_network(read_weights(path, mapped=True), path)
    return network.to(device).eval(), description


def described_network(content: Mapping[str, Any], path: str | Path) -> tuple[BoltzFormer, Description]:
    """The network of a checkpoint's content, on the CPU, and its description.

    Args:
        content: ``{"model": state dict, "description": plain values}``.
        path: of the file that the weights are from.

    Raises:
        CheckpointError: as :func:`check_content`, or a weight is no finite number: every mask would be empty.
    """
    description, weights = check_content(content, path)
    try:
        network = create_boltzformer(description.network)
    except _CLAIMS as error:
        raise _unusable(path, error) from error
    load_strictly(network, weights, source=str(path))
    used = itertools.chain(network.named_parameters(), (("mean", network.mean), ("std", network.std)))
    # A sum takes no memory, and is finite for no weight that holds infinity or NaN.
    if (wrong := next((name for name, weight in used if not weight.detach().sum().isfinite()), None)) is not None:
        msg = f"{path}: its weight {wrong} holds numbers that are not finite; take another checkpoint"
        raise CheckpointError(msg)
    return network, description


def check_content(content: Mapping[str, Any], path: str | Path) -> tuple[Description, Mapping[str, Tensor]]:
    """Description and weights of a checkpoint's content, under their current names; no network takes memory.

    Args:
        content: ``{"model": state dict, "description": plain values}``.
        path: of the file that the weights are from.

    Raises:
        CheckpointError: it is not of this package, or its weights do not fit its description.
    """
    if not all(isinstance(content.get(part), Mapping) for part in ("model", "description")):
        msg = f"{path} has no description of its network: it is not a checkpoint that this package's training wrote"
        raise CheckpointError(msg)
    description = read_description(content["description"], path)
    weights = current_names(content["model"], content["description"])
    try:
        check_bytes(weights, path)
        check_described(description.network, weights, source=str(path))
    except _CLAIMS as error:
        raise _unusable(path, error) from error
    return description, weights


def read_description(state: Mapping[str, Any], path: str | Path) -> Description:
    """Restore the description of a checkpoint.

    Raises:
        CheckpointError: it is of another format or version, or cannot be used.
    """
    description = Description(NetworkConfig(backbone="tiny", image_size=32), {})
    try:
        description.load_state_dict(state)
    except _CLAIMS as error:
        raise _unusable(path, error) from error
    return description


def _unusable(path: str | Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{path}: its description cannot be used ({why(error)}); copy it again, or train it anew")


def current_names(weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Weights under the names of the current version."""
    if description.get("version") != 1:
        return weights
    return {_current_name(name): weight for name, weight in weights.items()}


def _current_name(name: str) -> str:
    """Current name of a weight of version 1."""
    if name.startswith("decoder."):
        return f"decoder.query_decoder.{name.removeprefix('decoder.')}"
    return f"decoder.{name}" if name.startswith(("aggregation.", "presence.")) else name


@contextmanager
def _at_most(parameters: int, source: str) -> Iterator[None]:
    """Limit the parameters of a network that this thread is constructing.

    Raises:
        CheckpointError: it registers more.
    """
    found, thread = itertools.count(1), threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if threading.get_ident() == thread and next(found) > parameters:
            raise CheckpointError(f"{source} describes a network of more layers than it holds weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_bytes(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Compare the size of weights with that of their file.

    Raises:
        CheckpointError: they share storage that is smaller than they claim.
    """
    tensors = [weight for weight in weights.values() if isinstance(weight, Tensor)]
    if sum(weight.numel() * weight.element_size() for weight in tensors) > 2 * Path(path).stat().st_size:
        msg = f"{path} holds fewer bytes than its weights claim; it is no checkpoint that a training wrote"
        raise CheckpointError(msg)


def check_described(
    config: NetworkConfig, weights: Mapping[str, Tensor], *, source: str, names: Callable[[], Named] | None = None
) -> None:
    """Compare description and weights on the meta device: an untrusted description may claim any size.

    Args:
        config: as described.
        weights: by name.
        source: begins the messages.
        names: see :func:`compare`.

    Raises:
        CheckpointError: they do not fit.
    """
    if config.text_model is None:  # transformers models load their own weights
        # timm registers more parameters than it keeps: those of the head, and some twice.
        with torch.device("meta"), _at_most(3 * len(weights) + 100, source):
            network = create_boltzformer(config)
        if (problem := _misfit(network, weights, source=source, names=names)) is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch: nothing is copied to a meta tensor
                _load_by_hooks(network, weights, problem)


def load_strictly(
    network: nn.Module, weights: Mapping[str, Tensor], *, source: str, names: Callable[[], Named] | None = None
) -> None:
    """Load all weights or none.

    Raises:
        CheckpointError: weights are missing, unknown or of another shape; the message names them.
    """
    if (problem := _misfit(network, weights, source=source, names=names)) is not None:
        before = {name: weight.clone() for name, weight in network.state_dict().items() if isinstance(weight, Tensor)}
        try:
            _load_by_hooks(network, weights, problem)
        except CheckpointError:
            load_weights(network, before, strict=False)
            raise
        return
    try:
        load_weights(network, weights)
    except _CLAIMS as error:  # of a guest's module
        raise CheckpointError(f"{source} does not fit this network ({why(error)})") from error


def _misfit(
    network: nn.Module, weights: Mapping[str, Tensor], *, source: str, names: Callable[[], Named] | None
) -> CheckpointError | None:
    """What is wrong with the weights by their names and shapes.

    Raises:
        CheckpointError: the same, where no module of the network loads in a way of its own.
    """
    try:
        compare(network.state_dict(), weights, source=source, names=names)
    except CheckpointError as error:
        usual = nn.Module._load_from_state_dict
        for module in network.modules():
            if module._load_state_dict_pre_hooks or type(module)._load_from_state_dict is not usual:
                return error
        raise
    return None


def _load_by_hooks(network: nn.Module, weights: Mapping[str, Tensor], problem: CheckpointError) -> None:
    """Load what fits once the modules' own hooks have renamed or converted it.

    Raises:
        CheckpointError: the problem stays.
    """
    try:
        load_weights(network, weights)
    except _CLAIMS as error:
        raise problem from error


def compare(
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    source: str,
    names: Callable[[], Named] | None = None,
) -> None:
    """Compare names and shapes of weights with those of a network, or of a part of one.

    Args:
        own: of the network.
        weights: that it is to get.
        source: begins the messages.
        names: makes what writes a name as the user knows it, where that is not ours.

    Raises:
        CheckpointError: weights are missing, unknown or of another shape; the message names them.
    """
    others = [name for name, weight in weights.items() if not isinstance(weight, Tensor) and not _is_extra(name)]
    if others:
        raise CheckpointError(f"{source} is not a checkpoint: its entry {others[0]!r} is no tensor")
    both = [name for name in own if name in weights and not _is_extra(name)]
    problems = {
        "missing": sorted(set(own) - set(weights)),
        "unknown": sorted(set(weights) - set(own)),
        "of another shape": sorted(k for k in both if own[k].shape != weights[k].shape),
        "of another kind of number": sorted(
            k for k in both if own[k].is_floating_point() != weights[k].is_floating_point()
        ),
    }
    if any(problems.values()):
        named = str if names is None else names()
        found = [
            f"{len(those)} {kind} ({', '.join(map(named, those[:3]))}{', …' if len(those) > 3 else ''})"
            for kind, those in problems.items()
            if those
        ]
        raise CheckpointError(f"{source} does not fit this network: weights {'; '.join(found)}")


def _is_extra(name: str) -> bool:
    """Whether it is what a module keeps beside its weights, of any form (``get_extra_state``)."""
    return name.rpartition(".")[2] == "_extra_state"
