"""Which scans lie in a folder tree: image files by name, DICOM by series; headers only."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from boltzformer_monai.errors import VolumeError, not_opened
from boltzformer_monai.io.dicom.files import broken_dicom, read_header
from boltzformer_monai.io.dicom.sop_classes import other_kind
from boltzformer_monai.io.formats import is_image_file

__all__ = ["Scan", "holds_only_image_files", "list_scans", "named_as_annotation", "split_ending"]

_ENDING = re.compile(r"(?i)(\.nii(\.gz)?|\.nrrd|\.nhdr|\.mha|\.mhd|\.hdr(\.gz)?|\.img(\.gz)?|\.dcm)$")
# Names that are given to annotations; a label map as an input would be segmented as if it were a scan.
_ANNOTATION = re.compile(r"(?i)(^|[-_.])(labels?|masks?|seg|segmentation|uncertainty)$")
_ANNOTATION_FOLDER = re.compile(
    r"(?i)(^|[-_. ])(labels?|masks?|segs?|segmentations?|annotations?|ground[-_ ]?truths?)"
    r"([-_]?(tr|ts|va|val|train|training|test|final))?$"
)


@dataclass(frozen=True)
class Scan:
    """One scan of a folder.

    Attributes:
        name: its path below the folder, without ending; where a folder holds several series, the UID is the last part.
        place: the file, or the folder that holds the series.
        series: SeriesInstanceUID of a DICOM series, None for an image file.
        files: the files of the series, () for an image file.
        problem: why it cannot be read, in one line; empty as far as is known.
    """

    name: str
    place: Path
    series: str | None = None
    files: tuple[Path, ...] = ()
    problem: str = ""


def split_ending(name: str) -> tuple[str, str]:
    """Split the name of an image file into stem and ending: ``"a.b.nii.gz"`` → ``("a.b", ".nii.gz")``."""
    found = _ENDING.search(name)
    return (name, "") if found is None else (name[: found.start()], found[0])


def named_as_annotation(path: Path, top: Path) -> bool:
    """Tell whether an image file, or a folder between it and ``top``, has a name that is given to annotations."""
    folders = path.relative_to(top).parts[:-1]
    return _named_as_annotation(path) or any(_ANNOTATION_FOLDER.search(name) for name in folders)


def _named_as_annotation(path: Path) -> bool:
    return _ANNOTATION.search(split_ending(path.name)[0]) is not None


def list_scans(folder: Path) -> list[Scan]:
    """List the scans in a folder and its subfolders, sorted by name; hidden files and links to folders are left out.

    So are files and folders that are named as annotations (``labelsTr``, ``masks``), and DICOM objects that are no
    slices; :func:`~boltzformer_monai.io.left_out.find_left_out` counts what was. A subfolder that cannot be opened is
    listed with its ``problem``: nobody knows which scans lie in it.

    A file that cannot be read as DICOM although it claims to be is listed with the series of its folder (or alone),
    so that reading it fails and says why: a scan without its last slice looks whole.

    Raises:
        VolumeError: there is no scan, two scans have one name, or the folder itself cannot be opened.
    """
    scans: list[Scan] = []

    def closed(error: OSError) -> None:
        place = Path(error.filename)
        problem = not_opened(place, error, "allow it, or move it elsewhere")
        if place == folder:
            raise problem from error
        scans.append(Scan(str(place.relative_to(folder)), place, problem=str(problem)))

    for directory, subfolders, names in os.walk(folder, onerror=closed):
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and not _ANNOTATION_FOLDER.search(name)
        ]
        files = [Path(directory, name) for name in sorted(names) if not name.startswith(".")]
        scans += _in_folder(folder, Path(directory), files)
    if not scans:
        msg = f"{folder}: holds no scans; looked for NIfTI, NRRD and MetaImage files and DICOM series"
        raise VolumeError(msg, reason="missing")
    named: dict[str, Scan] = {}
    for scan in sorted(scans, key=lambda scan: scan.name):
        other = named.setdefault(scan.name.casefold(), scan)
        if other is not scan:
            msg = f"{other.place} and {scan.place} would both become {scan.name}; rename one of them"
            raise VolumeError(msg, reason="several series")
    return list(named.values())


def holds_only_image_files(folder: Path) -> bool:
    """Tell whether a folder holds NIfTI, NRRD or MetaImage files, and nothing that could be a DICOM series."""
    found = False
    unreadable: tuple[type[Exception], ...] = (VolumeError, *broken_dicom())
    for directory, _, names in os.walk(folder):
        for path in (Path(directory, name) for name in names if not name.startswith(".")):
            if is_image_file(path):
                found = True
                continue
            try:
                if read_header(path, ("SOPClassUID",)) is not None:
                    return False
            except unreadable:
                return False
    return found


def _in_folder(top: Path, place: Path, files: list[Path]) -> list[Scan]:
    scans: list[Scan] = []
    series: dict[str, list[Path]] = {}
    damaged: list[Path] = []
    unreadable: tuple[type[Exception], ...] = (VolumeError, *broken_dicom())
    for path in files:
        if is_image_file(path):
            if path.name.lower().endswith((".img", ".img.gz")):
                continue  # its header is listed
            if not _named_as_annotation(path):
                scans.append(Scan(str(path.relative_to(top).with_name(split_ending(path.name)[0])), path))
            continue
        try:
            header = read_header(path, ("SOPClassUID", "Modality", "SeriesInstanceUID", "Rows", "Columns"))
            if header is not None and other_kind(header) is None:
                series.setdefault(str(header.get("SeriesInstanceUID") or ""), []).append(path)
        except unreadable:
            damaged.append(path)
    if damaged and len(series) == 1:
        next(iter(series.values())).extend(damaged)
    elif damaged:
        scans += [Scan(str(path.relative_to(top).with_name(split_ending(path.name)[0])), path) for path in damaged]
    name = str(place.relative_to(top)) if place != top else place.resolve().name
    for uid, members in series.items():
        scans.append(
            Scan(name if len(series) == 1 else f"{name}/{uid or 'no-uid'}", place, uid or None, tuple(members))
        )
    return scans
