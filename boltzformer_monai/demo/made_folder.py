"""Folders of synthetic data: made once, whole or not at all, and reused where their settings are the same."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.limits import read_json
from boltzformer_monai.storage import atomic_path

__all__ = ["is_complete", "read_marker", "staged", "write_marker"]


def is_complete(folder: Path, marker: str, description: dict[str, Any]) -> bool:
    """Whether `folder` holds the set that is described.

    Args:
        folder: of the set; need not exist.
        marker: file in it that describes what it holds.
        description: format, version and parameters that it must have.

    Raises:
        DatasetError: it has other content.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / marker).is_file():
        raise DatasetError(f"{folder}: is there already and was not made as demo data; choose another folder")
    content = read_marker(folder / marker)
    found = {key: content.get(key) for key in description}
    if found != description:
        wanted = description["parameters"]
        msg = f"{folder}: holds demo data of other settings ({found}, wanted {wanted}); delete it or choose another"
        raise DatasetError(msg)
    return True


@contextmanager
def staged(folder: Path, marker: str) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` on success, and removed on failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        staging.chmod(folder.parent.stat().st_mode & 0o777)  # mkdtemp makes it private
        yield staging
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        try:
            staging.rename(folder)
        except OSError:
            if not (folder / marker).is_file():  # otherwise another process wrote the same
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_marker(path: Path) -> dict[str, Any]:
    """The description of a set.

    Raises:
        DatasetError: it cannot be read, or is damaged.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({why(error)})") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: is not a JSON object")
    return content


def write_marker(path: Path, content: dict[str, Any]) -> None:
    """Write the description of a set."""
    with atomic_path(path, durable=False) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
