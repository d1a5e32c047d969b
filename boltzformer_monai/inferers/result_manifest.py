"""Manifest of a segmented scan: identifies a result and whether it is complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.run_settings import ENDINGS, ModelRecord, RunSettings, beside
from boltzformer_monai.io.scan_list import Scan, scan_files
from boltzformer_monai.limits import read_json
from boltzformer_monai.storage import file_sha256

__all__ = [
    "FORMAT", "VERSION", "digest", "in_doubt", "is_complete", "leftovers", "outdated", "preview_entry",
    "read_manifest", "source_digest",
]  # fmt: skip

FORMAT = "boltzformer-segmentation"
VERSION = 1


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, {} if there is none.

    Raises:
        ConfigError: the file is no manifest and would be lost.
    """
    if not path.exists():
        return {}
    content = _json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        msg = f"{path}: exists and is no manifest of a result; it would be lost, give the output another name"
        raise ConfigError(msg)
    listed = [content.get("files"), content.get("other_formats", [])]
    sound = all(isinstance(files, list) and all(map(_is_entry, files)) for files in listed)
    return content if content.get("version") == VERSION and sound else {}


def leftovers(stem: Path) -> list[Path]:
    """Unchanged files of earlier results of this name; a changed one belongs to the user.

    Raises:
        ConfigError: as :func:`read_manifest`.
    """
    return list(_earlier_files(stem, read_manifest(beside(stem, ".json"))))


def outdated(stem: Path, record: Mapping[str, Any], source: str) -> tuple[list[Path], list[dict[str, Any]]]:
    """Divide the files of earlier results into outdated and still valid ones.

    Other formats of the same result (scan, prompts, model, settings) stay valid, e.g. ``a.dcm`` beside ``a.nii.gz``.
    Previews and uncertainty maps never do.

    Args:
        stem: path of the output without ending.
        record: of the new result, :meth:`RunSettings.record`.
        source: :func:`source_digest` of its scan.

    Returns:
        Outdated paths, and the manifest's entries of valid files.

    Raises:
        ConfigError: as :func:`read_manifest`.
    """
    earlier = read_manifest(beside(stem, ".json"))
    same = bool(earlier) and earlier.get("source") == source and _content(earlier, record) == _content(record, record)
    stale, kept = [], []
    for path, entry in _earlier_files(stem, earlier).items():
        companion = path.suffix == ".png" or "-uncertainty." in path.name
        if same and not companion:
            kept.append(entry)
        else:
            stale.append(path)
    return stale, kept


def preview_entry(stem: Path, preview: Path) -> dict[str, Any]:
    """The manifest's entry of a preview in another folder: relative path, size and hash."""
    return {
        "name": os.path.relpath(preview.absolute(), stem.parent.absolute()),
        "bytes": preview.stat().st_size,
        "sha256": file_sha256(preview),
    }


def _earlier_files(stem: Path, manifest: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    found = {}
    for entry in (*manifest.get("files", ()), *manifest.get("other_formats", ())):
        path = beside(stem, str(entry["name"]))
        # Names from a file must not lead out of the output's folder.
        if path.parent in (stem, stem.parent) and path.name.endswith((*ENDINGS, ".png")) and _has_size(path, entry):
            found[path] = entry
    entry = manifest.get("preview_file")
    if isinstance(entry, dict):
        path = stem.parent / str(entry.get("name"))
        # It may lie anywhere, so its hash must match.
        if path.suffix.lower() == ".png" and _has_size(path, entry) and file_sha256(path) == entry.get("sha256"):
            found[path] = entry
    return found


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("bytes"), int)


def _has_size(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry.get("bytes")


def _content(values: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a manifest or record that determine the masks' voxels."""
    prompts = [each["prompt"] if isinstance(each, dict) else each for each in values.get("prompts", ())]
    names = set(record) - {"prompts", "ending", "masks", "preview", "lesion_min_ml", "lesion_min_mm"}
    return {"prompts": prompts, **{name: values.get(name) for name in sorted(names)}}


def is_complete(stem: Path, settings: RunSettings, model: ModelRecord, scan: Scan) -> bool:
    """Whether all files of this scan, settings and model exist unchanged."""
    try:
        manifest = read_manifest(beside(stem, ".json"))
    except ConfigError:
        return False
    if manifest.get("settings") != digest(settings.record(model)) or manifest.get("source") != source_digest(scan):
        return False
    paths = [(beside(stem, str(file["name"])), file["bytes"]) for file in manifest["files"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def in_doubt(stem: Path) -> bool:
    """Whether a caveat in the manifest puts the result in doubt."""
    return bool(read_manifest(beside(stem, ".json")).get("in_doubt", False))


def source_digest(scan: Scan) -> str:
    """Hash of the sizes and times of a scan's files, without names."""
    stats = [path.stat() for path in sorted(scan.files or scan_files(scan.place))]
    return digest([[stat.st_size, stat.st_mtime_ns] for stat in stats])


def digest(content: Any) -> str:
    """SHA-256 of JSON values, hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
