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
    """Write images and labels to a temporary ZIP file, laid out as by MONAI Label; the caller removes it.

    Args:
        pairs: ``{"image": path, "label": path}`` each.
        listed: the datastore's metadata.

    Raises:
        OSError: it cannot be written; no file is left.
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
