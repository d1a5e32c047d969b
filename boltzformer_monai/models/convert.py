"""Weights in another form → a model folder; and a model → a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.models.catalogue import Entry, whole_model_of
from boltzformer_monai.models.config import is_model_folder
from boltzformer_monai.models.folder import read_model, save_model
from boltzformer_monai.models.licence import KEY
from boltzformer_monai.models.place import CONFIG, WEIGHTS, locate, require_replaceable
from boltzformer_monai.networks import weights as checkpoints
from boltzformer_monai.networks.published import import_weights
from boltzformer_monai.networks.published.reading import read_published
from boltzformer_monai.storage import file_sha256

__all__ = ["convert"]

_log = logging.getLogger(__name__)

# What inference must know of networks that others trained. No targets: their files hold no vocabulary.
_DATA: Mapping[str, Mapping[str, Any]] = {
    "biomedparse_v2": {"protocol": "biomedparse", "modalities": ["CT", "MR", "US", "PET"]},
}


def convert(place: str | Path, output: str | Path, *, source: str | None = None, entry: Entry | None = None) -> None:
    """Write a model folder of known weights or of a model of this package, or its checkpoint.

    Args:
        place: weights of a known source, ``model.pt``, a model folder, or the id of a fetched model.
        output: the folder; a name that ends in ``.pt`` becomes a checkpoint.
        source: of :mod:`boltzformer_monai.networks.published`, where the names of the weights do not tell.
        entry: of the catalogue, where the weights are known to be its.

    Raises:
        CheckpointError: the weights cannot be used or are no whole model, or something else is at ``output``.
        ConfigError: there is no such source.
        StorageError: the output cannot be written.
    """
    path, target = Path(place).expanduser(), Path(output)
    path = path if path.exists() else locate(place).path
    if target.resolve() in (path.resolve(), (path / WEIGHTS).resolve(), (path / CONFIG).resolve()):
        raise CheckpointError(f"cannot write {target}: it is the input; give another --output")
    if target.suffix != ".pt":
        require_replaceable(target)
        content, checkpoint = _content(path, source, entry)
        save_model(content, target, checkpoint=checkpoint)
        return
    if target.is_dir():
        raise CheckpointError(f"cannot write {target}: it is a folder; give another --output")
    checkpoints.save_checkpoint(_content(path, source, entry)[0], target)


def _content(path: Path, source: str | None, entry: Entry | None) -> tuple[Mapping[str, Any], Path | None]:
    """``{"model", "description"}``, and the checkpoint that it was read from."""
    if path.name == WEIGHTS and is_model_folder(path.parent):  # with its hash, which the folder states
        path = path.parent
    if entry is None and source in (None, "checkpoint"):
        if is_model_folder(path):
            content = read_model(path)
            checkpoints.check_content(content, path / WEIGHTS)
            return content, None
        file = read_published(path)
        if file.about.get("format") == checkpoints.FORMAT:
            content = {"model": file.weights, "description": file.about}
            checkpoints.check_content(content, file.path)
            return content, file.path
    imported = import_weights(path, source=source)
    for line in imported.report.lines():
        _log.info("%s", line)
    network = imported.whole()
    file_name, known = Path(imported.report.path), entry or whole_model_of(imported.source)
    first = {"part": "model", "source": imported.source, "file": file_name.name, "sha256": file_sha256(file_name)}
    data: dict[str, Any] = {"targets": [], **_DATA.get(imported.source, {"plane": "axial"})}
    if known is not None:
        first |= {"source": known.repo, "licence": known.licence.name}
        data[KEY] = known.licence.as_dict()
    data["initial_weights"] = [first]
    description = checkpoints.Description(network, data)
    return {"model": imported.state_dict(), "description": description.state_dict()}, None
