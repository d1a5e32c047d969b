"""Choose one series of a DICOM folder, and refuse slices that cannot become a scan."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.files import Found, SliceHeader, find_slices
from boltzformer_monai.modality import settled_modality

logger = logging.getLogger(__name__)

_LISTED = 10  # series named in a message


def choose_series(place: Path, series: str | None, files: Sequence[Path] = ()) -> list[SliceHeader]:
    """Return the slices of the chosen or only series of a folder or of one file, sorted by path and frame.

    Args:
        place: the folder or the file.
        series: SeriesInstanceUID.
        files: the files of the series, where they are known; then nothing else in the folder is looked at.

    Raises:
        VolumeError: there is nothing to read, several series and none chosen, a series of several patients, modalities
            or frames of reference, or one of the ``files`` is no slice of the series.
    """
    if not place.exists():
        raise VolumeError(f"{place}: no such folder", reason="missing")
    found = find_slices(place, files)
    groups: dict[str, list[SliceHeader]] = {}
    for header in found.slices:
        groups.setdefault(header.series, []).append(header)
    foreign = set(files) - {header.path for header in found.slices if series in (None, header.series)}
    if foreign:
        msg = f"{min(foreign)}: is no slice of its series; repair or remove it, then list the scans again"
        raise VolumeError(msg, reason="not an image")
    if not groups:
        raise _nothing(place, found)
    if series is not None and series not in groups:
        raise VolumeError(f"{place}: has no series {series}; it has {_listing(groups)}", reason="missing")
    if series is None and len(groups) > 1:
        msg = f"{place}: holds {len(groups)} series; choose one by its UID with --series UID: {_listing(groups)}"
        raise VolumeError(msg, reason="several series")
    slices = groups[series] if series is not None else next(iter(groups.values()))
    _check_one_source(slices)
    return slices


def with_modality(slices: list[SliceHeader], modality: str | None) -> list[SliceHeader]:
    """Return slices of a modality that can be used, with the given one where their headers state none.

    Raises:
        VolumeError: the headers state neither CT nor MR, or not the given one.
    """
    stated = slices[0].modality
    first = slices[0].path
    place = first if all(header.path == first for header in slices) else first.parent
    settled = settled_modality(stated, modality, source=f"{place}: its DICOM headers say")
    return slices if settled in (stated, "unknown") else [replace(header, modality=settled) for header in slices]


def check_slices(slices: list[SliceHeader]) -> None:
    """Refuse what has no single trustworthy value per pixel or no place in the patient; name the file and the reason.

    Raises:
        VolumeError: colour, mosaic, lookup table, CT without rescale, or missing geometry.
    """
    for header in slices:
        if problem := _colour(header) or _mosaic(header) or _geometry(header) or _values(header):
            raise VolumeError(f"{header.path}: {problem[0]}", reason=problem[1])
    first = slices[0]
    if first.modality == "CT" and any(header.geometry.rescale_type not in ("", "HU") for header in slices):
        logger.warning("%s: RescaleType is not HU; windows may not fit", first.path.parent)


def _nothing(place: Path, found: Found) -> VolumeError:
    """Return the error about a place without slices, with what it holds instead."""
    if found.objects:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.objects.most_common(_LISTED))
        if place.is_file():
            return VolumeError(f"{place}: is no scan but a DICOM {next(iter(found.objects))}", reason="not an image")
        msg = f"{place}: holds no DICOM slices, only {kinds}; pass the folder with the image files of one series"
        return VolumeError(msg, reason="not an image")
    if found.images:
        kinds = " and ".join(f"{count} {kind}" for kind, count in sorted(found.images.items()))
        plural = "s" if sum(found.images.values()) > 1 else ""
        msg = f"{place}: holds no DICOM slices but {kinds} file{plural}; pass one of them, or use the folder recipe"
        return VolumeError(msg, reason="unsupported format")
    if place.is_file():
        return VolumeError(f"{place}: is not a DICOM file; pass a DICOM file or folder", reason="unsupported format")
    msg = f"{place}: holds no DICOM slices; pass the folder with the image files of one series"
    return VolumeError(msg, reason="missing")


def _listing(groups: dict[str, list[SliceHeader]]) -> str:
    """Describe the series, the longest first. Descriptions stay out: people write names into them."""
    longest_first = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    words = []
    for uid, slices in longest_first[:_LISTED]:
        sizes = sorted({f"{header.columns}x{header.rows}" for header in slices})
        size = sizes[0] if len(sizes) == 1 else "several sizes"
        number = f"{len(slices)} slice{'s' if len(slices) > 1 else ''}"
        words.append(f"{uid or '(no UID)'} ({slices[0].modality or 'no modality'}, {number} of {size})")
    more = [f"and {len(groups) - _LISTED} more"] if len(groups) > _LISTED else []
    return ", ".join(words + more)


def _check_one_source(slices: list[SliceHeader]) -> None:
    """Refuse files that share a series UID but not a patient, a modality, a frame of reference or a kind of image."""
    first, folder = slices[0], slices[0].path.parent
    localizer = next((header for header in slices if "LOCALIZER" in header.image_type), None)
    scan = next((header for header in slices if "LOCALIZER" not in header.image_type), None)
    if localizer is not None and scan is not None:
        msg = f"{folder}: {localizer.name} is a localizer among slices such as {scan.name}; remove the localizers"
        raise VolumeError(msg, reason="localizer")
    for name, reason in (
        ("patient_id", "several patients"),
        ("modality", "mixed modalities"),
        ("frame_of_reference", "several frames of reference"),
    ):
        other = next((header for header in slices if getattr(header, name) != getattr(first, name)), None)
        if other is not None:
            what = name.replace("_", " ")
            msg = f"{folder}: {first.name} and {other.name} differ in {what}; they are not one scan, separate them"
            raise VolumeError(msg, reason=reason)


_Problem = tuple[str, str] | None  # words, reason


def _colour(header: SliceHeader) -> _Problem:
    if header.samples == 1 and header.photometric.startswith("MONOCHROME"):
        return None
    if header.samples == 1 and not header.photometric:
        return "states no PhotometricInterpretation, so its pixels are undefined; export it again", "damaged"
    return f"is a colour image ({header.photometric!r}), not a grayscale slice; leave it out", "colour"


def _mosaic(header: SliceHeader) -> _Problem:
    if "MOSAIC" not in header.image_type:
        return None
    return "is a Siemens mosaic, which packs many slices into one image; unpack it with dcm2niix", "mosaic"


def _geometry(header: SliceHeader) -> _Problem:
    place = header.geometry
    if None not in (place.position, place.cosines, place.pixel_spacing):
        return None
    if header.frame is None and header.frames != 1:
        words = f"is a multi-frame object ({header.frames} frames) that does not say where each frame lies"
    else:
        which = "" if header.frame is None else f"frame {header.frame + 1} "
        words = f"{which}lacks a usable ImagePositionPatient, ImageOrientationPatient or PixelSpacing, so its place in "
        words += "the patient is unknown"
    return f"{words}; export it with its geometry, or leave it out", "no geometry"


def _values(header: SliceHeader) -> _Problem:
    if header.lookup_table:
        return "maps its voxels by a Modality LUT table, which is not read; convert it to NIfTI", "lookup table"
    if header.modality == "CT" and not header.geometry.rescaled:
        return "a CT slice without RescaleSlope and RescaleIntercept has no Hounsfield units", "no rescale"
    return None
