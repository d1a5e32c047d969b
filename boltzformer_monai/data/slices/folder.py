"""The folder of a slice data set, outside of its tables and images: whose it is, and what killed runs leave in it."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from boltzformer_monai.data.planes import PLANE_AXES
from boltzformer_monai.data.slices.format import DATASET_FILE, MANIFEST_FILE, RECORDS_FOLDER, REPORT_FILE
from boltzformer_monai.data.slices.volume import STAGING_FOLDER

__all__ = ["LOCK_FILE", "is_vacant", "remove_empty", "sweep"]

LOCK_FILE = ".lock"
_SLICE_NAME = re.compile(rf".+_({'|'.join(PLANE_AXES)})_\d{{4,}}\.png")


def is_vacant(root: Path) -> bool:
    """Whether a folder holds nothing, but for the hidden files of a writer that was killed at its very start."""
    return root.is_dir() and all(path.name.startswith(".") for path in root.iterdir())


def sweep(root: Path, claimed: Mapping[str, set[str]]) -> list[str]:
    """Remove what a killed writer left: staged files, half-written tables, and slices that no record claims.

    Nothing is removed whose name is not one that this package gives.

    Args:
        root: folder of the data set.
        claimed: volume id → the files that its record names, as paths below the folder.

    Returns:
        The volumes that lack files.
    """
    shutil.rmtree(root / STAGING_FOLDER, ignore_errors=True)
    named = set[str]().union(*claimed.values())
    present = set()
    for folder in ("images", "labels"):
        for path in (root / folder).glob("*.png"):
            name = f"{folder}/{path.name}"
            if name in named:
                present.add(name)
            elif _SLICE_NAME.fullmatch(path.name):
                path.unlink()
    tables = (DATASET_FILE, MANIFEST_FILE, REPORT_FILE)
    for path in (*root.glob(".*-*"), *(root / RECORDS_FOLDER).glob(".*-*.json")):
        if path.parent.name == RECORDS_FOLDER or path.name.endswith(tables):  # made by atomic_path
            path.unlink()
    return [volume_id for volume_id, names in claimed.items() if not names <= present]


def remove_empty(root: Path, made: Iterable[Path]) -> None:
    """Remove a data set without volumes, and the folders that were made for it, as far as nothing else is in them."""
    for name in (DATASET_FILE, MANIFEST_FILE, LOCK_FILE):
        (root / name).unlink(missing_ok=True)
    for folder in (*(root / name for name in ("images", "labels", RECORDS_FOLDER)), *made):
        with contextlib.suppress(OSError):  # a folder that is not there, or not empty
            folder.rmdir()
