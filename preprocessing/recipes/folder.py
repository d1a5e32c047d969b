"""Scans of your own, in a plain folder; three forms are understood, and may lie side by side.

- ``images/`` with ``labels/`` beside it (also ``imagesTr``/``labelsTr`` and the like): files of equal name belong
  together. In the manner of nnU-Net an image may end in ``_0000``, ``_0001``, … for its channels.
- One folder for each scan with ``image.*`` and ``label.*``.
- DICOM series, anywhere: one scan each; its annotation is the SEG or RTSTRUCT, anywhere too, that refers to it, or
  where there is none, a ``label.*`` in its folder or the one above, if no other series lies there.

What label values mean is said by a ``labels.json`` (``{"modality", "site", "labels": {value: name}}``) beside the
files, or by one at the top for all that have none beside them; SEG and RTSTRUCT bring their names. Scans without
annotation are listed as well. A scan that cannot be listed properly becomes a case that fails when it is read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from boltzformer_monai.data.label_map import LabelMap, read_label_names
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.io.volume import Volume
from preprocessing.cases import Annotation, Case, LabelFile
from preprocessing.recipes.dicom_archive import Archive, find_series

logger = logging.getLogger(__name__)

NAMES_FILE = "labels.json"

_ENDING = re.compile(r"(?i)(\.seg)?\.(nii(\.gz)?|nrrd|nhdr|mha|mhd|hdr(\.gz)?|img(\.gz)?|dcm)$")
_IMAGES = re.compile(r"(?i)(images?|imgs?|scans?)(Tr|Va|Ts)?")
_LABELS = {"labels", "label", "masks", "segmentations"}
_CHANNEL = re.compile(r"_(\d{4})$")
_ONE_IMAGE = {"image", "img", "scan"}
_ONE_LABEL = {"label", "labels", "mask", "seg", "segmentation"}


@dataclass(frozen=True)
class Unusable:
    """Stands for an annotation that cannot be chosen or understood; says why when it is needed.

    Attributes:
        message: one line: what, where, what to do.
        paths: the files in question.
    """

    message: str
    paths: tuple[Path, ...]

    def draw_on(self, image: Volume) -> Segmentation:
        """Raise.

        Raises:
            DatasetError: always.
        """
        raise DatasetError(self.message)

    def files(self) -> tuple[Path, ...]:
        """Return the files in question."""
        return self.paths


def cases(
    folder: Path, *, modality: str | None = None, site: str | None = None, channel: int | None = None
) -> list[Case]:
    """List the scans of a folder tree.

    Args:
        folder: where to look, subfolders included.
        modality: ``"CT"`` or ``"MR"``; default: as the labels.json or the DICOM header says.
        site: overrides the labels.json.
        channel: which ``_0000`` file, or which picture of four-dimensional NIfTI files.

    Raises:
        DatasetError: there is no folder or no scan, or the labels.json at the top is damaged.
        ConfigError: scans have several channels and none was chosen.
    """
    if not folder.is_dir():
        msg = f"{folder}: no such folder"
        raise DatasetError(msg)
    listing = _Listing(folder, modality, site, channel)
    taken: set[Path] = set()
    for place, names in _walk(folder):
        files = [place / name for name in names]
        if _IMAGES.fullmatch(place.name):
            labels = None if place == folder else _label_folder(place)
            if labels is not None or not _alone(files, _ONE_IMAGE):
                listing.add_pairs(place, files, labels)
                taken.update((place, *([labels] if labels else [])))
                continue
        image = _alone(files, _ONE_IMAGE)
        if image is not None and place not in taken:
            listing.add_folder(place, image, _alone(files, _ONE_LABEL, dicom=True))
    listing.add_dicom([place / name for place, names in _walk(folder) for name in names])
    if not listing.cases:
        msg = (
            f"{folder}: holds no scans; looked for images/ with labels/, folders with image.nii.gz (or .nrrd, .mha) "
            "and label.*, and DICOM series"
        )
        raise DatasetError(msg)
    return sorted(listing.cases, key=lambda case: case.volume_id)


class _Listing:
    """Makes cases of what was found."""

    def __init__(self, top: Path, modality: str | None, site: str | None, channel: int | None) -> None:
        self.top, self.modality, self.site, self.channel = top, modality, site, channel
        self.cases: list[Case] = []
        names = top / NAMES_FILE
        self._common = read_label_names(names) if names.is_file() else None

    def add_pairs(self, place: Path, images: Sequence[Path], labels: Path | None) -> None:
        """Add the files of an images folder with those of equal name in the labels folder."""
        drawn = {} if labels is None else {_stem(file): file for file in sorted(labels.iterdir()) if _is_file(file)}
        base = self.top if place == self.top else place.parent
        groups = _by_channel([file for file in images if _is_scan(file)], drawn.keys())
        for name, files in groups.items():
            image, channel = min(files.values()), None
            if None in files:
                image, channel = files[None], self.channel
            elif self.channel is None and len(files) > 1:
                msg = f"{image}: is one of {len(files)} channels of a scan; choose one with --channel"
                raise ConfigError(msg)
            else:  # a channel that is not there fails when it is read
                wanted = self.channel or 0
                image = files.get(wanted, image.with_name(f"{name}_{wanted:04d}.nii.gz"))
            relative = (base / name).relative_to(self.top)
            self._add(str(relative), image, drawn.get(name), base, channel)
        left = drawn.keys() - groups.keys()
        if left:
            logger.warning("%s: %d labels have no image (%s, …)", labels, len(left), min(left))

    def add_folder(self, place: Path, image: Path, label: Path | None) -> None:
        """Add the one scan of a folder."""
        relative = place.relative_to(self.top)
        name = str(relative) if relative.parts else place.resolve().name
        self._add(name, image, label, place, self.channel)

    def add_dicom(self, files: Sequence[Path]) -> None:
        """Add the DICOM series among files; a damaged file that belongs to none becomes a case of its own."""
        archive = find_series(files)
        for series in archive.series:
            folder = series.folder
            known = self._common or LabelMap({})
            annotation: Annotation | None = None
            if len(series.annotations) == 1:
                annotation = LabelFile(series.annotations[0])
            elif series.annotations:
                names = ", ".join(path.name for path in series.annotations[:5])
                message = f"{folder}: {len(series.annotations)} annotations refer to one series ({names}); keep one"
                annotation = Unusable(message, tuple(series.annotations))
            else:
                place = next((place for place in (folder, folder.parent) if self._label_of(place, archive)), None)
                if place is not None:
                    annotation, known = self._drawn(self._label_of(place, archive), place)
            relative = str(folder.relative_to(self.top))
            self.cases.append(
                Case(
                    series.uid or relative,
                    series.patient or series.uid or relative,
                    folder,
                    annotation,
                    self.site or known.site,
                    modality=self.modality,
                    series=series.uid or None,
                    public=False,
                )
            )
        read = [series.folder for series in archive.series]
        for place in sorted({path.parent for path in archive.damaged}):
            # A series whose folder holds the damaged file is refused for it when it is read.
            if not any(place == folder or folder in place.parents for folder in read):
                name = str(place.relative_to(self.top))
                self.cases.append(Case(name, name, place, None, self.site or "", modality=self.modality, public=False))
        if archive.unmatched:
            first = archive.unmatched[0].name
            line = "%s: %d annotations refer to series that are not there (%s, …)"
            logger.warning(line, self.top, len(archive.unmatched), first)

    def _label_of(self, place: Path, archive: Archive) -> Path | None:
        """Return the label.* of a folder in or below which there is a single DICOM series."""
        inside = [series for series in archive.series if place in (series.folder, *series.folder.parents)]
        if len(inside) != 1 or self.top not in (place, *place.parents):
            return None
        return _alone(sorted(place.iterdir()), _ONE_LABEL)

    def _drawn(self, label: Path | None, place: Path) -> tuple[Annotation | None, LabelMap]:
        """Return the annotation in a file, named by the labels.json of its folder or the common one, and that."""
        known = self._common
        own = place / NAMES_FILE
        try:
            known = read_label_names(own) if own.is_file() and place != self.top else known
        except DatasetError as error:  # one scan's mistake is not the others'
            return Unusable(str(error), (own,)), LabelMap({})
        names = None if known is None else dict(known.labels)
        return None if label is None else LabelFile(label, names), known or LabelMap({})

    def _add(self, name: str, image: Path, label: Path | None, place: Path, channel: int | None) -> None:
        annotation, known = self._drawn(label, place)
        self.cases.append(
            Case(
                name,
                name,
                image,
                annotation,
                self.site or known.site,
                modality=self.modality or (known.modality if known.modality != "unknown" else None),
                channel=channel,
                public=False,
            )
        )


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder with the names of its files, sorted, without hidden ones."""
    for directory, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(directory), sorted(name for name in names if not name.startswith("."))


def _stem(path: Path) -> str:
    return _ENDING.sub("", path.name)


def _is_scan(path: Path) -> bool:
    """Tell whether a file is a scan by its name; of a pair only the header counts."""
    return is_image_file(path) and not path.name.lower().endswith((".img", ".img.gz"))


def _by_channel(images: Sequence[Path], labels: Collection[str]) -> dict[str, dict[int | None, Path]]:
    """Return name of a scan → channel (None: the file is the scan) → file.

    A number at the end is that of a channel when the label's name lacks it, or when there is a channel 0.
    """
    groups: dict[str, dict[int | None, Path]] = {}
    stems = {_stem(image) for image in images}
    for image in images:
        stem, channel = _stem(image), None
        number = _CHANNEL.search(stem)
        if number is not None and stem not in labels:
            name = stem[: number.start()]
            if name in labels or f"{name}_0000" in stems:
                stem, channel = name, int(number[1])
        other = groups.setdefault(stem, {}).setdefault(channel, image)
        if other != image:
            logger.warning("%s: is left out, %s has the same name", image, other.name)
    return groups


def _is_file(path: Path) -> bool:
    """Tell whether a file may be an annotation."""
    return not path.name.startswith(".") and (is_image_file(path) or path.suffix.lower() == ".dcm")


def _label_folder(images: Path) -> Path | None:
    """Return the folder of the labels of an images folder."""
    ending = _IMAGES.fullmatch(images.name)
    tail = (ending[2] or "") if ending else ""
    beside = sorted(path for path in images.parent.iterdir() if path.is_dir())
    return next((path for path in beside if path.name.lower() in {name + tail.lower() for name in _LABELS}), None)


def _alone(files: Sequence[Path], stems: set[str], *, dicom: bool = False) -> Path | None:
    """Return the first file with one of these names."""
    usable = (file for file in files if is_image_file(file) or (dicom and file.suffix.lower() == ".dcm"))
    return next((file for file in usable if _stem(file).lower() in stems), None)
