"""Which files of a folder tree are used by nothing: what a walk does not understand is counted, not passed over."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from boltzformer_monai.errors import VolumeError, not_opened, why
from boltzformer_monai.io.dicom.files import is_dicom_file
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.io.scan_files import scan_files
from boltzformer_monai.io.scan_list import named_as_annotation

__all__ = ["HIDDEN", "Tree", "files_of", "find_left_out", "read_tree", "tell_left_out"]

HIDDEN = "hidden files"
"""Kind of what systems and programs leave behind: counted, and not worth naming."""
_SHOWN = 5  # files named in a message


@dataclass
class Tree:
    """All that lies in a folder and below it. Every entry of every folder is in one of these lists.

    Attributes:
        top: the folder.
        folders: every folder that was listed, with the names of its visible files, sorted; each real folder once.
        hidden: files and folders whose names begin with a dot; nothing in such a folder is looked at.
        links: links to folders that are not followed, or lead to a folder that is listed already.
        special: pipes, sockets and devices: opening one may wait for ever.
        closed: folders that cannot be opened, and why in a few words.
    """

    top: Path
    folders: list[tuple[Path, list[str]]] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    special: list[Path] = field(default_factory=list)
    closed: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """All visible files, folder by folder."""
        return [place / name for place, names in self.folders for name in names]


def read_tree(top: Path, *, follow: bool = True) -> Tree:
    """List a folder tree.

    Args:
        top: the folder.
        follow: links to folders are followed, after the real folders, so that no folder comes twice.

    Raises:
        VolumeError: the folder itself cannot be opened.
    """
    tree = Tree(top)

    def closed(error: OSError) -> None:
        place = Path(error.filename)
        if place == top:
            raise not_opened(top, error, "allow it, or give another folder") from error
        tree.closed.append((place, why(error)))

    seen: set[str] = set()
    pending = [top]
    while pending:
        start = pending.pop(0)
        links: list[Path] = []
        for directory, subfolders, names in os.walk(start, onerror=closed):
            place, real = Path(directory), os.path.realpath(directory)
            if real in seen:
                tree.links.append(place)
                subfolders.clear()
                continue
            seen.add(real)
            tree.hidden += [place / name for name in sorted((*subfolders, *names)) if name.startswith(".")]
            visible = [place / name for name in sorted(subfolders) if not name.startswith(".")]
            for link in (path for path in visible if path.is_symlink()):
                # A link to a folder that it lies in has nothing new below it.
                above = Path(real).is_relative_to(os.path.realpath(link))
                (links if follow and not above else tree.links).append(link)
            subfolders[:] = [path.name for path in visible if not path.is_symlink()]
            files = sorted(name for name in names if not name.startswith("."))
            special = {name for name in files if _is_special(place / name)}
            tree.special += [place / name for name in sorted(special)]
            tree.folders.append((place, [name for name in files if name not in special]))
        pending += links
    return tree


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


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False  # a broken link, or one to a closed folder: reading it says why
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


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
