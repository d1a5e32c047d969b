"""Files of the most recent results, in a temporary folder."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

KEPT = 16


class ResultStore:
    """Folders by id; the oldest is deleted when there are too many.

    Args:
        kept: maximum number of results.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._folder = tempfile.TemporaryDirectory(prefix="boltzformer-results-")
        self._results: OrderedDict[str, Path] = OrderedDict()
        self._lock = threading.Lock()

    def new(self) -> tuple[str, Path]:
        """Make an empty folder; returns its id and path."""
        name = secrets.token_urlsafe(12)
        folder = Path(self._folder.name) / name
        folder.mkdir()
        with self._lock:
            self._results[name] = folder
            old = [self._results.popitem(last=False)[1] for _ in range(len(self._results) - self.kept)]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        return name, folder

    def folder(self, name: str) -> Path | None:
        """The folder of an id, or None if it was deleted."""
        with self._lock:
            return self._results.get(name)
