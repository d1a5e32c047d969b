"""One walk through a folder tree: every entry is a file, or hidden, a link, a special file or a closed folder."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from boltzformer_monai.errors import not_opened, why


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


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False  # a broken link, or one to a closed folder: reading it says why
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
