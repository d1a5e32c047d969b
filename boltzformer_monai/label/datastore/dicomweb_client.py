"""Questions to a DICOMweb server: with time limits, and every failure as one typed error."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter

from boltzformer_monai.errors import StorageError, why

__all__ = ["DicomWebClient", "DicomWebError", "SegInstance", "Series"]

_log = logging.getLogger(__name__)

CONNECT_S, READ_S = 5.0, 60.0
_AS_STORED = ("application/dicom", "*")  # not decompressed by the server: it may lack the codec
_PASSING = (401, 403, 429, 502, 503, 504)  # statuses of the server, not of what was asked for
_UID = re.compile(r"\d+(\.\d+)*")
_FIELDS = (
    "NumberOfSeriesRelatedInstances", "Modality", "SeriesDescription", "StudyDate", "StudyTime", "PatientID",
)  # fmt: skip
_SERIES, _STUDY, _INSTANCE, _MODALITY, _COUNT = "0020000E", "0020000D", "00080018", "00080060", "00201209"
_REFERENCED_SERIES = "00081115"
_DATES = (("00080012", "00080013"), ("00080023", "00080033"))  # of the instance's creation, of its content
_INFO = {"PatientID": "00100020", "StudyDate": "00080020", "StudyTime": "00080030", "SeriesDescription": "0008103E"}


class DicomWebError(StorageError):
    """The DICOMweb server does not answer, refuses, or answers something else."""


@dataclass(frozen=True)
class Series:
    """A series of the server.

    Attributes:
        uid: SeriesInstanceUID.
        study: StudyInstanceUID.
        modality: e.g. ``"CT"``.
        instances: how many it has; ``None`` where the server does not say.
        info: what lists of scans show: patient, date, description.
    """

    uid: str
    study: str
    modality: str
    instances: int | None
    info: Mapping[str, str]


@dataclass(frozen=True)
class SegInstance:
    """A DICOM SEG of the server.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        image: SeriesInstanceUID of the scan that it was drawn on.
        made: date and time, which sort as texts.
    """

    study: str
    series: str
    instance: str
    image: str
    made: str


class DicomWebClient:
    """A DICOMweb server; user and password are those of MONAI Label's settings.

    Args:
        url: of the server's DICOMweb root.
    """

    def __init__(self, url: str) -> None:
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        session = create_session_from_gcp_credentials() if "googleapis.com" in url else requests.Session()
        if user and password:
            session.auth = (user, password)
        for scheme in ("http://", "https://"):
            session.mount(scheme, _WithTimeLimit())
        self._client = DICOMwebClientX(
            url=url,
            session=session,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
            permissive_uid=True,  # archives hold UIDs with leading zeros
        )
        self._client.set_http_retry_params(retry=False)  # a server that is down is told at once
        self._segs: dict[tuple[str, int | None], list[SegInstance]] = {}

    def series(self, filters: Sequence[Mapping[str, Any]]) -> list[Series]:
        """All series that any of the filters (keyword → value) finds.

        Raises:
            DicomWebError: the server fails.
        """
        found: dict[str, Series] = {}
        for each in filters:
            listed: dict[str, Series] = {}
            offset = 0
            while page := self._page(each, offset):
                fresh = {one.uid: one for entry in page if (one := _series(entry)) and one.uid not in listed}
                if not fresh:  # a server without paging repeats itself
                    break
                listed.update(fresh)
                offset += len(page)
            found.update(listed)
        return list(found.values())

    def segmentations(self, images: Mapping[str, Series]) -> list[SegInstance]:
        """All DICOM SEGs drawn on one of these images, the oldest first.

        Raises:
            DicomWebError: the server fails.
        """
        studies = {image.study for image in images.values()}
        found = []
        for each in self.series([{"Modality": "SEG"}]) if images else []:
            if each.study in studies:
                key = (each.uid, each.instances)
                if key not in self._segs:
                    self._segs[key] = self._referencing(each)
                found += [seg for seg in self._segs[key] if seg.image in images]
        return sorted(found, key=lambda seg: (seg.made, seg.instance))

    def download(self, series: Series, folder: Path) -> None:
        """Write all files of a series.

        Raises:
            DicomWebError: the server or the disk fails, or fewer files come than there are: a scan without its last
                slices looks whole.
        """
        count = 0
        with _asked():
            instances = self._client.iter_series(series.study, series.uid, media_types=(_AS_STORED,))
            # The names are ours: nothing that the server says becomes part of a path.
            for count, instance in enumerate(instances, 1):
                instance.save_as(folder / f"{count:06d}.dcm")
        if count < (series.instances or 1):
            msg = f"the DICOMweb server sends {count} of the {series.instances or 1} files of a series; try again later"
            raise DicomWebError(msg)

    def fetch(self, seg: SegInstance, path: Path) -> None:
        """Write a DICOM SEG.

        Raises:
            DicomWebError: the server or the disk fails.
        """
        with _asked():
            self._client.retrieve_instance(seg.study, seg.series, seg.instance, media_types=(_AS_STORED,)).save_as(path)

    def store(self, path: Path) -> tuple[str, str]:
        """Send a file; returns its SeriesInstanceUID and SOPInstanceUID.

        Raises:
            DicomWebError: the server fails, or does not take it.
        """
        import pydicom

        with _asked():
            sent = pydicom.dcmread(path)
            reply = self._client.store_instances([sent], sent.StudyInstanceUID)
        if failed := reply.get("FailedSOPSequence"):  # Orthanc sends an empty one
            reason = failed[0].get("FailureReason", "not given")
            msg = f"the DICOMweb server does not take the DICOM SEG (failure reason {reason}); its log may say why"
            raise DicomWebError(msg)
        return str(sent.SeriesInstanceUID), str(sent.SOPInstanceUID)

    def _page(self, filters: Mapping[str, Any], offset: int) -> list[dict[str, Any]]:
        with _asked():
            found = self._client.search_for_series(
                fields=_FIELDS, search_filters=dict(filters), offset=offset or None, get_remaining=False
            )
        return [entry for entry in found if isinstance(entry, dict)]

    def _referencing(self, series: Series) -> list[SegInstance]:
        with _asked():
            try:
                headers = self._client.retrieve_series_metadata(series.study, series.uid)
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code in _PASSING:
                    raise  # says nothing of this object, and must not be remembered of it
                # One damaged object must not hide all the others.
                _log.warning("DICOM SEG %s is left out: its header cannot be had (%s)", series.uid, _why(error))
                return []
        found = []
        for header in headers:
            instance = _text(header, _INSTANCE)
            made = max("".join(_text(header, tag).ljust(8) for tag in pair) for pair in _DATES)
            for item in header.get(_REFERENCED_SERIES, {}).get("Value", []):
                if instance and (image := _text(item, _SERIES)):
                    found.append(SegInstance(series.study, series.uid, instance, image, made))
        return found


class _WithTimeLimit(HTTPAdapter):
    def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
        if options.get("timeout") is None:
            options["timeout"] = (CONNECT_S, READ_S)
        return super().send(request, **options)


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
def _asked() -> Iterator[None]:
    """Turn whatever goes wrong with a server into one line."""
    try:
        yield
    except DicomWebError:
        raise
    except requests.RequestException as error:
        msg = f"the DICOMweb server {_why(error)}"
        raise DicomWebError(msg) from error
    except OSError as error:
        msg = f"a file from the DICOMweb server cannot be written ({why(error)}); is the disk full?"
        raise DicomWebError(msg) from error
    except (InvalidDicomError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError) as error:
        msg = "the DICOMweb server answers something that is no DICOM; does the address lead to its DICOMweb root?"
        raise DicomWebError(msg) from error


def _why(error: requests.RequestException) -> str:
    response = error.response
    if response is not None and response.status_code in (401, 403):
        code = response.status_code
        return f"refuses ({code}); set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"
    if response is not None:
        return f"answers with status {response.status_code}; its log may say why"
    if isinstance(error, requests.ReadTimeout):
        return f"did not answer within {READ_S:.0f} s; try again later"
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return "cannot be reached; is it running, and is the address given with --studies right?"
    return "answers something that cannot be read; does the address lead to its DICOMweb root?"
