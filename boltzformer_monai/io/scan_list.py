"""Scans and annotations in a folder tree, by names and headers; and which files of it are used by nothing."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.archive import find_series
from boltzformer_monai.io.dicom.files import is_dicom_file, read_header
from boltzformer_monai.io.folder_tree import Tree, read_tree
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.io.nifti import PAIRS, other_half
from boltzformer_monai.io.nrrd_meta_header import detached_voxels

logger = logging.getLogger(__name__)

_ENDING = re.compile(r"(?i)(\.nii(\.gz)?|\.nrrd|\.nhdr|\.mha|\.mhd|\.hdr(\.gz)?|\.img(\.gz)?|\.dcm)$")
# Names that are given to annotations; a label map as an input would be segmented as if it were a scan.
_ANNOTATION = re.compile(r"(?i)((^|[-_. ]+)(labels?|masks?|seg|segmentation|uncertainty))+$")  # also CT7-label.seg
_ANNOTATION_FOLDER = re.compile(
    r"(?i)(^|[-_. ])(labels?|masks?|segs?|segmentations?|annotations?|ground[-_ ]?truths?)"
    r"([-_]?(tr|ts|va|val|train|training|test|final))?$"
)
_IMAGES = re.compile(r"(?i)(images?|imgs?|scans?)(Tr|Va|Ts)?")
_LABELS = {"labels", "label", "masks", "segmentations"}
_ONE_IMAGE = {"image", "img", "scan"}
_ONE_LABEL = {"label", "labels", "mask", "seg", "segmentation"}
_CHANNEL = re.compile(r"_(\d{4})$")
HIDDEN = "hidden files"
"""Kind of what systems and programs leave behind: counted, and not worth naming."""
_SHOWN = 5  # files named in a message


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
    return _named_as_annotation(path) or _is_in_annotations(path.parent, top)


def _is_in_annotations(folder: Path, top: Path) -> bool:
    return any(_ANNOTATION_FOLDER.search(name) for name in folder.relative_to(top).parts)


def _named_as_annotation(path: Path) -> bool:
    return _ANNOTATION.search(split_ending(path.name)[0]) is not None


def list_scans(folder: Path) -> list[Scan]:
    """List the scans in a folder and its subfolders, sorted by name; hidden files and links to folders are left out.

    So are files and folders that are named as annotations (``labelsTr``, ``masks``), and DICOM objects that are no
    slices; :func:`~boltzformer_monai.io.scan_list.find_left_out` counts what was. A subfolder that cannot be opened is
    listed with its ``problem``: nobody knows which scans lie in it.

    A file that cannot be read as DICOM although it claims to be is listed with the series of its folder (or alone),
    so that reading it fails with the reason: a scan without its last slice looks whole.

    Raises:
        VolumeError: there is no scan, two scans have one name, or the folder itself cannot be opened.
    """
    tree = read_tree(folder, follow=False)
    scans: list[Scan] = []
    for place, names in tree.folders:
        if not _is_in_annotations(place, folder):
            scans += _in_folder(folder, place, [place / name for name in names])
    for place, why in tree.closed:
        if not _is_in_annotations(place, folder):
            problem = f"{place}: cannot be opened ({why}); allow it, or move it elsewhere"
            scans.append(Scan(str(place.relative_to(folder)), place, problem=problem))
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
    """Tell whether a folder holds NIfTI, NRRD or MetaImage files, and nothing that could be a DICOM series.

    Raises:
        VolumeError: the folder cannot be opened.
    """
    files = read_tree(folder, follow=False).files
    others = [path for path in files if not is_image_file(path)]
    try:
        return len(others) < len(files) and all(read_header(path, ("SOPClassUID",)) is None for path in others)
    except VolumeError:
        return False


def scan_files(place: Path) -> list[Path]:
    """Return the file itself and the one of its voxels (``.mhd``, ``.nhdr``, ``.hdr``), or all files of a folder."""
    if place.is_dir():
        return [path for path in place.rglob("*") if path.is_file()]
    detached = place.name.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd"))
    other = detached_voxels(place) if detached else other_half(place)
    return [place] if other is None or not other.is_file() else [place, other]


def stem_of(path: Path) -> str:
    """Return the name of a scan or annotation without its ending, ``.seg.nrrd`` for one."""
    stem, ending = split_ending(path.name)
    return re.sub(r"(?i)\.seg$", "", stem) if ending else stem


def is_pair_data(path: Path) -> bool:
    """Tell whether a file is named as the voxels of a NIfTI or Analyze pair, which its header stands for."""
    return path.name.lower().endswith(tuple(PAIRS.values()))


def is_scan(path: Path) -> bool:
    """Tell whether a file is a scan by its name; of a pair only the header counts."""
    return is_image_file(path) and not is_pair_data(path)


def is_annotation(path: Path) -> bool:
    """Tell whether a file may be an annotation."""
    return not path.name.startswith(".") and (is_image_file(path) or path.suffix.lower() == ".dcm")


def is_images_folder(path: Path) -> bool:
    """Tell whether a folder is named as one of many scans."""
    return bool(_IMAGES.fullmatch(path.name))


def label_folder(images: Path) -> Path | None:
    """Return the folder of the labels of an images folder."""
    ending = _IMAGES.fullmatch(images.name)
    tail = (ending[2] or "") if ending else ""
    beside = sorted(path for path in images.parent.iterdir() if path.is_dir())
    return next((path for path in beside if path.name.lower() in {name + tail.lower() for name in _LABELS}), None)


def only_image(files: Sequence[Path]) -> Path | None:
    """Return the image.* among the files of a folder."""
    return next((file for file in files if is_scan(file) and stem_of(file).lower() in _ONE_IMAGE), None)


def labels_in(files: Sequence[Path], *, dicom: bool = False) -> list[Path]:
    """Return every label.* among the files of a folder; ``dicom``: a DICOM object counts too."""
    usable = (file for file in files if is_scan(file) or (dicom and file.suffix.lower() == ".dcm"))
    return [file for file in usable if stem_of(file).lower() in _ONE_LABEL]


def named_pairs(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return (scan, annotation) where the names say so: ``CT7.nrrd`` with ``CT7-label.nrrd`` or ``CT7.seg.nrrd``.

    An annotation that is named after no scan, such as ``Segmentation.seg.nrrd``, is of the single scan of its folder,
    if it is the single annotation.
    """
    images = [file for file in files if is_scan(file) and "uncertainty" not in file.name.lower()]
    annotations = [file for file in images if _named_as_annotation(file)]
    scans = [file for file in images if file not in annotations]
    names = ("",) if len(scans) == len(annotations) == 1 else ()
    pairs = []
    for scan in scans:
        own = [
            file for file in annotations if _ANNOTATION.sub("", split_ending(file.name)[0]) in (stem_of(scan), *names)
        ]
        if len(own) == 1 and sum(stem_of(other) == stem_of(scan) for other in scans) == 1:
            pairs.append((scan, own[0]))
    return pairs


def by_channel(images: Sequence[Path], labels: Collection[str]) -> dict[str, dict[int | None, Path]]:
    """Return name of a scan → channel (None: the file is the scan) → file.

    A number at the end is that of a channel when the label's name lacks it, or when there is a channel 0.
    """
    groups: dict[str, dict[int | None, Path]] = {}
    stems = {stem_of(image) for image in images}
    for image in images:
        stem, channel = stem_of(image), None
        number = _CHANNEL.search(stem)
        if number is not None and stem not in labels:
            name = stem[: number.start()]
            if name in labels or f"{name}_0000" in stems:
                stem, channel = name, int(number[1])
        other = groups.setdefault(stem, {}).setdefault(channel, image)
        if other != image:
            logger.warning("%s: is left out, %s has the same name", image, other.name)
    return groups


def _in_folder(top: Path, place: Path, files: list[Path]) -> list[Scan]:
    def image(path: Path) -> Scan:
        return Scan(str(path.relative_to(top).with_name(split_ending(path.name)[0])), path)

    archive = find_series(path for path in files if not is_image_file(path))
    name = str(place.relative_to(top)) if place != top else place.resolve().name
    several = len(archive.series) > 1
    return [
        *(image(path) for path in files if is_scan(path) and not _named_as_annotation(path)),
        *(image(path) for path in archive.damaged),
        *(
            Scan(
                f"{name}/{series.uid or 'no-uid'}" if several else name, place, series.uid or None, tuple(series.files)
            )
            for series in archive.series
        ),
    ]


def files_of(place: Path) -> list[Path]:
    """Return the files that a scan or annotation is read from: of a folder those that are DICOM by name or content."""
    found = scan_files(place)
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
