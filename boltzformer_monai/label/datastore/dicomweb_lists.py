"""What a DICOMweb server holds, asked for anew every few seconds: one request needs the lists several times."""

from __future__ import annotations

import threading
from typing import Any

from cachetools import TTLCache
from monailabel.config import settings

from boltzformer_monai.label.datastore.dicomweb_client import Archive, Drawing, Series
from boltzformer_monai.label.server.safe_ids import UnknownIdError

__all__ = ["ArchiveLists"]

LIST_S = 2.0


class ArchiveLists:
    """Scans, and the segmentations drawn on them.

    Args:
        archive: the server.
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._lock = threading.Lock()
        self._series: TTLCache[str, dict[str, Series]] = TTLCache(maxsize=1, ttl=LIST_S)
        self._drawings: TTLCache[str, dict[str, Drawing]] = TTLCache(maxsize=1, ttl=LIST_S)

    def series(self) -> dict[str, Series]:
        """By UID, all series that the search filter of MONAI Label's settings finds.

        Raises:
            ArchiveError: the server fails.
        """
        with self._lock:
            found = self._series.get("")
            if found is None:
                found = self._series[""] = {each.uid: each for each in self.archive.series(_filters())}
            return found

    def drawings(self) -> dict[str, Drawing]:
        """By their image's UID, the newest DICOM SEG of each image; raises as :meth:`series`."""
        images = self.series()
        with self._lock:
            found = self._drawings.get("")
            if found is None:
                found = self._drawings[""] = {each.image: each for each in self.archive.drawings(images)}
            return found

    def one(self, uid: str) -> Series:
        """A series by its UID.

        Raises:
            UnknownIdError: there is no such series.
            ArchiveError: the server fails.
        """
        found = self.series().get(uid)
        if found is None:
            msg = f"no image {uid[:64]!a} among the series of the DICOMweb server"
            raise UnknownIdError(msg, reason="missing")
        return found

    def drawing(self, uid: str) -> Drawing:
        """The newest DICOM SEG of an image; raises as :meth:`one`."""
        found = self.drawings().get(uid)
        if found is None:
            msg = f"no DICOM SEG on the DICOMweb server refers to {uid[:64]!a}"
            raise UnknownIdError(msg, reason="missing")
        return found

    def forget(self) -> None:
        """The next question goes to the server."""
        with self._lock:
            self._series.clear()
            self._drawings.clear()


def _filters() -> list[dict[str, Any]]:
    """The default of MONAI Label's setting, CT, would hide MR.

    Judged by its value: MONAI Label hands every setting on to its background processes as if somebody had made it.
    """
    chosen = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    return [chosen] if chosen != {"Modality": "CT"} else [{"Modality": "CT"}, {"Modality": "MR"}]
