"""Label files of a DICOMweb datastore: ``TAG/UID.nii.gz`` with metadata in ``TAG/UID.json``.

A label and its metadata change atomically (write-ahead): the JSON file announces the new metadata beside the old, one
rename of the label file commits it, then the old metadata is removed. A reader that finds an announcement compares
hashes to know whether it was committed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from boltzformer_monai.errors import BoltzFormerError, why
from boltzformer_monai.io.read import write_label_map
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.label.files import staged
from boltzformer_monai.label.label_info import SHA256
from boltzformer_monai.label.safe_ids import UPLOADS
from boltzformer_monai.limits import read_json
from boltzformer_monai.storage import atomic_path, confirm, disk_refusal, file_sha256, sweep, sync, writing

_log = logging.getLogger(__name__)

_ANNOUNCED = "announced"
_NAME = "name"
"""Key of the label's file name."""
_RESERVED = (_ANNOUNCED, _NAME, SHA256)
_ADVICE = "the label stays as it was; is the disk full?"
_ENDINGS = sorted(UPLOADS, key=len, reverse=True)

Label = tuple[Path, dict[str, Any]]
"""File and metadata of a label."""


class LabelStore:
    """Labels in a folder that several processes may share.

    Changes are on the disk when a method returns. A method that changes a label raises a StorageError where the disk
    refuses; nothing is changed then, unless the message is that the disk does not confirm a change already made.

    Args:
        root: the folder; it exists.
        lock: lock file for all changes.
    """

    def __init__(self, root: Path, lock: Path) -> None:
        self.root = root
        self._lock = lock
        self._clean_up()

    def tags(self, image: str) -> list[str]:
        """Tags of the labels of an image."""
        return sorted(folder.name for folder in self._folders() if self.get(image, folder.name) is not None)

    def counts(self) -> dict[str, int]:
        """Tag → number of labels."""
        return {
            folder.name: sum(self.get(file.stem, folder.name) is not None for file in folder.glob("[!.]*.json"))
            for folder in self._folders()
        }

    def get(self, image: str, tag: str) -> Label | None:
        """A label, if it exists and its metadata can be read."""
        folder = self.root / tag
        try:
            info = _committed(folder, _content(folder / f"{image}.json"))
        except (OSError, ValueError):
            return None
        path = folder / str(info.get(_NAME, ""))
        return (path, info) if info and path.is_file() else None

    def keep(self, image: str, tag: str, labels: np.ndarray, grid: Volume, info: Mapping[str, Any]) -> Label:
        """Write a label map, ``(I, J, K)`` on the grid of a scan, and its metadata; returns both, as :meth:`get`."""
        return self._save(image, tag, ".nii.gz", info, lambda path: write_label_map(labels, grid, path))

    def copy(self, image: str, tag: str, source: Path, ending: str, info: Mapping[str, Any]) -> Label:
        """Copy a label file unchanged; otherwise as :meth:`keep`."""
        return self._save(image, tag, ending, info, lambda path: shutil.copyfile(source, path))

    def note(self, image: str, tag: str, info: Mapping[str, Any]) -> None:
        """Add metadata to an existing label."""
        folder = self.root / tag
        note = folder / f"{image}.json"
        with writing(note, _ADVICE), FileLock(self._lock):
            if before := self._settled(folder, image):
                _write(note, {**before, **_without_reserved(info)})
                confirm(note)

    def drop(self, image: str, tag: str) -> None:
        """Remove a label."""
        folder = self.root / tag
        note = folder / f"{image}.json"
        with writing(note, _ADVICE), FileLock(self._lock):
            self._settled(folder, image)
            note.unlink(missing_ok=True)
            confirm(note)
            with contextlib.suppress(OSError):  # no metadata refers to the file any more
                self._settled(folder, image)

    def _save(
        self, image: str, tag: str, ending: str, info: Mapping[str, Any], write: Callable[[Path], object]
    ) -> Label:
        folder = self.root / tag
        file, note = folder / f"{image}{ending}", folder / f"{image}.json"
        sweep(folder)
        with writing(file, _ADVICE), staged(file, _refused_by_disk(write)) as (temporary, sha256):
            known = {**_without_reserved(info), _NAME: file.name, SHA256: sha256}
            with FileLock(self._lock):
                before = self._settled(folder, image)
                if _is_there(folder, known):  # the same voxels: only the metadata changes
                    _write(note, known)
                    confirm(note)
                else:
                    _write(note, {**before, _ANNOUNCED: known})
                    sync(folder)
                    os.replace(temporary, file)
                    confirm(file)
                with contextlib.suppress(OSError):  # retried by the next change
                    self._settled(folder, image)
        return file, known

    def _settled(self, folder: Path, image: str) -> dict[str, Any]:
        """Remove announcements and unreferenced files, holding the lock; returns the committed metadata.

        Raises:
            OSError: the disk refuses; the label stays as it was.
        """
        note = folder / f"{image}.json"
        try:
            content = _content(note)
        except ValueError:
            return {}  # damaged metadata: the label file stays
        info = _committed(folder, content)
        if not info and content:
            note.unlink()
        elif info != content:
            _write(note, info)
        for ending in UPLOADS:
            if (name := f"{image}{ending}") != info.get(_NAME):
                (folder / name).unlink(missing_ok=True)
        return info

    def _clean_up(self) -> None:
        """Clean up after killed processes."""
        with contextlib.suppress(OSError), FileLock(self._lock):
            for folder in self._folders():
                sweep(folder)
                for image in sorted({_image(file.name) for file in folder.glob("[!.]*")}):
                    try:
                        self._settled(folder, image)
                    except OSError as error:
                        _log.warning("%s: label of %s not cleaned up yet: %s", folder, image, why(error))

    def _folders(self) -> list[Path]:
        return [folder for folder in self.root.iterdir() if folder.is_dir()]


def _refused_by_disk(write: Callable[[Path], object]) -> Callable[[Path], None]:
    """The writer, with an OSError in place of one that names the temporary file."""

    def write_or_refuse(path: Path) -> None:
        try:
            write(path)
        except BoltzFormerError as error:
            if error.reason != "write":
                raise
            refusal = disk_refusal(error) or OSError("the file system refuses")
            raise OSError(*refusal.args[:2]) from error

    return write_or_refuse


def _image(name: str) -> str:
    return name.removesuffix(next((ending for ending in (".json", *_ENDINGS) if name.endswith(ending)), ""))


def _without_reserved(info: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that this class sets."""
    return {key: value for key, value in info.items() if key not in _RESERVED}


def _committed(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The valid metadata: the announced one if the label file has its hash."""
    announced = content.get(_ANNOUNCED)
    if isinstance(announced, dict) and _is_there(folder, announced):
        return announced
    return {key: value for key, value in content.items() if key != _ANNOUNCED}


def _is_there(folder: Path, info: Mapping[str, Any]) -> bool:
    try:
        return file_sha256(folder / str(info[_NAME])) == info[SHA256]
    except FileNotFoundError:
        return False


def _content(file: Path) -> dict[str, Any]:
    """``{}`` if there is no such file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    try:
        content = read_json(file)
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a JSON object")
    return content


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """Write atomically and sync the file; the caller confirms its name."""
    with atomic_path(file, durable=False) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1, default=str), encoding="utf-8")
        sync(temporary)
