"""JSON objects that several processes share, staged and temporary files, and the ZIP file of a datastore."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.limits import read_json
from boltzformer_monai.storage import file_sha256, sync, temporary_beside


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ``{}`` if it is missing or damaged."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def temporary_file(suffix: str) -> Iterator[Path]:
    """A temporary file that the caller removes; if the block fails, it is removed at once."""
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as file:
        path = Path(file.name)
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def temporary_path(target: Path, *, lock: str = "") -> Iterator[Path]:
    """A path beside the target, removed afterwards; ``lock`` as in ``storage.temporary_beside``."""
    path = temporary_beside(target, lock=lock)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(target: Path, write: Callable[[Path], object], *, lock: str = "") -> Iterator[tuple[Path, str]]:
    """A synced temporary file beside its target, whose folder is created if needed; and the hash of the file."""
    folder = target.parent
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)
    with temporary_path(target, lock=lock) as path:
        write(path)
        sync(path)
        yield path, file_sha256(path)


def zipped(pairs: Sequence[Mapping[str, Any]], listed: Mapping[str, Any]) -> str:
    """Write pairs of ``{"image": path, "label": path}`` and metadata to a ZIP file, laid out as by MONAI Label.

    The file is temporary, and the caller removes it.

    Raises:
        OSError: it cannot be written; no file is left.
    """
    with temporary_file(".zip") as path, zipfile.ZipFile(path, "w") as archive:
        for pair in pairs:
            for kind, file in pair.items():
                archive.write(file, f"{kind}/{Path(file).name}")
        archive.writestr("metadata.json", json.dumps(listed, ensure_ascii=False, default=str))
    return str(path)
