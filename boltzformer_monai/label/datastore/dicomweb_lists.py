"""Lists of a DICOMweb server's series and SEG instances, cached for seconds: one request needs them several times."""

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
    """Series, and the DICOM SEG instances that refer to them.

    Args:
        archive: client of the server.
    """

    def __init__(self, archive: DicomWebClient) -> None:
        self.archive = archive
        self._lock = threading.Lock()
        self._series: TTLCache[str, dict[str, Series]] = TTLCache(maxsize=1, ttl=LIST_S)
        self._segs: TTLCache[str, dict[str, SegInstance]] = TTLCache(maxsize=1, ttl=LIST_S)

    def series(self) -> dict[str, Series]:
        """UID → series, of all that match the search filter of MONAI Label's settings.

        Raises:
            DicomWebError: the server fails.
        """
        with self._lock:
            found = self._series.get("")
            if found is None:
                found = self._series[""] = {each.uid: each for each in self.archive.series(_filters())}
            return found

    def segmentations(self) -> dict[str, SegInstance]:
        """UID of an image → its newest DICOM SEG; raises as :meth:`series`."""
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
        """Drop the cached lists."""
        with self._lock:
            self._series.clear()
            self._segs.clear()


def _filters() -> list[dict[str, Any]]:
    """The search filters; MONAI Label's default, CT, would hide MR.

    Compared by value: MONAI Label passes every setting to its background processes as if it were set.
    """
    chosen = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    return [chosen] if chosen != {"Modality": "CT"} else [{"Modality": "CT"}, {"Modality": "MR"}]
