"""Images and labels as one ZIP file for download."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["zipped"]


def zipped(pairs: Sequence[Mapping[str, Any]], listed: Mapping[str, Any]) -> str:
    """Path of a new temporary file with all of them, as MONAI Label lays it out; the caller removes it.

    Args:
        pairs: ``{"image": path, "label": path}`` each.
        listed: what the datastore knows of them.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    with tempfile.NamedTemporaryFile(delete=False, suffix=".zip") as file:
        try:
            with zipfile.ZipFile(file, "w") as archive:
                for pair in pairs:
                    for kind, path in pair.items():
                        archive.write(path, f"{kind}/{Path(path).name}")
                archive.writestr("metadata.json", json.dumps(listed, ensure_ascii=False, default=str))
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return file.name
