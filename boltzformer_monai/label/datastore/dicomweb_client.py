"""DICOMweb client with timeouts; every failure is a :class:`DicomWebError`.

Its lists are kept for seconds: one request to the label server needs them several times.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
from cachetools import TTLCache
from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter

from boltzformer_monai.errors import StorageError, why
from boltzformer_monai.label.safe_ids import UnknownIdError

_log = logging.getLogger(__name__)

CONNECT_S, READ_S = 5.0, 60.0
LIST_S = 2.0
_AS_STORED = ("application/dicom", "*")  # any transfer syntax: the server may lack the codec
_TRANSIENT = (401, 403, 429, 502, 503, 504)  # of the server, not of the object
_UID = re.compile(r"\d+(\.\d+)*")
_FIELDS = (
    "NumberOfSeriesRelatedInstances", "Modality", "SeriesDescription", "StudyDate", "StudyTime", "PatientID",
)  # fmt: skip
_SERIES, _STUDY, _INSTANCE, _MODALITY, _COUNT = "0020000E", "0020000D", "00080018", "00080060", "00201209"
_REFERENCED_SERIES = "00081115"
_DATES = (("00080012", "00080013"), ("00080023", "00080033"))  # creation date and time of the instance, of its content
_INFO = {"PatientID": "00100020", "StudyDate": "00080020", "StudyTime": "00080030", "SeriesDescription": "0008103E"}

_T = TypeVar("_T")


class DicomWebError(StorageError):
    """The DICOMweb server does not respond, refuses, or sends an invalid response."""


@dataclass(frozen=True)
class Series:
    """A series, by its SeriesInstanceUID and StudyInstanceUID."""

    uid: str
    study: str
    modality: str
    instances: int | None
    """How many; ``None`` if unknown."""
    info: Mapping[str, str]
    """Patient, date and description, for lists of scans."""


@dataclass(frozen=True)
class SegInstance:
    """A DICOM SEG instance, by its UIDs."""

    study: str
    series: str
    instance: str
    image: str
    """SeriesInstanceUID of the referenced scan."""
    created: str
    """Date and time as sortable text."""


class DicomWebClient:
    """Client of a DICOMweb server; user and password come from MONAI Label's settings.

    Args:
        url: of the server's DICOMweb root.
    """

    def __init__(self, url: str) -> None:
        session = dicomweb_session(url)
        for scheme in ("http://", "https://"):
            session.mount(scheme, _WithTimeLimit())
        self._client = DICOMwebClientX(
            url=url,
            session=session,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
            permissive_uid=True,  # some archives have UIDs with leading zeros
        )
        self._client.set_http_retry_params(retry=False)  # report a server that is down at once
        self._segs: dict[tuple[str, int | None], list[SegInstance]] = {}
        self._lock = threading.Lock()
        self._lists: TTLCache[str, Any] = TTLCache(maxsize=2, ttl=LIST_S)

    def series(self) -> dict[str, Series]:
        """UID → series, of all that match the search filter of MONAI Label's settings.

        Raises:
            DicomWebError: the server fails.
        """
        return self._cached(
            "series", lambda: {uid: one for each in _filters() for uid, one in self._find(each).items()}
        )

    def segmentations(self) -> dict[str, SegInstance]:
        """UID of an image → its newest DICOM SEG; raises as :meth:`series`."""
        images = self.series()
        return self._cached("segmentations", lambda: self._newest(images))

    def one(self, uid: str) -> Series:
        """A series by its UID.

        Raises:
            UnknownIdError: there is no such series.
            DicomWebError: the server fails.
        """
        if (found := self.series().get(uid)) is None:
            raise UnknownIdError(f"no image {uid[:64]!a} among the series of the DICOMweb server", reason="missing")
        return found

    def seg(self, uid: str) -> SegInstance:
        """The newest DICOM SEG of an image; raises as :meth:`one`."""
        if (found := self.segmentations().get(uid)) is None:
            raise UnknownIdError(f"no DICOM SEG on the DICOMweb server refers to {uid[:64]!a}", reason="missing")
        return found

    def forget(self) -> None:
        """Drop the lists."""
        with self._lock:
            self._lists.clear()

    def download(self, series: Series, folder: Path) -> None:
        """Download all files of a series.

        Raises:
            DicomWebError: the server or the disk fails, or files are missing: a scan without its last slices would
                look complete.
        """
        count = 0
        with _typed_errors():
            instances = self._client.iter_series(series.study, series.uid, media_types=(_AS_STORED,))
            # Numbered names: nothing from the server becomes part of a path.
            for count, instance in enumerate(instances, 1):
                instance.save_as(folder / f"{count:06d}.dcm")
        if count < (series.instances or 1):
            msg = f"the DICOMweb server sends {count} of the {series.instances or 1} files of a series; try again later"
            raise DicomWebError(msg)

    def fetch(self, seg: SegInstance, path: Path) -> None:
        """Download a DICOM SEG.

        Raises:
            DicomWebError: the server or the disk fails.
        """
        with _typed_errors():
            self._client.retrieve_instance(seg.study, seg.series, seg.instance, media_types=(_AS_STORED,)).save_as(path)

    def store(self, path: Path) -> tuple[str, str]:
        """Store a DICOM file; returns its SeriesInstanceUID and SOPInstanceUID.

        Raises:
            DicomWebError: the server fails, or refuses the file.
        """
        import pydicom

        with _typed_errors():
            sent = pydicom.dcmread(path)
            reply = self._client.store_instances([sent], sent.StudyInstanceUID)
        if failed := reply.get("FailedSOPSequence"):  # Orthanc sends an empty one
            reason = failed[0].get("FailureReason", "not given")
            msg = f"the DICOMweb server refuses the {sent.Modality} (failure reason {reason}); its log may say why"
            raise DicomWebError(msg)
        return str(sent.SeriesInstanceUID), str(sent.SOPInstanceUID)

    def _cached(self, name: str, make: Callable[[], _T]) -> _T:
        with self._lock:
            found: _T | None = self._lists.get(name)
            if found is None:
                found = self._lists[name] = make()
            return found

    def _find(self, filters: Mapping[str, Any]) -> dict[str, Series]:
        """UID → series, of all that match the filters (keyword → value)."""
        found: dict[str, Series] = {}
        offset = 0
        while page := self._page(filters, offset):
            fresh = {one.uid: one for entry in page if (one := _series(entry)) and one.uid not in found}
            if not fresh:  # a server without paging sends the same page again
                break
            found.update(fresh)
            offset += len(page)
        return found

    def _newest(self, images: Mapping[str, Series]) -> dict[str, SegInstance]:
        studies = {image.study for image in images.values()}
        found = []
        for each in self._find({"Modality": "SEG"}).values() if images else ():
            if each.study in studies:
                key = (each.uid, each.instances)
                if key not in self._segs:
                    self._segs[key] = self._referencing(each)
                found += [seg for seg in self._segs[key] if seg.image in images]
        return {seg.image: seg for seg in sorted(found, key=lambda seg: (seg.created, seg.instance))}

    def _page(self, filters: Mapping[str, Any], offset: int) -> list[dict[str, Any]]:
        with _typed_errors():
            found = self._client.search_for_series(
                fields=_FIELDS, search_filters=dict(filters), offset=offset or None, get_remaining=False
            )
        return [entry for entry in found if isinstance(entry, dict)]

    def _referencing(self, series: Series) -> list[SegInstance]:
        with _typed_errors():
            try:
                headers = self._client.retrieve_series_metadata(series.study, series.uid)
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code in _TRANSIENT:
                    raise  # not about this object, so it must not be cached for it
                # A damaged object must not hide the others.
                _log.warning("DICOM SEG %s is skipped: its metadata cannot be retrieved (%s)", series.uid, _why(error))
                return []
        found = []
        for header in headers:
            instance = _text(header, _INSTANCE)
            created = max("".join(_text(header, tag).ljust(8) for tag in pair) for pair in _DATES)
            for item in header.get(_REFERENCED_SERIES, {}).get("Value", []):
                if instance and (image := _text(item, _SERIES)):
                    found.append(SegInstance(series.study, series.uid, instance, image, created))
        return found


def dicomweb_session(url: str) -> requests.Session:
    """A session with the user and password of MONAI Label's settings."""
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    session: requests.Session = create_session_from_gcp_credentials() if "googleapis.com" in url else requests.Session()
    if user and password:
        session.auth = (user, password)
    return session


class _WithTimeLimit(HTTPAdapter):
    def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
        if options.get("timeout") is None:
            options["timeout"] = (CONNECT_S, READ_S)
        return super().send(request, **options)


def _filters() -> list[dict[str, Any]]:
    """The search filters; MONAI Label's default, CT, would hide MR.

    Compared by value: MONAI Label passes every setting to its background processes as if it were set.
    """
    chosen = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    return [chosen] if chosen != {"Modality": "CT"} else [{"Modality": "CT"}, {"Modality": "MR"}]


def _series(entry: Mapping[str, Any]) -> Series | None:
    uid, study, count = _text(entry, _SERIES), _text(entry, _STUDY), _text(entry, _COUNT)
    if not _UID.fullmatch(uid) or not study or len(uid) > 64:
        return None
    info = {name: text for name, tag in _INFO.items() if (text := _text(entry, tag))}
    return Series(uid, study, _text(entry, _MODALITY), int(count) if count.isdigit() else None, info)


def _text(entry: Mapping[str, Any], tag: str) -> str:
    values = entry.get(tag, {}).get("Value") or [""]
    return str(values[0] if values[0] is not None else "").strip()


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    """Turn every failure into a one-line DicomWebError."""
    try:
        yield
    except DicomWebError:
        raise
    except requests.RequestException as error:
        raise DicomWebError(f"the DICOMweb server {_why(error)}") from error
    except OSError as error:
        msg = f"a file from the DICOMweb server cannot be written ({why(error)}); is the disk full?"
        raise DicomWebError(msg) from error
    except (InvalidDicomError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError) as error:
        msg = "the DICOMweb server sends invalid DICOM; is the address that of its DICOMweb root?"
        raise DicomWebError(msg) from error


def _why(error: requests.RequestException) -> str:
    response = error.response
    if response is not None and response.status_code in (401, 403):
        code = response.status_code
        return f"refuses ({code}); set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"
    if response is not None:
        return f"responds with status {response.status_code}; its log may say why"
    if isinstance(error, requests.ReadTimeout):
        return f"did not answer within {READ_S:.0f} s; try again later"
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return "cannot be reached; is it running, and is the address given with --studies right?"
    return "sends an invalid response; is the address that of its DICOMweb root?"
