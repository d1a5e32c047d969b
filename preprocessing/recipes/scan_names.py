"""Which files of a folder tree are scans and which are labels, told by their names."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from boltzformer_monai.io.formats import is_image_file

__all__ = ["by_channel", "is_annotation", "is_images_folder", "is_scan", "label_folder", "only_image", "only_label",
           "stem_of", "walk"]  # fmt: skip

logger = logging.getLogger(__name__)

_ENDING = re.compile(r"(?i)(\.seg)?\.(nii(\.gz)?|nrrd|nhdr|mha|mhd|hdr(\.gz)?|img(\.gz)?|dcm)$")
_IMAGES = re.compile(r"(?i)(images?|imgs?|scans?)(Tr|Va|Ts)?")
_LABELS = {"labels", "label", "masks", "segmentations"}
_CHANNEL = re.compile(r"_(\d{4})$")
_ONE_IMAGE = {"image", "img", "scan"}
_ONE_LABEL = {"label", "labels", "mask", "seg", "segmentation"}


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder with the names of its files, sorted, without hidden ones.

    Links to folders are followed, after the real folders, so that no folder comes twice; one to a folder above itself
    is left out.
    """
    seen: set[str] = set()
    pending = [folder]
    while pending:
        start, links = pending.pop(0), []
        for directory, subfolders, names in os.walk(start):
            place, real = Path(directory), os.path.realpath(directory)
            if real in seen:
                if place == start:
                    logger.warning("%s: is left out, it links to a folder that is listed already", start)
                subfolders.clear()
                continue
            seen.add(real)
            visible = [place / name for name in sorted(subfolders) if not name.startswith(".")]
            links += [path for path in visible if path.is_symlink() and not _is_above(path, real)]
            subfolders[:] = [path.name for path in visible if not path.is_symlink()]
            yield place, sorted(name for name in names if not name.startswith("."))
        pending += links


def _is_above(link: Path, real: str) -> bool:
    """Tell whether a link leads to a folder or to one that it lies in."""
    return Path(real).is_relative_to(os.path.realpath(link))


def stem_of(path: Path) -> str:
    """Return the name of a scan or label without its ending."""
    return _ENDING.sub("", path.name)


def is_scan(path: Path) -> bool:
    """Tell whether a file is a scan by its name; of a pair only the header counts."""
    return is_image_file(path) and not path.name.lower().endswith((".img", ".img.gz"))


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
    return next((file for file in files if is_image_file(file) and stem_of(file).lower() in _ONE_IMAGE), None)


def only_label(files: Sequence[Path], *, dicom: bool = False) -> Path | None:
    """Return the label.* among the files of a folder; ``dicom``: a DICOM object counts too."""
    usable = (file for file in files if is_image_file(file) or (dicom and file.suffix.lower() == ".dcm"))
    return next((file for file in usable if stem_of(file).lower() in _ONE_LABEL), None)


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
