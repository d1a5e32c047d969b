"""JSON objects in files that several processes read and write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.limits import read_json
from boltzformer_monai.storage import atomic_path, writing

__all__ = ["read_object", "write_object"]


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file; ``{}`` if it is missing or damaged."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_object(path: Path, content: Mapping[str, Any], advice: str = "") -> None:
    """Write an object atomically; creates the folder if needed.

    Args:
        path: of the file.
        content: values that are no JSON are written as text.
        advice: what to do if it cannot be written.

    Raises:
        StorageError: it cannot be written.
    """
    with writing(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1, default=str), encoding="utf-8")
