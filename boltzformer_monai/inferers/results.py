"""Write a :class:`VolumeResult`: label map, masks per prompt, DICOM SEG or RTSTRUCT, and a manifest.

The manifest (``STEM.json``) is written last: if it exists, the other files are complete.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai import __version__
from boltzformer_monai.data.size_limits import SizeLimit
from boltzformer_monai.errors import VolumeError, why
from boltzformer_monai.findings.lesions import Lesion, find_lesions
from boltzformer_monai.inferers.colours import prompt_colour
from boltzformer_monai.inferers.prompt_codes import segment_code
from boltzformer_monai.inferers.result_caveats import about, in_doubt, remark, seg_series
from boltzformer_monai.inferers.result_manifest import FORMAT, VERSION, digest, outdated, preview_entry, source_digest
from boltzformer_monai.inferers.run_settings import (
    DICOM_ENDINGS,
    ModelRecord,
    RunSettings,
    beside,
    mask_names,
    uncertainty_names,
)
from boltzformer_monai.inferers.volume_result import VolumeResult
from boltzformer_monai.io.dicom.rtstruct_writer import write_rtstruct
from boltzformer_monai.io.dicom.seg_writer import write_dicom_seg
from boltzformer_monai.io.read import write_label_map
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.storage import atomic_path

__all__ = ["point_finding", "prompt_lesions", "write_results"]

_log = logging.getLogger(__name__)


def write_results(
    result: VolumeResult,
    stem: Path,
    settings: RunSettings,
    *,
    model: ModelRecord,
    scan: Scan,
    preview: Path | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Write all files of one scan, each atomically; outdated files of an earlier run are removed.

    Args:
        result: of the inferer.
        stem: path without ending: ``STEM.nii.gz`` (or a folder ``STEM`` of masks), ``STEM-uncertainty.nii.gz``,
            ``STEM.png`` and ``STEM.json`` are written. Its folder must exist.
        settings: of the run.
        model: of the run.
        scan: the segmented scan, which DICOM SEG and RTSTRUCT refer to.
        preview: path of the contact sheet instead of ``STEM.png``.
        source: :func:`source_digest` of the scan before it was read; default: the current one.

    Returns:
        The manifest.

    Raises:
        VolumeError: a file cannot be written, or the scan allows no DICOM object.
        ConfigError: ``STEM.json`` is no manifest.
    """
    source = source or source_digest(scan)
    manifest_path = beside(stem, ".json")
    record = settings.record(model)
    earlier, other_formats = outdated(stem, record, source)
    _remove(stem, earlier, [beside(stem, name) for name in mask_names(settings)])
    manifest_path.unlink(missing_ok=True)  # the result is incomplete from here on
    findings = [finding.as_dict() for finding in result.findings]
    lesions: list[list[Lesion]] = [[] for _ in findings]
    values: Sequence[int | None]
    if settings.ending in DICOM_ENDINGS:
        files, values = _write_dicom(result, stem, settings, model, scan, lesions)
    elif settings.masks:
        files, values = _write_masks(result, stem, settings, lesions)
    else:
        files, values = _write_labels(result, stem, settings, findings, lesions)
    files += _write_uncertainty(result, stem, settings)
    if settings.preview:
        from boltzformer_monai.inferers.preview import contact_sheet

        sheet = contact_sheet(
            result,
            plane=result.planes[0],
            window=settings.grey_scale,
            modality=settings.modality,
            lesions=lesions,
        )
        _write_bytes(preview or beside(stem, ".png"), sheet)
        files += [".png"] if preview is None else []
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "prompts": [
            {
                **finding,
                "shown": given,
                **({} if understood is None else {"understood": dict(understood)}),
                "label": value,
                "caveats": [each.text for each in about(result.caveats, finding["prompt"])],
                **point_finding(result, index, found),
                "lesions": [lesion.as_dict() for lesion in found],
            }
            for index, (finding, given, understood, value, found) in enumerate(
                zip(findings, result.inputs, result.understood, values, lesions, strict=True)
            )
        ],
        "in_doubt": in_doubt(result.caveats),
        "caveats": [each.as_dict() for each in result.caveats],
        **{key: value for key, value in record.items() if key != "prompts"},
        **({} if model.licence is None else {"licence": dict(model.licence)}),
        "files": [{"name": name, "bytes": beside(stem, name).stat().st_size} for name in files],
        "settings": digest(record),
        "source": source,
    }
    if other_formats := [entry for entry in other_formats if entry["name"] not in files]:
        manifest["other_formats"] = other_formats
    if settings.preview and preview is not None:
        manifest["preview_file"] = preview_entry(stem, preview)
    _write_bytes(manifest_path, (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())
    return manifest


def _remove(stem: Path, earlier: Sequence[Path], replaced: Sequence[Path]) -> None:
    """Remove outdated files before writing, so that a failed write leaves none; replaced ones stay until then."""
    for path in set(earlier) - set(replaced):
        path.unlink(missing_ok=True)
    if stem.is_dir() and any(path.parent == stem for path in earlier) and not any(stem.iterdir()):
        stem.rmdir()


def prompt_lesions(result: VolumeResult, index: int, mask: np.ndarray, settings: RunSettings) -> list[Lesion]:
    """The lesions of a prompt; none of a picture, which states no size.

    Args:
        result: of the inferer.
        index: of the prompt.
        mask: (I, J, K) bool: what the prompt has in the file that is written, which others may have taken voxels from.
        settings: say from which size on a lesion is listed; limits in the prompt's own words hold beside them.
    """
    if not result.grid.in_mm or not mask.any():
        return []
    at_point = result.at_point(index)
    lesions = find_lesions(
        mask,
        result.grid,
        at=None if at_point is None else at_point.voxel,
        probability=result.probability(index),
        entropy=result.entropy(index),
        minimum_ml=settings.lesion_min_ml,
        minimum_mm=settings.lesion_min_mm,
    )
    stated = (result.understood[index] or {}).get("size_limit")
    if stated is None:
        return lesions
    limit = SizeLimit.of(stated)
    kept = [each for each in lesions if limit.admits(long_axis_mm=each.long_axis_mm, volume_ml=each.volume_ml)]
    return [replace(each, number=number) for number, each in enumerate(kept, 1)]


def point_finding(result: VolumeResult, index: int, lesions: Sequence[Lesion]) -> dict[str, Any]:
    """What of a prompt is at the point that was asked for: ``{"at_point": {...}}``, or nothing without a point.

    ``lesion`` is its number among the lesions (``None`` where none is near, or it is not listed), ``distance_mm`` from
    the point to its nearest voxel (0 within it), ``dropped`` how many other components the mask had.

    Args:
        result: of the inferer.
        index: of the prompt.
        lesions: of the prompt.
    """
    if result.point is None:
        return {}
    found = result.at_point(index)
    return {
        "at_point": {
            "lesion": next((each.number for each in lesions if each.at_point), None),
            "distance_mm": None if found is None else found.distance_mm,
            "dropped": found.others if found is not None and result.only_at_point else 0,
        }
    }


def _write_labels(
    result: VolumeResult,
    stem: Path,
    settings: RunSettings,
    findings: Sequence[dict[str, Any]],
    lesions: list[list[Lesion]],
) -> tuple[list[str], list[int]]:
    values = list(settings.label_values or range(1, len(findings) + 1))
    labels = result.label_map(settings.arbitration, values=values)
    _write_image(labels, result.grid, beside(stem, settings.ending))
    counts = np.zeros(max(values) + 1, np.int64)
    for plane in np.moveaxis(labels, 2, 0):  # plane by plane: bincount makes eight bytes of every label
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    for finding, value in zip(findings, values, strict=True):
        finding["label_voxels"] = int(counts[value])  # fewer than its voxels where another prompt got some
    for index, value in enumerate(values):
        if counts[value]:
            lesions[index] = prompt_lesions(result, index, labels == value, settings)
    return [settings.ending], values


def _write_masks(
    result: VolumeResult, stem: Path, settings: RunSettings, lesions: list[list[Lesion]]
) -> tuple[list[str], list[int]]:
    stem.mkdir(exist_ok=True)
    files = mask_names(settings)
    for index, name in enumerate(files):
        mask = result.mask(index)
        _write_image(mask, result.grid, beside(stem, name))
        lesions[index] = prompt_lesions(result, index, mask, settings)
    return files, [1] * len(files)


def _write_dicom(
    result: VolumeResult,
    stem: Path,
    settings: RunSettings,
    model: ModelRecord,
    scan: Scan,
    lesions: list[list[Lesion]],
) -> tuple[list[str], list[int | None]]:
    path = beside(stem, settings.ending)
    found = [index for index, finding in enumerate(result.findings) if finding.found]
    numbers: list[int | None] = [found.index(i) + 1 if i in found else None for i in range(len(result.prompts))]
    if not found:
        path.unlink(missing_ok=True)
        kind = DICOM_ENDINGS[settings.ending]
        _log.warning("%s: nothing was found, and %s cannot say so; only the manifest is written", path, kind)
        return [], numbers

    def masks() -> Iterator[tuple[str, Any, np.ndarray]]:
        for index in found:
            prompt = result.prompts[index]
            known = not in_doubt(about(result.caveats, prompt))
            mask = result.mask(index)
            lesions[index] = prompt_lesions(result, index, mask, settings)
            yield prompt, segment_code(result.inputs[index], known=known), mask

    write = write_dicom_seg
    if settings.ending == ".rtstruct.dcm":
        colours = {prompt: prompt_colour(index) for index, prompt in enumerate(result.prompts)}
        write = partial(write_rtstruct, colours=colours)
    write(
        path,
        scan=scan.files or scan.place,
        series=scan.series,
        masks=masks(),
        grid=result.grid,
        algorithm="BoltzFormer",
        version=__version__,
        model=model.sha256[:16],
        description=seg_series(result.caveats),
        remarks={prompt: remark(result.caveats, prompt) for prompt in result.prompts},
    )
    return [settings.ending], numbers


def _write_uncertainty(result: VolumeResult, stem: Path, settings: RunSettings) -> list[str]:
    """Entropy, 0–255 for 0–1 bit: one per mask, else the largest of all prompts."""
    files = uncertainty_names(settings)
    largest = np.zeros(result.grid.shape, np.uint8)
    for index in range(len(result.prompts) if files else 0):
        entropy = result.entropy(index)
        if entropy is None:
            return []
        if settings.masks:
            _write_image(entropy, result.grid, beside(stem, files[index]))
        else:
            np.maximum(largest, entropy, out=largest)
    if files and not settings.masks:
        _write_image(largest, result.grid, beside(stem, files[0]))
    return files


def _write_image(array: np.ndarray, grid: Volume, path: Path) -> None:
    """Write a label map; errors name this path, not the temporary one."""
    try:
        write_label_map(array, grid, path)
    except VolumeError as error:
        if error.reason != "write":
            raise
        raise _cannot(path, error.__cause__) from error


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise _cannot(path, error) from error


def _cannot(path: Path, cause: BaseException | None) -> VolumeError:
    reason = why(cause) if isinstance(cause, OSError) else "the file system refuses"
    return VolumeError(f"{path}: cannot be written ({reason}); does its folder exist and have room?", reason="write")
