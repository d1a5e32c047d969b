"""What a DICOMweb server holds, asked for anew every few seconds: one request needs the lists several times."""

from __future__ import annotations

import threading
from typing import Any

from cachetools import TTLCache
from monailabel.config import settings

from boltzformer_monai.label.datastore.dicomweb_client import DicomWebClient, SegInstance, Series
from boltzformer_monai.label.safe_ids import UnknownIdError

__all__ = ["DicomWebLists"]

LIST_S = 2.0


class DicomWebLists:
    """Scans, and the segmentations drawn on them.

    Args:
        archive: the server.
    """

    def __init__(self, archive: DicomWebClient) -> None:
        self.archive = archive
        self._lock = threading.Lock()
        self._series: TTLCache[str, dict[str, Series]] = TTLCache(maxsize=1, ttl=LIST_S)
        self._segs: TTLCache[str, dict[str, SegInstance]] = TTLCache(maxsize=1, ttl=LIST_S)

    def series(self) -> dict[str, Series]:
        """By UID, all series that the search filter of MONAI Label's settings finds.

        Raises:
            DicomWebError: the server fails.
        """
        with self._lock:
            found = self._series.get("")
            if found is None:
                found = self._series[""] = {each.uid: each for each in self.archive.series(_filters())}
            return found

    def segmentations(self) -> dict[str, SegInstance]:
        """By their image's UID, the newest DICOM SEG of each image; raises as :meth:`series`."""
        images = self.series()
        with self._lock:
            found = self._segs.get("")
            if found is None:
                found = self._segs[""] = {each.image: each for each in self.archive.segmentations(images)}
            return found

    def one(self, uid: str) -> Series:
        """A series by its UID.

        Raises:
            UnknownIdError: there is no such series.
            DicomWebError: the server fails.
        """
        found = self.series().get(uid)
        if found is None:
            msg = f"no image {uid[:64]!a} among the series of the DICOMweb server"
            raise UnknownIdError(msg, reason="missing")
        return found

    def seg(self, uid: str) -> SegInstance:
        """The newest DICOM SEG of an image; raises as :meth:`one`."""
        found = self.segmentations().get(uid)
        if found is None:
            msg = f"no DICOM SEG on the DICOMweb server refers to {uid[:64]!a}"
            raise UnknownIdError(msg, reason="missing")
        return found

    def forget(self) -> None:
        """The next question goes to the server."""
        with self._lock:
            self._series.clear()
            self._segs.clear()


def _filters() -> list[dict[str, Any]]:
    """The default of MONAI Label's setting, CT, would hide MR.

    Judged by its value: MONAI Label hands every setting on to its background processes as if somebody had made it.
    """
    chosen = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    return [chosen] if chosen != {"Modality": "CT"} else [{"Modality": "CT"}, {"Modality": "MR"}]
