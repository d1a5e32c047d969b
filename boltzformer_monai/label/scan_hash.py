"""Hashes of scans for the audit log, computed once for each state of a file."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from cachetools import LRUCache

from boltzformer_monai.io.scan_list import scan_files
from boltzformer_monai.storage import file_sha256

_KNOWN = 4096


class ScanHashes:
    """The SHA-256 of scans, remembered by path, size and time of their files; thread-safe."""

    def __init__(self) -> None:
        self._known: LRUCache[tuple[tuple[str, int, int], ...], str] = LRUCache(_KNOWN)
        self._lock = threading.Lock()

    def of(self, place: Path) -> str:
        """The hash of a file; of a series that of its files' hashes, sorted and joined, whatever their names.

        Raises:
            OSError: a file cannot be read.
        """
        files = sorted(scan_files(place)) if place.is_dir() else [place]
        stats = [(file, file.stat()) for file in files]
        state = tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats)
        with self._lock:
            known = self._known.get(state)
        if known is None:
            hashes = sorted(file_sha256(file) for file in files)
            known = hashes[0] if place.is_file() else hashlib.sha256("".join(hashes).encode()).hexdigest()
            with self._lock:
                self._known[state] = known
        return known
