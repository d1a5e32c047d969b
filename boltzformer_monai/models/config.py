"""``config.json`` of a model folder: what the model is, and the hashes that it is checked by. Imports no PyTorch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boltzformer_monai import __version__
from boltzformer_monai.errors import CheckpointError, cannot_open, why
from boltzformer_monai.limits import read_json
from boltzformer_monai.models.place import CONFIG, WEIGHTS, Place
from boltzformer_monai.storage import file_sha256

__all__ = [
    "FORMAT", "VERSION", "ModelConfig", "check_weights", "is_model_folder", "model_sha256", "read_config", "unchanged",
]  # fmt: skip

FORMAT = "boltzformer-model"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The content of ``config.json``.

    Attributes:
        description: what :class:`~boltzformer_monai.networks.weights.Description` saves: the network's settings and
            what inference must know of the training data, its licence and the provenance of its first weights.
        weights_sha256: of ``model.safetensors``.
        parameters: numbers in it.
        checkpoint_sha256: of the ``model.pt`` that it was made of; "" without one.
        package: version of this package that wrote it.
    """

    description: Mapping[str, Any]
    weights_sha256: str
    parameters: int
    checkpoint_sha256: str = ""
    package: str = __version__

    @property
    def description_sha256(self) -> str:
        """Of the description, in one spelling."""
        return _digest(self.description)

    @property
    def sha256(self) -> str:
        """Of all that decides a result: weights and description. Metrics and card may change; it does not."""
        return _digest([self.weights_sha256, self.description_sha256])

    @property
    def data(self) -> Mapping[str, Any]:
        """What inference must know of the training data."""
        data = self.description.get("data")
        return data if isinstance(data, Mapping) else {}

    def as_json(self) -> str:
        """The file's text."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self), "description_sha256": self.description_sha256}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_config(folder: Path) -> ModelConfig:
    """Read and check the ``config.json`` of a model folder.

    Raises:
        CheckpointError: it is missing, damaged, of something else or another version, or was changed.
    """
    path = folder / CONFIG
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        msg = str(cannot_open(path, error) or f"{path} cannot be read ({why(error)}); fetch or copy the model again")
        raise CheckpointError(msg) from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        msg = f"{path} is none of a model of this package; boltzformer weights convert makes one of known weights"
        raise CheckpointError(msg)
    if content.get("version") != VERSION:
        msg = f"{path} is of version {str(content.get('version'))[:20]!r}, and this package reads {VERSION}; update it"
        raise CheckpointError(msg)
    kinds = {"weights_sha256": str, "parameters": int, "checkpoint_sha256": str, "package": str, "description": Mapping}
    if not all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        raise CheckpointError(f"{path} has not the form of a model's; fetch or copy the model again")
    config = ModelConfig(**{name: content[name] for name in kinds})
    try:
        expected = config.description_sha256
    except ValueError as error:  # half a character, which JSON can write and no hash takes
        raise CheckpointError(f"{path} has not the form of a model's ({why(error)}); fetch the model again") from error
    if content.get("description_sha256") != expected:
        msg = (
            f"{path} was changed after it was written: the hash of its description does not fit; fetch the model again"
        )
        raise CheckpointError(msg)
    return config


def check_weights(folder: Path, config: ModelConfig) -> None:
    """Compare the hash of a folder's weights with its configuration.

    Raises:
        CheckpointError: they were changed, or cannot be read.
    """
    path = folder / WEIGHTS
    try:
        found = file_sha256(path)
    except OSError as error:
        raise CheckpointError(str(cannot_open(path, error) or error)) from error
    if found != config.weights_sha256:
        msg = (
            f"{path} is not the file that {CONFIG} describes: its sha256 is {found[:16]}…, "
            f"and {config.weights_sha256[:16]}… is stated; fetch or copy the model again"
        )
        raise CheckpointError(msg)


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Refuse a file that was written or replaced in the block, which reads it and computes its hash.

    Raises:
        CheckpointError: it was.
    """

    def state() -> tuple[int, ...]:
        try:
            found = path.stat()
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    before = state()
    yield
    if state() != before:
        raise CheckpointError(f"{path} was changed while it was read; run the command again")


def model_sha256(place: Place) -> str:
    """Hash of all that decides a model's results, without loading it; of a folder as its configuration says it.

    Raises:
        CheckpointError: the model cannot be read.
    """
    if place.is_folder:
        return read_config(place.path).sha256
    try:
        return file_sha256(place.path)
    except OSError as error:
        raise CheckpointError(str(cannot_open(place.path, error) or error)) from error


def is_model_folder(path: Path) -> bool:
    """Whether a folder says that it is a model of this package; others have a ``config.json``, too."""
    try:
        content = read_json(path / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
