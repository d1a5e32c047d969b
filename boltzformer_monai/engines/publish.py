"""The model folder that a training leaves beside its checkpoint, and the numbers of an evaluation in it."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.models.card import add_metrics, write_bundle_metrics
from boltzformer_monai.models.config import is_model_folder, read_config
from boltzformer_monai.models.folder import save_model
from boltzformer_monai.models.place import CARD, locate
from boltzformer_monai.networks.weights import read_weights
from boltzformer_monai.storage import file_sha256

__all__ = ["MODEL_FOLDER", "publish_metrics", "publish_model", "require_card"]

_log = logging.getLogger(__name__)

MODEL_FOLDER = "model"


def publish_model(checkpoint: str | Path, *, is_main: bool = True) -> None:
    """Write the best checkpoint of a training as a model folder, ``model`` beside it.

    Nothing happens without a checkpoint, in other processes than the first, or where the folder is made of it already.

    Args:
        checkpoint: ``model.pt`` of the training, with its presence thresholds.
        is_main: whether this process writes anything.

    Raises:
        CheckpointError: there is something else in the folder's place.
        StorageError: it cannot be written.
    """
    path = Path(checkpoint)
    if not is_main or not path.is_file():
        return
    folder = path.with_name(MODEL_FOLDER)
    if folder.is_dir() and read_config(folder).checkpoint_sha256 == file_sha256(path):
        return
    save_model(read_weights(path), folder, checkpoint=path, name=path.resolve().parent.name)
    _log.info("the model as a folder, with its card: %s", folder)


def require_card(checkpoint: str | Path, *, wanted: bool) -> None:
    """Check that an evaluation's numbers have a card to go to, before they are computed.

    Raises:
        ConfigError: a card is wanted, and the model has none, since it is no folder.
        CheckpointError: there is no model.
    """
    if not isinstance(wanted, bool):
        raise ConfigError(f"--update_card must be True or False, got {wanted!r}")
    if wanted and _folder_of(checkpoint) is None:
        msg = (
            f"--update_card: {checkpoint} is a checkpoint without a card; boltzformer weights convert makes its folder"
        )
        raise ConfigError(msg)


def publish_metrics(checkpoint: str | Path, metrics: str | Path, *, update: bool, bundle: str | Path) -> None:
    """Put the numbers of an evaluation into the model's card, or log the command that does.

    Args:
        checkpoint: model folder, or ``model.pt`` of a training with its folder beside it.
        metrics: ``metrics.json`` of the evaluation.
        update: whether to write: ``metrics.json`` and card of the model; and ``eval_metrics`` of the bundle where the
            model lies in it.
        bundle: root of the bundle.

    Raises:
        ConfigError: the model has no card any more.
        DatasetError: the metrics are of another model.
        StorageError: something cannot be written.
    """
    require_card(checkpoint, wanted=update)
    folder, file = _folder_of(checkpoint), Path(metrics)
    if folder is None:
        return
    if not update:
        command = shlex.join(["boltzformer", "weights", "card", str(folder), "--metrics", str(file)])
        _log.info("to put these numbers into the model's card: %s", command)
        return
    kept = add_metrics(folder, file)
    _log.info("the numbers are in %s", folder / CARD)
    if Path(bundle).resolve() in folder.resolve().parents:
        _log.info("the numbers are in %s", write_bundle_metrics(kept, Path(bundle)))


def _folder_of(checkpoint: str | Path) -> Path | None:
    """The folder of a model, or the one that the training wrote of its checkpoint."""
    place = locate(checkpoint)
    if place.is_folder:
        return place.path
    folder = place.path.with_name(MODEL_FOLDER)
    made_of = read_config(folder).checkpoint_sha256 if is_model_folder(folder) else ""
    return folder if made_of and made_of == file_sha256(place.path) else None
