"""A list of lesions as JSON, and what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from boltzformer_monai import __version__
from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.planes import plane_of_axis
from boltzformer_monai.errors import ConfigError, why
from boltzformer_monai.findings.lesions import acquisition_axis
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.segmentation import Segmentation, read_segmentation
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.limits import read_json

__all__ = ["FORMAT", "VERSION", "lesions_record", "read_drawn", "read_record", "size_remarks"]

FORMAT = "boltzformer-lesions"
VERSION = 1


def read_drawn(
    labels: Path,
    image: Path,
    *,
    names: Mapping[str, str] | None = None,
    modality: str | None = None,
    series: str | None = None,
) -> tuple[Volume, Segmentation]:
    """Read a scan and what is drawn on it; the scan gets the caveats of both.

    Args:
        labels: label map, DICOM SEG or RTSTRUCT.
        image: the scan.
        names: of label values; see :meth:`~boltzformer_monai.io.segmentation.Segmentation.named`.
        modality: of a scan that does not state it.
        series: of a folder with several.

    Raises:
        VolumeError: one cannot be read, or the labels are not on the grid of the scan.
        DatasetError: a name is of no label value.
    """
    scan = read_volume(image, modality=modality, series=series, tilt="keep")
    drawn = read_segmentation(labels, scan)
    caveats = [*scan.caveats, *drawn.volume.caveats]
    if scan.modality == "unknown":
        text = "nothing states the modality, so the intensities are in Hounsfield units only if this is a CT"
        caveats.append(Caveat("unstated modality", f"{text}; give --modality"))
    return replace(scan, caveats=tuple(dict.fromkeys(caveats))), drawn.named(names) if names else drawn


def lesions_record(
    targets: Sequence[Mapping[str, Any]],
    scan: Volume,
    *,
    files: Mapping[str, str],
    series: str | None = None,
    minimum_ml: float = 0.0,
    minimum_mm: float = 0.0,
) -> dict[str, Any]:
    """The list as plain values.

    Args:
        targets: of :meth:`~boltzformer_monai.findings.measure.MeasuredTarget.as_dict`.
        scan: that was measured on.
        files: ``labels`` and ``image``, as seen from the folder of the JSON.
        series: of the image, where its folder holds several.
        minimum_ml: of a lesion.
        minimum_mm: of a lesion.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "package": __version__,
        "targets": list(targets),
        "modality": scan.modality,
        "shape": list(scan.shape),
        "spacing_mm": [float(f"{mm:.6g}") for mm in scan.spacing],
        "plane": plane_of_axis(scan, acquisition_axis(scan)),
        "connectivity": 26,
        "lesion_min_ml": minimum_ml,
        "lesion_min_mm": minimum_mm,
        "caveats": [caveat.as_dict() for caveat in scan.caveats],
        "in_doubt": any(caveat.doubtful for caveat in scan.caveats),
        "files": dict(files),
        "series": series,
    }


def size_remarks(minimum_ml: float, minimum_mm: float) -> list[str]:
    """What a reader of a report must know of the sizes from which a component is listed."""
    limits = [f"{value:g} {unit}" for value, unit in ((minimum_ml, "ml"), (minimum_mm, "mm")) if value > 0]
    return [f"Lesions under {' or '.join(limits)} are not listed"] if limits else []


def read_record(path: Path) -> dict[str, Any]:
    """Read a list of lesions.

    Raises:
        ConfigError: it cannot be read, or is none of this version.
    """
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({why(error)}); give a JSON file of boltzformer measure") from None
    if isinstance(record, dict) and record.get("format") == FORMAT and record.get("version") != VERSION:
        stated = ascii(record.get("version"))[:20]
        raise ConfigError(f"{path}: is a list of lesions of version {stated}, not {VERSION}; measure again")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ConfigError(f"{path}: is no list of lesions; give a JSON file of boltzformer measure, or a label map")
    return record
