"""From a :class:`VolumeResult` to files: label map, a mask per prompt, or DICOM SEG, and a summary that says it all.

The summary (``STEM.json``) is written last, so that its presence means: everything else is there, and whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai import __version__
from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.inferers.prompt_codes import segment_code
from boltzformer_monai.io.atomic import atomic_path
from boltzformer_monai.io.dicom_seg_out import write_dicom_seg
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.io.volume import write_label_map

if TYPE_CHECKING:
    from boltzformer_monai.inferers.volume_result import VolumeResult

__all__ = ["Recipe", "file_sha256", "is_complete", "result_path", "source_digest", "write_results"]

_log = logging.getLogger(__name__)

ARBITRATIONS = ("probability", "first")
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".dcm")
_FORMAT = "boltzformer-segmentation"
_VERSION = 1
_UNCERTAINTY = "-uncertainty"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what the files of a scan hold; equal recipes on equal scans make equal files.

    Attributes:
        prompts: exact texts, in the order of their label values.
        model: sha256 of the checkpoint file.
        seed: of the attention sampling.
        threshold: probability from which a voxel belongs to an object.
        planes: that the volume was sliced along.
        in_plane: ``"fit"`` or ``"tiles"``.
        presence: ``{"high", "low"}`` of the presence rule, None where it was off or the network has no head.
        repeats: decodings per slice; more than one also writes the uncertainty.
        arbitration: which prompt gets a voxel that several claim: the most ``"probability"``, or the ``"first"``.
        masks: one file for each prompt instead of one label map.
        ending: of the segmentation files, one of :data:`ENDINGS`.
        preview: a contact sheet is wanted as well.
        window: that was given for all prompts, None for the training's.
        modality: that was given, None for the scan's own.
        precision: of the network's arithmetic.

    Raises:
        ConfigError: an unknown arbitration or ending, or masks as DICOM SEG (which holds all of them anyway).
    """

    prompts: tuple[str, ...]
    model: str
    seed: int
    threshold: float
    planes: tuple[str, ...]
    in_plane: str = "fit"
    presence: Mapping[str, float] | None = None
    repeats: int = 1
    arbitration: str = "probability"
    masks: bool = False
    ending: str = ".nii.gz"
    preview: bool = False
    window: tuple[str, ...] | None = None
    modality: str | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.arbitration not in ARBITRATIONS:
            msg = f"unknown arbitration {self.arbitration!r}; use {' or '.join(ARBITRATIONS)}"
            raise ConfigError(msg)
        if self.ending not in ENDINGS or (self.masks and self.ending == ".dcm"):
            msg = f"masks cannot be written as {self.ending!r}; use {', '.join(ENDINGS[: 3 if self.masks else 4])}"
            raise ConfigError(msg)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the version of this package."""
        return json.loads(json.dumps({**asdict(self), "package": __version__}))  # type: ignore[no-any-return]

    @property
    def image_ending(self) -> str:
        """Of the files that are no DICOM SEG even if the segmentation is one."""
        return ".nii.gz" if self.ending == ".dcm" else self.ending


def write_results(
    result: VolumeResult, stem: Path, recipe: Recipe, *, scan: Scan, preview: Path | None = None
) -> dict[str, Any]:
    """Write all files of one scan, each atomically; what an earlier run left of the same output is removed.

    Args:
        result: of the inferer.
        stem: path without ending: ``STEM.nii.gz`` (or a folder ``STEM`` of masks), ``STEM-uncertainty.nii.gz``,
            ``STEM.png`` and ``STEM.json`` are written. Its folder must exist.
        recipe: how the result was made, and what to write.
        scan: what was segmented; DICOM SEG refers to it.
        preview: where the contact sheet goes instead of ``STEM.png``.

    Returns:
        The summary.

    Raises:
        VolumeError: a file cannot be written, or a DICOM SEG of this scan cannot be made.
    """
    summary_path = _beside(stem, ".json")
    earlier = _read_summary(summary_path)
    summary_path.unlink(missing_ok=True)  # from here on the result is incomplete
    findings = [finding.as_dict() for finding in result.findings]
    values: Sequence[int | None]
    if recipe.ending == ".dcm":
        files, values = _write_seg(result, stem, recipe, scan)
    elif recipe.masks:
        files, values = _write_masks(result, stem, recipe)
    else:
        files, values = _write_labels(result, stem, recipe, findings)
    files += _write_uncertainty(result, stem, recipe)
    if recipe.preview:
        from boltzformer_monai.inferers.preview import contact_sheet

        sheet = contact_sheet(result, plane=recipe.planes[0], window=recipe.window)
        _write_bytes(preview or _beside(stem, ".png"), sheet)
        files += [".png"] if preview is None else []
    settings = recipe.as_dict()
    summary = {
        "format": _FORMAT,
        "version": _VERSION,
        "prompts": [{**finding, "label": value} for finding, value in zip(findings, values, strict=True)],
        **{key: value for key, value in settings.items() if key != "prompts"},
        "files": [{"name": name, "bytes": _beside(stem, name).stat().st_size} for name in files],
        "settings": _digest(settings),
        "source": source_digest(scan),
    }
    if all(earlier.get(key) == settings[key] for key in ("ending", "masks")):  # else: another output of that stem
        for name in {str(file["name"]) for file in earlier["files"]} - set(files):
            _remove_leftover(stem, name)
    _write_bytes(summary_path, (json.dumps(summary, ensure_ascii=False, indent=1) + "\n").encode())
    return summary


def is_complete(stem: Path, recipe: Recipe, scan: Scan) -> bool:
    """Tell whether all files of a scan are there as :func:`write_results` left them, of this scan and this recipe."""
    summary = _read_summary(_beside(stem, ".json"))
    if summary.get("settings") != _digest(recipe.as_dict()) or summary.get("source") != source_digest(scan):
        return False
    paths = [(_beside(stem, str(file["name"])), file["bytes"]) for file in summary["files"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def source_digest(scan: Scan) -> str:
    """Sizes and times of a scan's files as one hash: no name goes in, and another scan in its place is noticed."""
    if scan.files or scan.place.is_file():
        files = sorted(scan.files or [scan.place])
    else:
        files = sorted(path for path in scan.place.rglob("*") if path.is_file())
    stats = [path.stat() for path in files]
    return _digest([[stat.st_size, stat.st_mtime_ns] for stat in stats])


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_labels(
    result: VolumeResult, stem: Path, recipe: Recipe, findings: Sequence[dict[str, Any]]
) -> tuple[list[str], list[int]]:
    labels = result.label_map(recipe.arbitration)
    write_label_map(labels, result.grid, _beside(stem, recipe.ending))
    counts = np.zeros(len(findings) + 1, np.int64)
    for plane in np.moveaxis(labels, 2, 0):  # plane by plane: bincount makes eight bytes of every label
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    for finding, count in zip(findings, counts[1:], strict=True):
        finding["label_voxels"] = int(count)  # fewer than its voxels where another prompt got some
    return [recipe.ending], list(range(1, len(findings) + 1))


def _write_masks(result: VolumeResult, stem: Path, recipe: Recipe) -> tuple[list[str], list[int]]:
    stem.mkdir(exist_ok=True)
    files = []
    for index, prompt in enumerate(result.prompts):
        files.append(f"/{_prompt_name(index, prompt)}{recipe.ending}")
        write_label_map(result.mask(index), result.grid, _beside(stem, files[-1]))
    return files, [1] * len(files)


def _write_seg(result: VolumeResult, stem: Path, recipe: Recipe, scan: Scan) -> tuple[list[str], list[int | None]]:
    path = _beside(stem, recipe.ending)
    found = [index for index, finding in enumerate(result.findings) if finding.found]
    numbers: list[int | None] = [found.index(i) + 1 if i in found else None for i in range(len(result.prompts))]
    if not found:
        path.unlink(missing_ok=True)
        _log.warning("%s: nothing was found, and a DICOM SEG cannot say so; only the summary is written", path)
        return [], numbers

    def masks() -> Iterator[tuple[str, Any, np.ndarray]]:
        for index in found:
            yield result.prompts[index], segment_code(result.prompts[index]), result.mask(index)

    write_dicom_seg(
        path,
        scan=scan.files or scan.place,
        series=scan.series,
        masks=masks(),
        grid=result.grid,
        algorithm="BoltzFormer",
        version=__version__,
        model=recipe.model[:16],
    )
    return [recipe.ending], numbers


def _write_uncertainty(result: VolumeResult, stem: Path, recipe: Recipe) -> list[str]:
    """Entropy in bits, 0–255 for 0–1: for each mask its own, else the largest of all prompts."""
    if recipe.repeats < 2:
        return []
    files: list[str] = []
    largest = np.zeros(result.grid.shape, np.uint8)
    for index, prompt in enumerate(result.prompts):
        entropy = result.entropy(index)
        if entropy is None:
            continue
        if recipe.masks:
            files.append(f"/{_prompt_name(index, prompt)}{_UNCERTAINTY}{recipe.ending}")
            write_label_map(entropy, result.grid, _beside(stem, files[-1]))
        else:
            np.maximum(largest, entropy, out=largest)
    if not recipe.masks:
        files.append(f"{_UNCERTAINTY}{recipe.image_ending}")
        write_label_map(largest, result.grid, _beside(stem, files[-1]))
    return files


def _prompt_name(index: int, prompt: str) -> str:
    words = re.sub(r"\W+", "_", prompt.lower()).strip("_")[:40].rstrip("_")
    return f"{index + 1:02d}_{words}" if words else f"{index + 1:02d}"


def _beside(stem: Path, ending: str) -> Path:
    return Path(f"{stem}{ending}")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_summary(path: Path) -> dict[str, Any]:
    """Return a summary of ours, {} where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(content, dict) and content.get("format") == _FORMAT and content.get("version") == _VERSION
    return content if ours and isinstance(content.get("files"), list) else {}


def _remove_leftover(stem: Path, name: str) -> None:
    """Remove a file of an earlier run; the name comes from a file, so it may not lead elsewhere."""
    path = _beside(stem, name)
    if path.parent in (stem, stem.parent) and path.name.endswith((*ENDINGS, ".png")):
        path.unlink(missing_ok=True)


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror or error}); does its folder exist and have room?"
        raise VolumeError(msg, reason="write") from error


def result_path(stem: Path, recipe: Recipe) -> Path:
    """The segmentation itself: a file, or the folder of masks."""
    return stem if recipe.masks else Path(os.fspath(_beside(stem, recipe.ending)))
