"""Where a model is: a checkpoint, a model folder, or the id of a fetched one in the hub's cache. Imports no PyTorch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from boltzformer_monai.errors import CheckpointError

__all__ = ["CARD", "CONFIG", "METRICS", "WEIGHTS", "Place", "hub_id", "locate", "require_replaceable"]

CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_OURS = {CONFIG, WEIGHTS, CARD, METRICS, ".gitattributes"}
_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".nii", ".gz")


@dataclass(frozen=True)
class Place:
    """A model on this machine.

    Attributes:
        path: a file, or a model folder.
        files: what is read of it.
    """

    path: Path
    files: tuple[Path, ...]

    @property
    def is_folder(self) -> bool:
        """Whether it is a model folder."""
        return self.path not in self.files


def hub_id(place: str | Path) -> tuple[str, str | None] | None:
    """Id and revision where a text looks like ``owner/name`` or ``owner/name@revision`` and no path."""
    text = place.as_posix() if isinstance(place, Path) else place
    match = _HUB_ID.fullmatch(text)
    if match is None or text.endswith(_FILES) or Path(text).parent.is_dir():
        return None
    return match["repo"], match["revision"]


def locate(place: str | Path) -> Place:
    """Find a model; nothing is fetched.

    Args:
        place: ``model.pt``, a model folder, a folder that holds one as ``model`` (of a training), or the id of a model
            that ``boltzformer weights fetch`` brought.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        for folder in (path, path / "model"):
            if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
                return _folder(folder)
        msg = f"{path} is no model: it lacks {CONFIG} or {WEIGHTS}; give a model folder, or the model.pt of a training"
        raise CheckpointError(msg)
    if path.is_file():
        if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
            return _folder(path.parent)
        return Place(path, (path,))
    known = hub_id(place)
    if known is not None:
        if (cached := _cached(*known)) is not None:
            return _folder(cached)
        msg = f"no model at {place}: no such folder, and it was not fetched; boltzformer weights fetch {place}"
        raise CheckpointError(msg)
    msg = f"no checkpoint at {place}; give the model.pt of a training, a model folder, or the id of a fetched model"
    raise CheckpointError(msg)


def require_replaceable(folder: Path) -> None:
    """Refuse a place for a model folder where something else would be lost.

    Raises:
        CheckpointError: it is a file, or a folder with other files.
    """
    if not folder.exists():
        return
    others = [] if not folder.is_dir() else sorted({each.name for each in folder.iterdir()} - _OURS)
    if not folder.is_dir() or others or (any(folder.iterdir()) and not (folder / CONFIG).is_file()):
        what = f"it holds other files ({', '.join(others[:3])})" if others else "it is no model folder"
        raise CheckpointError(f"cannot write {folder}: {what}, which would be lost; give another name")


def _folder(path: Path) -> Place:
    return Place(path, (path / CONFIG, path / WEIGHTS))


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo, name, revision=revision) for name in (CONFIG, WEIGHTS)]
    return Path(found[0]).parent if all(isinstance(each, str) for each in found) else None  # type: ignore[arg-type]
