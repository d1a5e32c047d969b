"""In-memory cache of scans."""

from __future__ import annotations

import threading
from collections import OrderedDict

from boltzformer_monai.inferers.result_manifest import source_digest
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.io.volume import Volume

__all__ = ["ScanCache"]


class ScanCache:
    """Most recently used scans; a changed file is read again. Reads one scan at a time.

    Args:
        limit: bytes of all voxels.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._volumes: OrderedDict[tuple[str, str | None], tuple[str, Volume]] = OrderedDict()

    def clear(self) -> None:
        """Drop all scans."""
        with self._lock:
            self._volumes.clear()

    def read(self, scan: Scan, modality: str | None) -> Volume:
        """Read a scan, with this modality if it does not state its own.

        Raises:
            VolumeError: it cannot be read.
        """
        with self._lock:
            return self._read(scan, modality)

    def _read(self, scan: Scan, modality: str | None) -> Volume:
        digest = source_digest(scan) if scan.place.exists() else ""
        key = (str(scan.place), modality)
        known = self._volumes.get(key)
        if known is not None and known[0] == digest:
            self._volumes.move_to_end(key)
            return known[1]
        # A tilted stack is segmented slice by slice as acquired; the mask must lie on its own grid.
        volume = read_volume(scan.place, tilt="keep")
        if volume.modality == "unknown" and modality is not None:
            volume = read_volume(scan.place, modality=modality, tilt="keep")
        self._volumes[key] = (digest, volume)
        while self._volumes and sum(each.array.nbytes for _, each in self._volumes.values()) > self.limit:
            self._volumes.popitem(last=False)
        return volume
