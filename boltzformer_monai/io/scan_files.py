"""Which files a scan is made of: a header may keep its voxels in another file."""

from __future__ import annotations

import re
from pathlib import Path

from boltzformer_monai.io.nifti import PAIRS
from boltzformer_monai.limits import open_file

__all__ = ["lies_beside", "scan_files"]

_HEADER_BYTES = 1 << 16
_VOXELS = re.compile(
    r"^(?:data ?file[ \t]*:|ElementDataFile[ \t]*=)[ \t]*(.+?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE
)


def scan_files(place: Path) -> list[Path]:
    """Return the file itself and the one of its voxels (``.mhd``, ``.nhdr``, ``.hdr``), or all files of a folder.

    Raises:
        OSError: a header cannot be read.
    """
    if place.is_dir():
        return [path for path in place.rglob("*") if path.is_file()]
    name = place.name.lower()
    for header, data in PAIRS.items():
        if name.endswith((header, data)):
            stem = place.name[: -len(header)]  # both endings have the same length
            others = {place.with_name(stem + each) for end in (header, data) for each in (end, end.upper())}
            return [place, *sorted(path for path in others - {place} if path.is_file() and not _same(path, place))]
    if name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        with open_file(place) as file:
            text = file.read(_HEADER_BYTES).decode("latin-1")
        found = _VOXELS.search(re.split(r"\n\r?\n", text, maxsplit=1)[0])
        if found is not None and "\0" not in found[1] and (data_file := place.parent / found[1]).is_file():
            return [place, data_file] if lies_beside(data_file, place) else [place]
    return [place]


def lies_beside(path: Path, header: Path) -> bool:
    """Tell whether a file that a header names lies in the header's folder or below it, links resolved.

    A header from a stranger may name any file of the machine, and would show it as voxels.
    """
    return path.resolve().is_relative_to(header.parent.resolve())


def _same(path: Path, other: Path) -> bool:
    return path.samefile(other)  # where capitals make no difference
