"""A model of this package in another form: checkpoint → model folder, and back."""

from __future__ import annotations

from pathlib import Path

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.models.folder import read_model, save_model, write_checkpoint
from boltzformer_monai.models.place import locate, require_replaceable

__all__ = ["convert"]


def convert(place: str | Path, output: str | Path) -> None:
    """Write a model as a folder, or as a checkpoint.

    Args:
        place: ``model.pt``, a model folder, or the id of a fetched model.
        output: the folder; a name that ends in ``.pt`` becomes a checkpoint.

    Raises:
        CheckpointError: the model cannot be read, or something else is at ``output``.
        StorageError: the output cannot be written.
    """
    target, found = Path(output), locate(place)
    if target.resolve() in (found.path.resolve(), *(file.resolve() for file in found.files)):
        msg = f"cannot write {target}: it is the input; give another --output"
        raise CheckpointError(msg)
    if target.suffix == ".pt":
        if target.is_dir():
            msg = f"cannot write {target}: it is a folder; give another --output"
            raise CheckpointError(msg)
        write_checkpoint(found.path, target)
        return
    require_replaceable(target)
    save_model(read_model(found.path), target, checkpoint=None if found.is_folder else found.path)
