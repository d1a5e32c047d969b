"""Which files of a folder tree are used by nothing: what is not understood is counted, not passed over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.files import is_dicom_file
from boltzformer_monai.io.folder_tree import Tree
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.io.scan_list import named_as_annotation, scan_files

__all__ = ["HIDDEN", "files_of", "find_left_out", "tell_left_out"]

HIDDEN = "hidden files"
"""Kind of what systems and programs leave behind: counted, and not worth naming."""
_SHOWN = 5  # files named in a message


def files_of(place: Path) -> list[Path]:
    """Return the files that a scan or annotation is read from: of a folder those that are DICOM by name or content."""
    try:
        found = scan_files(place)
    except OSError:
        return [place]
    return [path for path in found if _is_dicom(path)] if place.is_dir() else found


def find_left_out(tree: Tree, used: Iterable[Path]) -> dict[str, list[Path]]:
    """Return kind → what is not among the files used, sorted; kinds are words that name no file and no patient."""

    @cache
    def real(folder: Path) -> str:
        return os.path.realpath(folder)

    taken = {(real(path.parent), path.name) for path in used}
    found: dict[str, list[Path]] = {}
    for path in tree.files:
        if (real(path.parent), path.name) not in taken:
            found.setdefault(_kind(path, tree.top), []).append(path)
    for kind, paths in (
        (HIDDEN, tree.hidden), ("links to folders", tree.links), ("pipes and devices", tree.special)
    ):  # fmt: skip
        if paths:
            found[kind] = list(paths)
    return {kind: sorted(found[kind]) for kind in sorted(found)}


def tell_left_out(found: Mapping[str, Iterable[Path]], top: Path) -> list[str]:
    """Return one line for each kind with the first few names, relative to the folder; hidden files are not named."""
    lines = []
    for kind, paths in ((kind, paths) for kind, paths in found.items() if kind != HIDDEN):
        names = [os.path.relpath(path, top) for path in paths]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"{top}: left out, {kind}: {', '.join(names[:_SHOWN])}{more}")
    return lines


def _kind(path: Path, top: Path) -> str:
    if not path.is_file():
        return "broken links"
    if is_image_file(path):
        return "annotations" if named_as_annotation(path, top) else "image files"
    return "DICOM objects" if _is_dicom(path) else "other files"


def _is_dicom(path: Path) -> bool:
    try:
        return is_dicom_file(path)
    except VolumeError:
        return True  # it cannot be opened, so nobody knows
