"""The summary of a segmented scan: how a result is told from others, and recognised as complete."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.recipe import ENDINGS, Recipe, beside
from boltzformer_monai.io.scan_files import scan_files
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.limits import read_json

__all__ = [
    "FORMAT", "VERSION", "digest", "file_sha256", "in_doubt", "is_complete", "leftovers", "read_summary",
    "source_digest",
]  # fmt: skip

FORMAT = "boltzformer-segmentation"
VERSION = 1


def read_summary(path: Path) -> dict[str, Any]:
    """Return a summary of ours, {} where there is none.

    Raises:
        ConfigError: there is a file of this name that is none of ours, and would be lost.
    """
    if not path.exists():
        return {}
    content = _json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        msg = f"{path}: exists and is no summary of a result; it would be lost, give the output another name"
        raise ConfigError(msg)
    return content if content.get("version") == VERSION and isinstance(content.get("files"), list) else {}


def leftovers(stem: Path, recipe: Recipe) -> list[Path]:
    """Files of an earlier result of the same kind and name; those that are not written anew are removed.

    Raises:
        ConfigError: as :func:`read_summary`.
    """
    earlier = read_summary(beside(stem, ".json"))
    if earlier.get("ending") != recipe.ending or earlier.get("masks") != recipe.masks:
        return []  # none, or another output of that name
    paths = [beside(stem, str(file["name"])) for file in earlier["files"]]
    # The names come from a file, so they may not lead elsewhere.
    return [p for p in paths if p.parent in (stem, stem.parent) and p.name.endswith((*ENDINGS, ".png"))]


def is_complete(stem: Path, recipe: Recipe, scan: Scan) -> bool:
    """Tell whether all files of a scan are there as they were written last, of this scan and this recipe."""
    try:
        summary = read_summary(beside(stem, ".json"))
    except ConfigError:
        return False
    if summary.get("settings") != digest(recipe.as_dict()) or summary.get("source") != source_digest(scan):
        return False
    paths = [(beside(stem, str(file["name"])), file["bytes"]) for file in summary["files"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def in_doubt(stem: Path) -> bool:
    """Tell whether the summary of a complete result says that a caveat puts it in doubt."""
    return bool(read_summary(beside(stem, ".json")).get("in_doubt", False))


def source_digest(scan: Scan) -> str:
    """Sizes and times of a scan's files as one hash: no name goes in, and another scan in its place is noticed."""
    stats = [path.stat() for path in sorted(scan.files or scan_files(scan.place))]
    return digest([[stat.st_size, stat.st_mtime_ns] for stat in stats])


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            made.update(block)
    return made.hexdigest()


def digest(content: Any) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
