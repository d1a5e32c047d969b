"""Datastore of a DICOMweb server: CT and MR series are the images, DICOM SEG objects their final labels.

A DICOM SR with the lesions of a final label is stored beside its SEG.

Local files are a cache only.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from monailabel.config import settings
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from boltzformer_monai.errors import BoltzFormerError, ConfigError, StorageError, VolumeError, why
from boltzformer_monai.io.formats import write_image_file
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.label.datastore.dicomweb_cache import Cache, compact
from boltzformer_monai.label.datastore.dicomweb_client import DicomWebClient
from boltzformer_monai.label.datastore.seg_labels import read_label, write_label_as_seg, write_label_as_sr
from boltzformer_monai.label.files import zipped
from boltzformer_monai.label.label_info import as_label_info, caveats_in, names_in
from boltzformer_monai.label.request_record import changing
from boltzformer_monai.label.safe_ids import UPLOADS, UnknownIdError
from boltzformer_monai.storage import disk_refusal, file_sha256

_log = logging.getLogger(__name__)

_FINAL = DefaultLabelTag.FINAL.value


def open_dicomweb(url: str, workspace: Path) -> DicomWebDatastore:
    """Open the datastore of a DICOMweb root; its cache is in the workspace unless MONAI Label's settings name a folder.

    Raises:
        StorageError: the cache folder cannot be made.
    """
    place = str(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or "").strip()
    if place:
        cache = Path(place).expanduser().absolute() / hashlib.sha256(url.encode()).hexdigest()[:16]
    else:
        cache = workspace / "dicomweb"
    return DicomWebDatastore(DicomWebClient(url), Cache(cache))


class DicomWebDatastore(Datastore):
    """Images are series by SeriesInstanceUID; final labels are stored on the server, others in the cache.

    All methods but the constructor raise a DicomWebError where the server fails.
    """

    def __init__(self, archive: DicomWebClient, cache: Cache) -> None:
        self.archive = archive
        self.cache = cache
        self._datastore_path = str(cache.root)

    # Contents.

    def name(self) -> str:
        return "DICOMweb"

    def set_name(self, name: str) -> None:
        """Ignored."""

    def description(self) -> str:
        return "Series of a DICOMweb server"

    def set_description(self, description: str) -> None:
        """Ignored."""

    def list_images(self) -> list[str]:
        """UIDs of all series that match the search filter."""
        return sorted(self.archive.series())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images that a DICOM SEG refers to."""
        return sorted(self.archive.segmentations())

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The others, without series that turned out to be no scan, such as localizers."""
        images = sorted(set(self.archive.series()) - set(self.archive.segmentations()))
        return [image for image in images if "problem" not in self.cache.notes(image)]

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Tag → id of the labels of an image."""
        tags = [tag for tag in self.cache.labels.tags(image_id) if tag != _FINAL]
        if image_id in self.archive.segmentations():  # the server decides, not the cache
            tags.append(_FINAL)
        return dict.fromkeys(tags, image_id)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """Id of a label, ``""`` if there is none."""
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Metadata of the series from the server, and notes of strategies."""
        series = self.archive.one(image_id)
        stated = {"SeriesInstanceUID": series.uid, "StudyInstanceUID": series.study, "Modality": series.modality}
        return {**self.cache.notes(image_id), **series.info, **stated, "name": f"{image_id}.nii.gz"}

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Metadata saved with a label; for a label from the server the names of its segments."""
        return self._label(label_id, label_tag)[1]

    def status(self) -> dict[str, Any]:
        """Counts for /info."""
        labelled = len(self.get_labeled_images())
        tags = {**self.cache.labels.counts(), _FINAL: labelled}
        return {"total": len(self.list_images()), "completed": labelled, "label_tags": tags}

    def json(self) -> dict[str, Any]:
        """All metadata in the format of MONAI Label's own datastore; downloads nothing."""
        objects = {
            image: {
                "image": {"ext": ".nii.gz", "info": self.get_image_info(image)},
                "labels": {tag: {"ext": ".nii.gz", "info": {}} for tag in self.get_labels_by_image_id(image)},
            }
            for image in self.list_images()
        }
        return {"name": self.name(), "description": self.description(), "objects": objects}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Image and label files of all images with a usable final label."""
        found = []
        for image in self.get_labeled_images():
            try:
                found.append({"image": self.get_image_uri(image), "label": self.get_label_uri(image, _FINAL)})
            except VolumeError as error:
                _log.warning("%s: skipped: %s", image, error)
        return found

    # Files.

    def image_folder(self, image_id: str) -> str:
        """Folder with the DICOM files of a series, downloaded if missing or changed.

        Raises:
            UnknownIdError: there is no such series.
        """
        series = self.archive.one(image_id)
        return str(self.cache.series(image_id, series.instances, lambda into: self.archive.download(series, into)))

    def get_image(self, image_id: str, params: Any = None) -> Any:
        """The scan as NIfTI."""
        return io.BytesIO(Path(self.get_image_uri(image_id)).read_bytes())

    def get_image_uri(self, image_id: str) -> str:
        """The scan as a NIfTI file on its exact grid, for 3D Slicer; converted once.

        Raises:
            VolumeError: the series is not a scan.
        """
        folder, path = self.image_folder(image_id), self.cache.nifti(image_id)
        if not path.is_file():
            try:
                volume = read_volume(folder, tilt="keep")
            except VolumeError as error:
                self.cache.note(image_id, problem=error.reason)
                raise
            write_image_file(compact(volume), volume.affine, path)
        return str(path)

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> Any:
        """A label's file."""
        return io.BytesIO(Path(self.get_label_uri(label_id, label_tag)).read_bytes())

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """A label's file; a final label is downloaded if it is not cached.

        Raises:
            UnknownIdError: there is none.
            VolumeError: it is not on the grid of its image.
        """
        return str(self._label(label_id, label_tag)[0])

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """As :meth:`_save_label`, noted for the audit log."""
        tag = str(getattr(label_tag, "value", label_tag))  # MONAI Label passes members of its enumeration too
        with changing("label saved", tag=tag, sha256=file_sha256(Path(label_filename))):
            return self._save_label(image_id, Path(label_filename), tag, {**(label_info or {}), "ts": int(time.time())})

    def _save_label(self, image_id: str, source: Path, tag: str, info: dict[str, Any]) -> str:
        """Save a label; a final one is stored on the server as DICOM SEG with its segment names.

        Raises:
            VolumeError: it is empty or not on the grid of the image.
            ConfigError: its caveats are not in this server's form.
            StorageError: it cannot be cached; the message says if the server has stored it.
        """
        if tag != _FINAL and source.suffix != ".bin":
            ending = next((each for each in UPLOADS if source.name.endswith(each)), ".nii.gz")
            self.cache.labels.copy(image_id, tag, source, ending, info)
            return image_id
        folder = Path(self.image_folder(image_id))
        image = read_volume(folder, tilt="keep")
        labels, names = read_label(source, image, names_in(info))
        if tag == _FINAL:
            self._send(labels, names, image, folder, info)
        try:
            with self.cache.lock(f"{image_id}.label"):
                self.cache.labels.keep(image_id, tag, labels, image, {**info, "label_info": as_label_info(names)})
        except (OSError, BoltzFormerError) as error:
            if tag != _FINAL:
                raise
            msg = (
                "the label was saved on the DICOMweb server as DICOM SEG, so do not send it again; only the local copy "
                f"could not be written ({why(disk_refusal(error) or error)}), so it is downloaded when needed"
            )
            raise StorageError(msg) from error
        return image_id

    def _send(self, labels: np.ndarray, names: Mapping[int, str], image: Volume, scan: Path, info: Any) -> None:
        """Store a label on the server as DICOM SEG, note its UIDs in ``info``, and store its lesions as DICOM SR."""
        # A temporary file that cannot be deleted is no failure once the SEG was stored.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            seg = Path(temporary) / "label.dcm"
            # Only a result of inference, which nobody has reviewed, names its model.
            caveats = caveats_in(info) if "model" in info else None
            write_label_as_seg(labels, names, image, seg, scan=scan, caveats=caveats)
            try:
                info["SeriesInstanceUID"], info["SOPInstanceUID"] = self.archive.store(seg)
            finally:
                self.refresh()  # the server may have stored it even if its response was lost
            try:
                report = seg.with_name("label.sr.dcm")
                write_label_as_sr(labels, names, image, report, scan=scan, seg=seg, caveats=caveats)
                with changing("report of lesions saved", sha256=file_sha256(report)):
                    self.archive.store(report)
            except BoltzFormerError as error:  # the label itself is safe
                _log.warning("%s: no DICOM SR of its lesions was stored: %s", info["SeriesInstanceUID"], error)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """ZIP of images and final labels; the caller removes it."""
        return zipped(self.datalist()[: limit_cases or None], self.json())

    # Changes.

    def refresh(self) -> None:
        """Forget the cached lists."""
        self.archive.forget()

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Not supported."""
        _refuse("add images")

    def remove_image(self, image_id: str) -> None:
        """Not supported."""
        _refuse("remove images")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label that is not final."""
        if label_tag == _FINAL:
            _refuse("remove final labels")
        with changing("label removed", tag=label_tag):
            self.cache.labels.drop(label_id, label_tag)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add metadata to an image, in the cache only."""
        self.archive.one(image_id)
        with changing("image info changed"):
            self.cache.note(image_id, **info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add metadata to a label, in the cache only: the DICOM SEG is not changed."""
        self._label(label_id, label_tag)
        with changing("label info changed", tag=label_tag):
            self.cache.labels.note(label_id, label_tag, info)

    def _label(self, image_id: str, tag: str) -> tuple[Path, dict[str, Any]]:
        """File and metadata of a label."""
        if tag == _FINAL:
            with self.cache.lock(f"{image_id}.label"):
                return self._final(image_id)
        if (known := self.cache.labels.get(image_id, tag)) is None:
            raise UnknownIdError(f"no label {image_id[:64]!a} with the tag {tag[:64]!a}", reason="missing")
        return known

    def _final(self, image_id: str) -> tuple[Path, dict[str, Any]]:
        seg = self.archive.seg(image_id)
        known = self.cache.labels.get(image_id, _FINAL)
        if known is not None and known[1].get("SOPInstanceUID") == seg.instance:
            return known
        image = read_volume(self.image_folder(image_id), tilt="keep")
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "label.dcm"
            self.archive.fetch(seg, file)
            labels, names = read_label(file, image, {})
        info = {"SeriesInstanceUID": seg.series, "SOPInstanceUID": seg.instance, "ts": int(time.time())}
        return self.cache.labels.keep(image_id, _FINAL, labels, image, {**info, "label_info": as_label_info(names)})


def _refuse(what: str) -> NoReturn:
    raise ConfigError(f"this server cannot {what} in the DICOM archive; do it in the archive itself")
