"""Local cache of a DICOMweb datastore: downloaded series, their metadata, and labels.

``images/UID/*.dcm``, ``images/UID.nii.gz``, ``images/UID.json``, and ``labels``.
Each file and each series appears atomically, so several processes (the server, a training) can share the folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from boltzformer_monai.io.volume import Volume
from boltzformer_monai.label.datastore.label_store import LabelStore
from boltzformer_monai.label.files import read_object
from boltzformer_monai.storage import sweep, temporary_beside, write_json, writing


class Cache:
    """The cache folder; readable by its owner only, since it holds scans of patients.

    Args:
        root: created if needed.

    Attributes:
        labels: the cached labels.

    Raises:
        StorageError: it cannot be created.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        with writing(root, "set MONAI_LABEL_DICOMWEB_CACHE_PATH to another folder"):
            for folder in ("images", "labels", "locks"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)
            sweep(root)
            self.labels = LabelStore(root / "labels", root / "locks" / "labels")

    def lock(self, name: str) -> FileLock:
        """A lock between threads and processes."""
        return FileLock(self.root / "locks" / name)

    # Images.

    def series(self, image: str, instances: int | None, download: Callable[[Path], None]) -> Path:
        """Folder of a series; downloaded if missing, or if the number of its instances has changed.

        Args:
            image: its UID.
            instances: ``None`` if unknown.
            download: writes all files into a folder.

        Raises:
            StorageError: the folder cannot be written; also what ``download`` raises.
        """
        folder = self.root / "images" / image
        fetched = temporary_beside(self.root / "series")
        with self.lock(image):
            if folder.is_dir() and instances in (None, self.notes(image).get("instances")):
                return folder
            try:
                with writing(folder):
                    fetched.mkdir()
                    download(fetched)
                    shutil.rmtree(folder, ignore_errors=True)
                    self.nifti(image).unlink(missing_ok=True)
                    self.note(image, problem=None, instances=instances)
                    fetched.replace(folder)
            finally:
                shutil.rmtree(fetched, ignore_errors=True)
        return folder

    def nifti(self, image: str) -> Path:
        """Path of the series as NIfTI."""
        return self.root / "images" / f"{image}.nii.gz"

    def notes(self, image: str) -> dict[str, Any]:
        """Metadata of an image."""
        return read_object(self.root / "images" / f"{image}.json")

    def note(self, image: str, **info: Any) -> None:
        """Add metadata; ``None`` removes an entry."""
        known = self.notes(image)
        merged = {key: value for key, value in {**known, **info}.items() if value is not None}
        if merged != known:
            write_json(self.root / "images" / f"{image}.json", merged)


def compact(volume: Volume) -> np.ndarray:
    """The voxels as int16 if they are integers, which viewers read faster."""
    array = volume.array
    whole = bool(np.all(array == np.rint(array))) and array.min() >= -32768 and array.max() <= 32767
    return array.astype(np.int16) if whole else array
