"""The manifest of a segmented scan: identifies a result, and tells whether it is complete."""

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
    """Return a manifest of ours, {} where there is none.

    Raises:
        ConfigError: there is a file of this name that is none of ours, and would be lost.
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
    """Return the files that earlier results of this name left, as they wrote them: a file changed since is the user's.

    Raises:
        ConfigError: as :func:`read_manifest`.
    """
    return list(_earlier_files(stem, read_manifest(beside(stem, ".json"))))


def outdated(stem: Path, record: Mapping[str, Any], source: str) -> tuple[list[Path], list[dict[str, Any]]]:
    """Sort the files of earlier results into those that a new one makes untrue, and those that go on to be true.

    Another format of the very same result (same scan, prompts, model and settings) stays: ``a.dcm`` and ``a.nii.gz``
    may both be wanted. Previews and uncertainty maps go always, unless they are written anew.

    Args:
        stem: path of the output without ending.
        record: of the new result, :meth:`RunSettings.record`.
        source: :func:`source_digest` of its scan.

    Returns:
        The paths that go, and the entries of the manifest that stay.

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
    """Return what the manifest keeps of a preview elsewhere: where it lies as seen from the output, and its hash."""
    return {
        "name": os.path.relpath(preview.absolute(), stem.parent.absolute()),
        "bytes": preview.stat().st_size,
        "sha256": file_sha256(preview),
    }


def _earlier_files(stem: Path, manifest: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    found = {}
    for entry in (*manifest.get("files", ()), *manifest.get("other_formats", ())):
        path = beside(stem, str(entry["name"]))
        # The names come from a file, so they may not lead elsewhere.
        if path.parent in (stem, stem.parent) and path.name.endswith((*ENDINGS, ".png")) and _has_size(path, entry):
            found[path] = entry
    entry = manifest.get("preview_file")
    if isinstance(entry, dict):
        path = stem.parent / str(entry.get("name"))
        # It may lie anywhere, so it must be the very picture.
        if path.suffix.lower() == ".png" and _has_size(path, entry) and file_sha256(path) == entry.get("sha256"):
            found[path] = entry
    return found


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("bytes"), int)


def _has_size(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry.get("bytes")


def _content(values: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values of a manifest or record that decide the voxels of the masks, not their files."""
    prompts = [each["prompt"] if isinstance(each, dict) else each for each in values.get("prompts", ())]
    names = set(record) - {"prompts", "ending", "masks", "preview"}
    return {"prompts": prompts, **{name: values.get(name) for name in sorted(names)}}


def is_complete(stem: Path, settings: RunSettings, model: ModelRecord, scan: Scan) -> bool:
    """Tell whether all files of a scan are there as they were written last, of this scan, settings and model."""
    try:
        manifest = read_manifest(beside(stem, ".json"))
    except ConfigError:
        return False
    if manifest.get("settings") != digest(settings.record(model)) or manifest.get("source") != source_digest(scan):
        return False
    paths = [(beside(stem, str(file["name"])), file["bytes"]) for file in manifest["files"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def in_doubt(stem: Path) -> bool:
    """Tell whether the manifest of a complete result says that a caveat puts it in doubt."""
    return bool(read_manifest(beside(stem, ".json")).get("in_doubt", False))


def source_digest(scan: Scan) -> str:
    """Sizes and times of a scan's files as one hash: no name goes in, and another scan in its place is noticed."""
    stats = [path.stat() for path in sorted(scan.files or scan_files(scan.place))]
    return digest([[stat.st_size, stat.st_mtime_ns] for stat in stats])


def digest(content: Any) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
