"""Scans of your own, in a plain folder; four forms are understood, and may lie side by side.

- ``images/`` with ``labels/`` beside it (also ``imagesTr``/``labelsTr`` and the like): files of equal name belong
  together. In the manner of nnU-Net an image may end in ``_0000``, ``_0001``, … for its channels; its
  ``dataset.json`` is read where there is no ``labels.json``.
- One folder for each scan with ``image.*`` and ``label.*``.
- Scans beside annotations that are named after them: ``CT7.nrrd`` with ``CT7.seg.nrrd`` or ``CT7_label.nrrd``; in a
  folder with a single scan and a single annotation that names no scan, such as ``Segmentation.seg.nrrd``, these two.
- DICOM series, anywhere: one scan each; its annotation is the SEG or RTSTRUCT, anywhere too, that refers to it, or
  where there is none, a ``label.*`` in its folder or the one above, if no other series lies there.

A ``labels.json`` (``{"modality", "site", "labels": {value: name}}``) beside the files names the label values, or one
at the top for all that have none beside them; SEG, RTSTRUCT and ``CT7.seg.nrrd`` bring their names.
Scans without annotation are listed as well. A scan that cannot be listed properly becomes a case that fails when it is
read; so does an image file that is in none of these forms and no annotation by its name. Of several SEG or RTSTRUCT
objects that refer to one series, the option ``annotation`` chooses by file name.

The patient of a DICOM series is its PatientID, that of other scans the first group of the regular expression
``patient_pattern`` in the path below the folder. Without it, with a warning, a scan in a folder of its own is taken for
one of the patient whom the first folder is named after (``P3/visit1/image.nii`` is of P3), a file of ``images/`` for
one of a patient of that name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from boltzformer_monai.data.label_names import LabelMap, read_label_names
from boltzformer_monai.errors import ConfigError, DatasetError, VolumeError
from boltzformer_monai.io import scan_list
from boltzformer_monai.io.dicom.archive import Archive, Series, find_series
from boltzformer_monai.io.folder_tree import Tree, read_tree
from boltzformer_monai.io.grids import GRID_TOLERANCE
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.modality import stated_modality
from boltzformer_monai.slicing.cases import Annotation, Case, LabelFile, used_files
from boltzformer_monai.slicing.recipes import Option
from boltzformer_monai.slicing.recipes.dataset_json import DESCRIPTION_FILE, read_nnunet_names
from boltzformer_monai.slicing.recipes.patients import PatientGuesses, compile_pattern

logger = logging.getLogger(__name__)

NAMES_FILE = "labels.json"

OPTIONS = (
    Option("patient_pattern", "", "regular expression whose first group is the patient in the path below the folder"),
    Option("annotation", "", "regular expression that chooses, by file name, among annotations of one DICOM series"),
)


@dataclass(frozen=True)
class Unusable:
    """Stands for an annotation that cannot be chosen or understood; raises the reason when it is needed."""

    message: str
    paths: tuple[Path, ...]

    def draw_on(self, image: Volume, *, tolerance: float = GRID_TOLERANCE) -> Segmentation:  # noqa: ARG002
        """Raise the message as a :class:`DatasetError`."""
        raise DatasetError(self.message)

    def files(self) -> tuple[Path, ...]:
        """Return the files in question."""
        return self.paths


def cases(
    folder: Path, *, modality: str | None, site: str | None, channel: int | None, patient_pattern: str, annotation: str
) -> list[Case]:
    """List the scans of a folder tree; ``channel``: which ``_0000`` file, or channel of four-dimensional NIfTI files.

    Raises:
        DatasetError: there is no folder or no scan, or the labels.json at the top is damaged.
        VolumeError: the labels.json at the top says another modality than ``modality``.
        ConfigError: scans have several channels and none was chosen, or a pattern does not fit.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    patients = PatientGuesses(compile_pattern("patient_pattern", patient_pattern, group=True))
    chosen = compile_pattern("annotation", annotation, group=False)
    modality = None if modality is None else stated_modality(modality)
    tree = read_tree(folder)
    listing = _Listing(folder, modality, site, channel, patients)
    taken: set[Path] = set()
    found = [(place, [place / name for name in names]) for place, names in tree.folders]
    for place, files in found:
        if scan_list.is_images_folder(place):
            labels = None if place == folder else scan_list.label_folder(place)
            if labels is not None or scan_list.only_image(files) is None:
                listing.add_pairs(place, files, labels)
                taken.update((place, *([labels] if labels else [])))
    for place, files in found:
        image = scan_list.only_image(files)
        if place in taken:
            continue
        if image is not None:
            listing.add_folder(place, image, scan_list.labels_in(files, dicom=True))
        for scan, drawn in [] if image is not None else scan_list.named_pairs(files):
            if not scan_list.named_as_annotation(scan, folder):  # by a folder that it lies in
                listing.add_named(scan, drawn)
    listing.add_dicom(tree.files, chosen)
    listing.add_strays(tree)
    if not listing.cases and tree.closed:
        place, why = tree.closed[0]
        raise DatasetError(f"{folder}: no scan can be seen; {place} cannot be opened ({why})")
    if not listing.cases:
        msg = (
            f"{folder}: holds no scans; looked for images/ with labels/, folders with image.nii.gz (or .nrrd, .mha) "
            "and label.*, X.nrrd with X.seg.nrrd, and DICOM series"
        )
        raise DatasetError(msg)
    patients.warn(folder)
    return _unlike(listing.cases, folder)


def _unlike(listed: list[Case], folder: Path) -> list[Case]:
    """Return the cases by id; one whose id is taken gets that of its path."""
    ordered = []
    for _, same in groupby(sorted(listed, key=lambda case: (case.volume_id, case.image)), lambda case: case.volume_id):
        first, *others = same
        ordered += [first, *(replace(each, volume_id=str(each.image.relative_to(folder))) for each in others)]
    return ordered


class _Listing:
    """Makes cases of what was found."""

    def __init__(
        self, top: Path, modality: str | None, site: str | None, channel: int | None, patients: PatientGuesses
    ) -> None:
        self.top, self.modality, self.site, self.channel, self.patients = top, modality, site, channel, patients
        self.cases: list[Case] = []
        self._common = self._names_of(top)

    def _names_of(self, folder: Path) -> LabelMap | None:
        """Return what a labels.json in a folder says, or where there is none, a dataset.json of nnU-Net."""
        names = None
        if (path := folder / NAMES_FILE).is_file():
            names = read_label_names(path)
        elif (path := folder / DESCRIPTION_FILE).is_file():
            names = read_nnunet_names(path, channel=self.channel)
        return None if names is None else names.settled(self.modality, source=path)

    def add_pairs(self, place: Path, images: Sequence[Path], labels: Path | None) -> None:
        """Add the files of an images folder with those of equal name in the labels folder."""
        drawn: dict[str, list[Path]] = {}
        for file in [] if labels is None else sorted(filter(scan_list.is_annotation, labels.iterdir())):
            if not scan_list.is_pair_data(file):
                drawn.setdefault(scan_list.stem_of(file), []).append(file)
        base = self.top if place == self.top else place.parent
        groups = scan_list.by_channel([file for file in images if scan_list.is_scan(file)], drawn.keys())
        for name, files in groups.items():
            image, channel = min(files.values()), None
            if None in files:
                image, channel = files[None], self.channel
            elif self.channel is None and len(files) > 1:
                raise ConfigError(f"{image}: is one of {len(files)} channels of a scan; choose one with --channel")
            else:  # a channel that is not there fails when it is read
                wanted = self.channel or 0
                if wanted not in files:
                    there = ", ".join(str(number) for number in sorted(files, key=str))
                    logger.warning("%s: has no channel %d, only %s", image.with_name(name), wanted, there)
                image = files.get(wanted, image.with_name(f"{name}_{wanted:04d}.nii.gz"))
            patient = self.patients(image.relative_to(self.top), name, "file name")
            self._add(str((base / name).relative_to(self.top)), patient, image, drawn.get(name, []), base, channel)
        left = drawn.keys() - groups.keys()
        if left:
            logger.warning("%s: %d labels have no image (%s, …)", labels, len(left), min(left))

    def add_folder(self, place: Path, image: Path, labels: Sequence[Path]) -> None:
        """Add the one scan of a folder."""
        relative = place.relative_to(self.top)
        parts = relative.parts or (place.resolve().name,)
        patient = self.patients(image.relative_to(self.top), parts[0], "first folder")
        self._add(str(Path(*parts)), patient, image, labels, place, self.channel)

    def add_named(self, scan: Path, drawn: Path) -> None:
        """Add a scan and the annotation that is named after it."""
        relative = scan.relative_to(self.top)
        first = relative.parts[0] if len(relative.parts) > 1 else scan_list.stem_of(scan)
        patient = self.patients(relative, first, "first folder" if len(relative.parts) > 1 else "file name")
        self._add(str(relative.with_name(scan_list.stem_of(scan))), patient, scan, [drawn], scan.parent, self.channel)
        last = self.cases[-1]
        common = None if self._common is None else dict(self._common.labels)
        if drawn.name.lower().endswith(".seg.nrrd") and last.annotation == LabelFile(drawn, common):
            # It brings its names; those at the top were written for other scans.
            self.cases[-1] = replace(last, annotation=LabelFile(drawn))

    def add_strays(self, tree: Tree) -> None:
        """Add, as a scan that is refused, every image file that nothing uses and that is no annotation by its name.

        Beside a scan that was understood it may be anything: another channel, something computed from the scan.
        """
        used = [path for case in self.cases for path in used_files(case)]
        scans = {path.parent: case.image for case in self.cases for path in case.files or (case.image,)}
        for path in filter(scan_list.is_scan, scan_list.find_left_out(tree, used).get("image files", [])):
            other = scans.get(path.parent)
            if other is None:
                message = (
                    f"{path}: is an image file in no known layout; call it image.* and its label label.*, in a folder "
                    f"of their own, or its label {scan_list.stem_of(path)}_label.*, or put it into images/ and its "
                    "label of the same name into labels/"
                )
            elif scan_list.only_image([path]) is not None:
                message = f"{path}: {other.name} is taken for the scan of this folder; give this one its own folder"
            else:
                continue
            name = str(path.relative_to(self.top))
            self.cases.append(Case(name, name, path, None, self.site or "", problem=message))

    def add_dicom(self, files: Sequence[Path], chosen: re.Pattern[str] | None) -> None:
        """Add the DICOM series among files; damaged files that belong to none become a case, one for each folder."""
        archive = find_series(files)
        for series in archive.series:
            annotation, known = self._annotation_of(series, archive, chosen)
            first = series.files[0].relative_to(self.top)
            patient = series.patient or self.patients(first, series.uid or str(first), "series")
            self._add_series(series, patient, annotation, self.site or known.site)
        for _, damaged in groupby(archive.damaged, lambda path: path.parent):
            self._add_series(Series("", "", list(damaged)), "nobody", None, self.site or "")
        if archive.damaged:
            line = "%s: %d damaged DICOM files name no series; one that they belong to lacks these slices (%s, …)"
            logger.warning(line, self.top, len(archive.damaged), archive.damaged[0].name)
        if archive.unmatched:
            line = "%s: %d annotations refer to series that are not there (%s, …)"
            logger.warning(line, self.top, len(archive.unmatched), archive.unmatched[0].name)

    def _add_series(self, series: Series, patient: str, annotation: Annotation | None, site: str) -> None:
        self.cases.append(
            Case(
                series.uid or str(series.files[0].relative_to(self.top)),
                patient,
                series.folder,
                annotation,
                site,
                modality=self.modality,
                series=series.uid or None,
                files=tuple(series.files),
            )
        )

    def _annotation_of(
        self, series: Series, archive: Archive, chosen: re.Pattern[str] | None
    ) -> tuple[Annotation | None, LabelMap]:
        """Return what was drawn on a series, and the labels.json that goes with it."""
        known = self._common or LabelMap({})
        several = series.annotations
        if len(several) > 1 and chosen is not None:
            several = [path for path in several if chosen.search(path.name)]
        if len(several) == 1:
            return LabelFile(several[0]), known
        if series.annotations:
            names = ", ".join(path.name for path in series.annotations[:5])
            message = (
                f"{series.folder}: {len(series.annotations)} annotations refer to one series ({names}); choose one by "
                f"its file name with --option annotation=REGEX"
            )
            if chosen is not None:
                message += f" ({chosen.pattern!r} finds {len(several)})"
            return Unusable(message, tuple(series.annotations)), known
        for place in (series.folder, series.folder.parent):
            labels = self._labels_of(place, archive)
            if labels:
                return self._drawn(labels, place)
        return None, known

    def _labels_of(self, place: Path, archive: Archive) -> list[Path]:
        """Return the label.* of a folder in or below which there is a single DICOM series."""
        inside = [series for series in archive.series if place in (series.folder, *series.folder.parents)]
        if len(inside) != 1 or self.top not in (place, *place.parents):
            return []
        return scan_list.labels_in(sorted(place.iterdir()))

    def _drawn(self, labels: Sequence[Path], place: Path) -> tuple[Annotation | None, LabelMap]:
        """Return the annotation of a scan, named by the labels.json of its folder or the common one, and that."""
        folders = [*(label.parent for label in labels[:1]), place]  # of the labels first: it is nearer
        try:
            own = (self._names_of(each) for each in folders if each != self.top)
            known = next((names for names in own if names is not None), self._common)
        except (DatasetError, VolumeError) as error:  # one scan's mistake is not the others'
            return Unusable(str(error), tuple(labels)), LabelMap({})
        if len(labels) > 1:
            names = ", ".join(path.name for path in labels[:5])
            message = f"{labels[0].parent}: holds {len(labels)} annotations of one scan ({names}); keep the one meant"
            return Unusable(message, tuple(labels)), known or LabelMap({})
        if not labels:
            return None, known or LabelMap({})
        return LabelFile(labels[0], None if known is None else dict(known.labels)), known or LabelMap({})

    def _add(
        self, name: str, patient: str, image: Path, labels: Sequence[Path], place: Path, channel: int | None
    ) -> None:
        annotation, known = self._drawn(labels, place)
        self.cases.append(
            Case(
                name,
                patient,
                image,
                annotation,
                self.site or known.site,
                modality=self.modality or (known.modality if known.modality != "unknown" else None),
                channel=channel,
            )
        )
