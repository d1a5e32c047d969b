"""A model as a folder: ``model.safetensors``, ``config.json`` and a card; every door loads models here.

Weights are checked by the hash in ``config.json`` before they are read, and the description by its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzformer_monai.errors import CheckpointError, why
from boltzformer_monai.models.card import write_card
from boltzformer_monai.models.config import ModelConfig, check_weights, model_sha256, read_config, unchanged
from boltzformer_monai.models.licence import Licence
from boltzformer_monai.models.place import CONFIG, WEIGHTS, Place, locate, require_replaceable
from boltzformer_monai.models.safetensors_file import write_safetensors
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.weights import (
    Description,
    described_network,
    load_checkpoint,
    read_weights,
)
from boltzformer_monai.storage import file_sha256, replacing_folder

__all__ = ["LoadedModel", "load_model", "read_model", "save_model", "show_licence"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network in memory, and what it is.

    Attributes:
        network: in evaluation mode.
        description: of the network and its training data.
        sha256: of all that decides its results: of the file, or of a folder's weights and description.
        licence: where the model states one.
        place: where it was read.
    """

    network: BoltzFormer
    description: Description
    sha256: str
    licence: Licence | None
    place: Place


def load_model(place: str | Path, *, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a model from a checkpoint, a model folder, or the hub's cache; nothing is fetched.

    Args:
        place: see :func:`~boltzformer_monai.models.place.locate`.
        device: where the network goes.

    Raises:
        CheckpointError: there is none, it is damaged or was changed, or its weights do not fit its description.
    """
    found = locate(place)
    if found.is_folder:
        config = read_config(found.path)
        network, description = described_network(_content(found.path, config), found.path / WEIGHTS)
        network, sha256 = network.to(device).eval(), config.sha256
    else:
        with unchanged(found.path):
            sha256 = model_sha256(found)
            network, description = load_checkpoint(found.path, device=device)
    return LoadedModel(
        network=network,
        description=description,
        sha256=sha256,
        licence=Licence.of(description.data),
        place=found,
    )


def read_model(place: str | Path) -> dict[str, Any]:
    """``{"model": state dict, "description": plain values}`` of a model, checked by its hashes, without a network.

    Raises:
        CheckpointError: as :func:`load_model`.
    """
    found = locate(place)
    if found.is_folder:
        return _content(found.path, read_config(found.path))
    return read_weights(found.path, mapped=True)


def save_model(
    content: Mapping[str, Any], folder: str | Path, *, checkpoint: Path | None = None, name: str | None = None
) -> ModelConfig:
    """Write a model folder in one step; one that is there already is replaced, with its metrics.

    Args:
        content: ``{"model": state dict, "description": plain values}``.
        folder: of the model.
        checkpoint: file that the content was read from.
        name: of the model, in its card; by default the folder's.

    Raises:
        CheckpointError: there is something else at ``folder``, or the description cannot be kept as JSON.
        StorageError: it cannot be written; an older one stays as it was.
    """
    target = Path(folder)
    require_replaceable(target)
    weights: Mapping[str, Tensor] = content["model"]
    try:
        description = json.loads(json.dumps(content["description"], allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{target}: the model's description cannot be kept as JSON ({why(error)})") from error
    with replacing_folder(target) as temporary:
        with contextlib.nullcontext() if checkpoint is None else unchanged(checkpoint):
            write_safetensors(weights, temporary / WEIGHTS)  # from the checkpoint, which they are mapped from
            checkpoint_sha256 = "" if checkpoint is None else file_sha256(checkpoint)
        config = ModelConfig(
            description=description,
            weights_sha256=file_sha256(temporary / WEIGHTS),
            parameters=sum(weight.numel() for weight in weights.values()),
            checkpoint_sha256=checkpoint_sha256,
        )
        (temporary / CONFIG).write_text(config.as_json(), encoding="utf-8")
        write_card(temporary, config, name=name or target.resolve().name)
    return config


def show_licence(model: LoadedModel) -> None:
    """Log the licence of weights whose use is restricted."""
    if model.licence is not None and model.licence.restricted:
        _log.warning("the weights of %s are restricted: %s", model.place.path, model.licence)


def _content(folder: Path, config: ModelConfig) -> dict[str, Any]:
    with unchanged(folder / WEIGHTS):
        check_weights(folder, config)
        return {"model": read_weights(folder / WEIGHTS), "description": config.description}
