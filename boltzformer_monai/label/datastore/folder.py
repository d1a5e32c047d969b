"""Datastore of a folder: MONAI Label's, made safe for several processes, full disks and kills.

MONAI Label keeps the list of scans and labels in memory and writes all of it with every change. A batch or a training,
which runs in a process of its own, would overwrite changes made since it started. Here every change locks the list and
starts from the file. A change of a file and of the list is atomic (write-ahead): the list announces the change, one
rename or removal of the file commits it, then the list is cleaned up. A reader that finds an announcement checks that
file to know whether the change was committed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from pydantic import BaseModel

from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.label.files import staged, temporary_path, zipped
from boltzformer_monai.label.label_info import SHA256
from boltzformer_monai.label.request_record import changing
from boltzformer_monai.label.safe_ids import UnknownIdError
from boltzformer_monai.storage import confirm, file_sha256, sweep, sync

_log = logging.getLogger(__name__)

SCANS = ("*.nii.gz", "*.nii", "*.nrrd", "*.mha")
_LIST = "datastore_v2.json"
_CHANGES = "changes"
"""Name of the lock, and of the temporary files of its holder."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _locked(change: Callable[Concatenate[FolderDatastore, _P], _R]) -> Callable[Concatenate[FolderDatastore, _P], _R]:
    """Decorate a method that changes the list: it holds the lock, and starts from the file."""

    @wraps(change)
    def locked(self: FolderDatastore, /, *arguments: _P.args, **options: _P.kwargs) -> _R:
        with self._lock_and_read():
            return change(self, *arguments, **options)

    return locked


class _Change(BaseModel):
    """An announced change of an image or its labels."""

    image: str
    after: ImageLabelModel | None
    """Its new entry; None: it is removed."""
    file: str = ""
    """Path below the folder whose state commits the change; "": only the list changes."""
    sha256: str = ""
    """Hash of that file; "" if it is removed."""
    obsolete: list[str] = []
    """Files to delete afterwards."""

    def is_committed(self, folder: Path) -> bool:
        path = folder / self.file
        if not self.file:
            return True
        if not self.sha256:
            return not os.path.lexists(path)
        return path.is_file() and file_sha256(path) == self.sha256


class FolderDatastore(LocalDatastore):
    """Scans in a folder, labels below ``labels/TAG``, and a list of both with their metadata.

    A method that raises has changed nothing, unless it is a StorageError that the disk does not confirm a change
    already made. Methods raise an UnknownIdError where there is no such scan.

    Args:
        folder: of the scans; its subfolders are not searched.
        endings: patterns of the scans' file names.
        auto_reload: watch the folder for added and removed files.
        read_only: never write the list.

    Raises:
        DatasetError: the list is damaged.
    """

    def __init__(self, folder: str, *, endings: Sequence[str] = SCANS, auto_reload: bool, read_only: bool) -> None:
        self._root = Path(folder)
        self._held = FileLock(self._root / f".lock-{_CHANGES}")
        self._obsolete: list[str] = []
        self._announced: _Change | None = None
        self._config_ts: Any
        try:
            super().__init__(
                folder, datastore_config=_LIST, extensions=list(endings), auto_reload=auto_reload, read_only=read_only
            )
        except ValueError as error:
            msg = (
                f"{self._root / _LIST}: damaged; put back an older copy, or rename it and start again: "
                "scans and labels stay, but the segment names are lost"
            )
            raise DatasetError(msg) from error
        if not read_only:
            self._sweep()
        if auto_reload and (handler := getattr(self, "_handler", None)) is not None:
            # Copied files, and the list of another process, appear by a rename.
            handler.on_created = handler.on_deleted = handler.on_moved = self._on_event
            handler.on_modified = self._on_list_modified

    @_locked
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy a scan into the folder; adding the same file again changes nothing.

        Raises:
            DatasetError: the id is taken by another scan.
        """
        stem, ending = self._to_id(Path(image_filename).name)
        image_id = image_id or stem
        self._reconcile_datastore()  # includes files added by hand
        if (taken := self._datastore.objects.get(image_id)) is not None:
            existing = self._image(image_id, taken)
            if file_sha256(existing) == file_sha256(Path(image_filename)):
                return image_id  # e.g. sent again after a lost response
            msg = f"there is an image {image_id[:60]!a} already; give another id, or remove that one first"
            raise DatasetError(msg)
        name = self._filename(image_id, ending)
        info = {**(image_info or {}), "ts": int(time.time()), "name": name}
        entry = ImageLabelModel(image=DataModel(info=info, ext=ending))
        file = self._image(image_id, entry)
        with staged(file, partial(shutil.copyfile, image_filename), lock=_CHANGES) as (copy, sha256):
            change = _Change(image=image_id, after=entry, file=self._below(file), sha256=sha256)
            with changing("image added", sha256=sha256):
                self._change(change, copy)
        return image_id

    @_locked
    def remove_image(self, image_id: str) -> None:
        """Remove a scan and its labels."""
        entry = self._entry(image_id)
        labels = [self._below(self._label(image_id, tag, each)) for tag, each in entry.labels.items()]
        file = self._below(self._image(image_id, entry))
        with changing("image removed"):
            self._change(_Change(image=image_id, after=None, file=file, obsolete=labels))

    @_locked
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Copy a label into the folder; replaces the label of this tag."""
        tag = str(getattr(label_tag, "value", label_tag))  # MONAI Label passes members of its enumeration too
        entry = self._entry(image_id)
        ending = self._to_id(Path(label_filename).name)[1]
        name = self._filename(image_id, ending)
        target = Path(self._datastore.label_path(tag), name)
        with staged(target, partial(shutil.copyfile, label_filename), lock=_CHANGES) as (copy, sha256):
            info = {**(label_info or {}), "ts": int(time.time()), "name": name, SHA256: sha256}
            label = DataModel(info=info, ext=ending)
            file = self._label(image_id, tag, label)
            before = entry.labels.get(tag)
            old = [] if before is None else [self._below(self._label(image_id, tag, before))]
            change = _Change(
                image=image_id,
                after=entry.model_copy(update={"labels": {**entry.labels, tag: label}}),
                file=self._below(file),
                sha256=sha256,
                obsolete=[each for each in old if each != self._below(file)],
            )
            with changing("label saved", tag=tag, sha256=sha256):
                self._change(change, copy)
        return image_id

    @_locked
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label."""
        entry = self._entry(label_id)
        if (label := entry.labels.get(label_tag)) is not None:
            labels = {tag: each for tag, each in entry.labels.items() if tag != label_tag}
            after = entry.model_copy(update={"labels": labels})
            file = self._below(self._label(label_id, label_tag, label))
            with changing("label removed", tag=label_tag):
                self._change(_Change(image=label_id, after=after, file=file))

    @_locked
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add metadata to a scan."""
        entry = self._entry(image_id)
        with changing("image info changed"):
            self._change(_Change(image=image_id, after=entry.model_copy(update={"image": _with(entry.image, info)})))

    @_locked
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add metadata to a label."""
        entry = self._entry(label_id)
        if (label := entry.labels.get(label_tag)) is None:
            msg = f"no label {label_id[:64]!a} with the tag {label_tag[:64]!a} in the datastore"
            raise UnknownIdError(msg, reason="missing")
        labels = {**entry.labels, label_tag: _with(label, info)}
        with changing("label info changed", tag=label_tag):
            self._change(_Change(image=label_id, after=entry.model_copy(update={"labels": labels})))

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """ZIP of images and final labels; the caller removes it."""
        return zipped(self.datalist()[: limit_cases or None], self.json())

    @_locked
    def _reconcile_datastore(self) -> None:
        Path(self._datastore.label_path(None)).mkdir(parents=True, exist_ok=True)
        super()._reconcile_datastore()

    def _on_event(self, event: Any) -> None:
        """Handler of the watching thread, which an exception would end."""
        try:
            if str(getattr(event, "dest_path", "") or event.src_path) == self._datastore_config_path:
                with self._lock_and_read():  # reads it; without the lock, reading could undo a change in progress
                    pass
            else:
                self.refresh()
        except Exception:  # noqa: BLE001 (the thread must go on)
            _log.exception("a change in the folder could not be read")

    def _on_list_modified(self, event: Any) -> None:
        """React to changes of the list only: scans and labels may still be growing."""
        if str(event.src_path) == self._datastore_config_path:
            self._on_event(event)

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        """As MONAI Label's, without hidden files and removed files that could not be deleted yet."""
        found = super()._list_files(path, patterns)
        hidden = {self._root / each for each in self._obsolete}
        return {
            name: file for name, file in found.items() if not name.startswith(".") and Path(path, file) not in hidden
        }

    def _remove_non_existing(self) -> int:
        """As MONAI Label's, but other threads never see an empty list."""
        self._init_from_datastore_file()
        store, kept, removed = self._datastore, {}, 0
        for name, entry in store.objects.items():
            if not self._image(name, entry).exists():
                removed += 1
                continue
            labels = {tag: each for tag, each in entry.labels.items() if self._label(name, tag, each).exists()}
            removed += len(entry.labels) - len(labels)
            kept[name] = entry if len(labels) == len(entry.labels) else entry.model_copy(update={"labels": labels})
        if removed:
            store.objects = kept
        return removed

    # Changing the list.

    @contextlib.contextmanager
    def _lock_and_read(self) -> Iterator[None]:
        with self._held:
            if self._held.lock_counter == 1:
                self._read_anew()
                if self._announced is not None or self._obsolete:  # after a kill or a full disk
                    self._clean_up()
            yield

    def _read_anew(self) -> None:
        self._config_ts = None  # two processes may write within one tick of the clock
        self._init_from_datastore_file()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the list if it has changed; applies an announced change if it was committed."""
        try:
            with Path(self._datastore_config_path).open(encoding="utf-8") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                if stamp == self._config_ts:
                    return
                text = file.read()
        except FileNotFoundError:
            return
        try:
            content = json.loads(text)
            store = LocalDatastoreModel.model_validate(content)
            announced = _Change.model_validate(content["change"]) if "change" in content else None
            obsolete = [str(each) for each in content.get("obsolete", [])]
        except ValueError:
            _log.exception("%s: damaged", self._datastore_config_path)
            if throw_exception:
                raise
            return
        committed = announced is not None and announced.is_committed(self._root)
        store.base_path = self._datastore_path
        self._datastore, self._announced, self._obsolete, self._config_ts = store, announced, obsolete, stamp
        if announced is not None and committed:
            self._apply(announced)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the list after a scan of the folder; a failure is only logged."""
        try:
            self._write_list()
        except OSError as error:
            _log.warning("%s: not written: %s", self._datastore_config_path, why(error))

    def _write_list(self, announced: _Change | None = None) -> None:
        content = self._datastore.model_dump(exclude={"base_path"})
        if announced is not None:
            content["change"] = announced.model_dump()
        if self._obsolete:
            content["obsolete"] = self._obsolete
        path = Path(self._datastore_config_path)
        with temporary_path(path, lock=_CHANGES) as temporary:
            temporary.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
            sync(temporary)
            stamp = _stamp(temporary.stat())
            os.replace(temporary, path)
        self._config_ts, self._announced = stamp, announced

    def _change(self, change: _Change, copy: Path | None = None) -> None:
        """Commit a change on disk and in memory; the copy becomes the change's file, without one that is removed.

        Raises:
            OSError: nothing was changed.
            StorageError: it was changed, but the disk does not confirm it.
        """
        file = self._root / change.file
        try:
            if change.is_committed(self._root):  # only the list changes
                self._apply(change)
                self._write_list()
            else:
                self._write_list(change)
                sync(self._root)
                if copy is not None:
                    os.replace(copy, file)
                else:
                    file.unlink()
                self._apply(change)
        except BaseException:
            self._recover()
            raise
        confirm(Path(self._datastore_config_path) if self._announced is None else file)
        if self._announced is not None or self._obsolete:
            self._clean_up()

    def _apply(self, change: _Change) -> None:
        """Apply a change in a new mapping: other threads may be reading the old one."""
        others = {image: entry for image, entry in self._datastore.objects.items() if image != change.image}
        self._datastore.objects = others if change.after is None else {**others, change.image: change.after}
        self._obsolete = [each for each in self._obsolete if each != change.file] + change.obsolete

    def _clean_up(self) -> None:
        """Delete obsolete files and the announcement; what fails is retried at the next change."""
        try:
            for each in self._obsolete:
                with contextlib.suppress(OSError):
                    (self._root / each).unlink(missing_ok=True)
            self._obsolete = [each for each in self._obsolete if os.path.lexists(self._root / each)]
            self._write_list()
        except OSError as error:
            _log.warning("%s: not cleaned up yet: %s", self._datastore_config_path, why(error))

    def _recover(self) -> None:
        """Read the state from the disk after a failure."""
        try:
            self._read_anew()
        except OSError as error:
            _log.warning("%s: not read: %s", self._datastore_config_path, why(error))
        else:
            if self._announced is not None:
                self._clean_up()

    @_locked
    def _sweep(self) -> None:
        """Remove temporary files of killed processes; their writers hold the lock, as we do now."""
        labels = Path(self._datastore.label_path(None))
        for folder in (self._root, *(each for each in labels.iterdir() if each.is_dir())):
            sweep(folder, lock=_CHANGES)

    def _entry(self, image_id: str) -> ImageLabelModel:
        if (entry := self._datastore.objects.get(image_id)) is None:
            raise UnknownIdError(f"no image {image_id[:64]!a} in the datastore", reason="missing")
        return entry

    def _image(self, image_id: str, entry: ImageLabelModel) -> Path:
        return Path(self._datastore.image_path(), self._filename(image_id, entry.image.ext))

    def _label(self, image_id: str, tag: str, label: DataModel) -> Path:
        return Path(self._datastore.label_path(tag), self._filename(image_id, label.ext))

    def _below(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _with(model: DataModel, info: dict[str, Any]) -> DataModel:
    return model.model_copy(update={"info": {**model.info, **info}})


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_ino, status.st_size
