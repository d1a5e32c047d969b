"""The model folder that a training leaves beside its checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

from boltzformer_monai.models.config import read_config
from boltzformer_monai.models.folder import save_model
from boltzformer_monai.networks.weights import read_weights
from boltzformer_monai.storage import file_sha256

__all__ = ["MODEL_FOLDER", "publish_model"]

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
