"""Which files of a folder tree are scans and which are labels, told by their names."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.io.scan_list import named_as_annotation, split_ending

__all__ = ["by_channel", "is_annotation", "is_images_folder", "is_scan", "label_folder", "labels_in", "named_pairs",
           "only_image", "stem_of"]  # fmt: skip

logger = logging.getLogger(__name__)

_ENDING = re.compile(r"(?i)(\.seg)?\.(nii(\.gz)?|nrrd|nhdr|mha|mhd|hdr(\.gz)?|img(\.gz)?|dcm)$")
_IMAGES = re.compile(r"(?i)(images?|imgs?|scans?)(Tr|Va|Ts)?")
_LABELS = {"labels", "label", "masks", "segmentations"}
_CHANNEL = re.compile(r"_(\d{4})$")
_ANNOTATION = re.compile(r"(?i)((^|[-_. ]+)(labels?|masks?|seg|segmentation))+$")  # also CT7-label.seg
_ONE_IMAGE = {"image", "img", "scan"}
_ONE_LABEL = {"label", "labels", "mask", "seg", "segmentation"}


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
    return next((file for file in files if is_scan(file) and stem_of(file).lower() in _ONE_IMAGE), None)


def labels_in(files: Sequence[Path], *, dicom: bool = False) -> list[Path]:
    """Return every label.* among the files of a folder; ``dicom``: a DICOM object counts too."""
    usable = (file for file in files if is_scan(file) or (dicom and file.suffix.lower() == ".dcm"))
    return [file for file in usable if stem_of(file).lower() in _ONE_LABEL]


def named_pairs(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return (scan, annotation) where the names say so: ``CT7.nrrd`` with ``CT7-label.nrrd`` or ``CT7.seg.nrrd``.

    An annotation whose name says of no scan, such as ``Segmentation.seg.nrrd``, is of the single scan of its folder,
    if it is the single annotation.
    """
    images = [file for file in files if is_scan(file) and "uncertainty" not in file.name.lower()]
    drawn = [file for file in images if named_as_annotation(file, file.parent)]
    scans = [file for file in images if file not in drawn]
    names = ("",) if len(scans) == len(drawn) == 1 else ()
    pairs = []
    for scan in scans:
        own = [file for file in drawn if _ANNOTATION.sub("", split_ending(file.name)[0]) in (stem_of(scan), *names)]
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
