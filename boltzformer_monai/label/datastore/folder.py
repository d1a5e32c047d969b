"""A folder of scans: MONAI Label's datastore, made safe for several processes, full disks and kills.

A batch or a training runs in a process of its own that knows the list of scans and labels as it was when it started.
MONAI Label would write that list back with every label, and so forget the names of labels that were saved meanwhile.
Here each change is alone and starts from the file. A change of a scan or label and of the list becomes true in one
step: the list announces it, then one rename or removal of a file makes it true, then the list is tidied up. Whoever
finds an announcement looks at that file, and knows whether it came true.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from pydantic import BaseModel

from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.inferers.result_manifest import file_sha256
from boltzformer_monai.label.datastore.dataset_zip import zipped
from boltzformer_monai.label.label_info import SHA256
from boltzformer_monai.label.safe_ids import UnknownIdError
from boltzformer_monai.storage import confirm, sweep, sync, temporary_beside

__all__ = ["SCANS", "FolderDatastore"]

_log = logging.getLogger(__name__)

SCANS = ("*.nii.gz", "*.nii", "*.nrrd", "*.mha")
_LIST = "datastore_v2.json"
_CHANGES = "changes"
"""Names the lock, and the temporary files of whoever holds it."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _alone(change: Callable[Concatenate[FolderDatastore, _P], _R]) -> Callable[Concatenate[FolderDatastore, _P], _R]:
    """A method that changes the list: it waits for its turn among all processes, and sees what the last one wrote."""

    @functools.wraps(change)
    def changed(self: FolderDatastore, /, *arguments: _P.args, **options: _P.kwargs) -> _R:
        with self._turn():
            return change(self, *arguments, **options)

    return changed


class _Change(BaseModel):
    """What is about to happen to an image or its labels."""

    image: str
    after: ImageLabelModel | None
    """Its entry of the list then; None: it has none."""
    file: str
    """Below the folder: as soon as it is as said here, the change has happened. "": of the list alone."""
    sha256: str = ""
    """Of that file; "" if it goes."""
    leaving: list[str] = []
    """Files that go afterwards."""

    def has_happened(self, folder: Path) -> bool:
        path = folder / self.file
        if not self.file:
            return True
        if not self.sha256:
            return not os.path.lexists(path)
        return path.is_file() and file_sha256(path) == self.sha256


class FolderDatastore(LocalDatastore):
    """Scans in a folder, their labels below ``labels/TAG``, and a list of both with what was saved along with them.

    Methods that change something leave all as it was when they raise; only where the disk does not confirm what is
    changed already, StorageError says so.

    Args:
        folder: of the scans; no scan in folders below it is seen.
        endings: patterns of the scans' names.
        auto_reload: whether files that are put there or taken away are noticed.
        read_only: whether the list stays as it is at the start.

    Raises:
        DatasetError: the list is damaged.
    """

    def __init__(self, folder: str, *, endings: Sequence[str] = SCANS, auto_reload: bool, read_only: bool) -> None:
        self._root = Path(folder)
        self._held = FileLock(self._root / f".lock-{_CHANGES}")
        self._leaving: list[str] = []
        self._announced: _Change | None = None
        self._config_ts: Any
        try:
            super().__init__(
                folder, datastore_config=_LIST, extensions=list(endings), auto_reload=auto_reload, read_only=read_only
            )
        except ValueError as error:
            msg = (
                f"{self._root / _LIST}: damaged; put back an older copy, or rename it and start again: "
                "scans and labels stay, the names of the labels' segments would be lost"
            )
            raise DatasetError(msg) from error
        if not read_only:
            self._sweep()
        if auto_reload and (handler := getattr(self, "_handler", None)) is not None:
            # Files that are copied in, and another process's list, get their names by a move.
            handler.on_created = handler.on_deleted = handler.on_moved = self._noticed
            handler.on_modified = self._list_noticed

    @_alone
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy a scan into the folder, but in no other one's place; the same one again changes nothing.

        Raises:
            DatasetError: there is another scan of this id.
        """
        stem, ending = self._to_id(Path(image_filename).name)
        image_id = image_id or stem
        self._reconcile_datastore()  # what was put there by hand counts
        if (taken := self._datastore.objects.get(image_id)) is not None:
            there = self._image(image_id, taken)
            if file_sha256(there) == file_sha256(Path(image_filename)):
                return image_id  # sent again, since the answer was lost, say
            msg = f"there is an image {image_id[:60]!a} already; give another id, or remove that one first"
            raise DatasetError(msg)
        name = self._filename(image_id, ending)
        info = {**(image_info or {}), "ts": int(time.time()), "name": name}
        entry = ImageLabelModel(image=DataModel(info=info, ext=ending))
        file = self._image(image_id, entry)
        with self._staged(image_filename, file) as (staged, sha256):
            self._change(_Change(image=image_id, after=entry, file=self._below(file), sha256=sha256), staged)
        return image_id

    @_alone
    def remove_image(self, image_id: str) -> None:
        """Remove a scan and its labels.

        Raises:
            UnknownIdError: there is no such scan.
        """
        entry = self._entry(image_id)
        labels = [self._below(self._label(image_id, tag, each)) for tag, each in entry.labels.items()]
        file = self._below(self._image(image_id, entry))
        self._change(_Change(image=image_id, after=None, file=file, leaving=labels))

    @_alone
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Copy a label into the folder, in place of the last one with this tag; what fails leaves that one.

        Raises:
            UnknownIdError: there is no such scan.
        """
        tag = str(getattr(label_tag, "value", label_tag))  # MONAI Label passes members of its enumeration too
        entry = self._entry(image_id)
        ending = self._to_id(Path(label_filename).name)[1]
        name = self._filename(image_id, ending)
        with self._staged(label_filename, Path(self._datastore.label_path(tag), name)) as (staged, sha256):
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
                leaving=[each for each in old if each != self._below(file)],
            )
            self._change(change, staged)
        return image_id

    @_alone
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label."""
        entry = self._entry(label_id)
        if (label := entry.labels.get(label_tag)) is not None:
            labels = {tag: each for tag, each in entry.labels.items() if tag != label_tag}
            after = entry.model_copy(update={"labels": labels})
            file = self._below(self._label(label_id, label_tag, label))
            self._change(_Change(image=label_id, after=after, file=file))

    @_alone
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Note something about a scan."""
        entry = self._entry(image_id)
        self._note(image_id, entry.model_copy(update={"image": _with(entry.image, info)}))

    @_alone
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Note something about a label."""
        entry = self._entry(label_id)
        if (label := entry.labels.get(label_tag)) is None:
            msg = f"no label {label_id[:64]!a} with the tag {label_tag[:64]!a} in the datastore"
            raise UnknownIdError(msg, reason="missing")
        labels = {**entry.labels, label_tag: _with(label, info)}
        self._note(label_id, entry.model_copy(update={"labels": labels}))

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """ZIP of images and final labels, which the caller removes."""
        return zipped(self.datalist()[: limit_cases or None], self.json())

    @_alone
    def _reconcile_datastore(self) -> None:
        Path(self._datastore.label_path(None)).mkdir(parents=True, exist_ok=True)
        super()._reconcile_datastore()

    def _noticed(self, event: Any) -> None:
        """Of the thread that watches the folder, which an error would end."""
        try:
            if str(getattr(event, "dest_path", "") or event.src_path) == self._datastore_config_path:
                with self._turn():  # which reads it; outside it, what was read could undo a change under way
                    pass
            else:
                self.refresh()
        except Exception:  # noqa: BLE001 (whatever it is, the next change must be noticed too)
            _log.exception("a change in the folder could not be taken up")

    def _list_noticed(self, event: Any) -> None:
        """Of scans and labels that grow the end is awaited; they are read when they are asked for."""
        if str(event.src_path) == self._datastore_config_path:
            self._noticed(event)

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        """As MONAI Label's, without hidden files, and without those that were removed but could not be deleted yet."""
        found = super()._list_files(path, patterns)
        gone = {self._root / each for each in self._leaving}
        return {name: file for name, file in found.items() if not name.startswith(".") and Path(path, file) not in gone}

    def _remove_non_existing(self) -> int:
        """As MONAI Label's, which empties the list for a moment: who asks just then finds nothing."""
        self._init_from_datastore_file()
        store, kept, gone = self._datastore, {}, 0
        for name, entry in store.objects.items():
            if not self._image(name, entry).exists():
                gone += 1
                continue
            labels = {tag: each for tag, each in entry.labels.items() if self._label(name, tag, each).exists()}
            gone += len(entry.labels) - len(labels)
            kept[name] = entry if len(labels) == len(entry.labels) else entry.model_copy(update={"labels": labels})
        if gone:
            store.objects = kept
        return gone

    # The list, and how it changes.

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._held:
            if self._held.lock_counter == 1:
                self._read_anew()
                if self._announced is not None or self._leaving:  # of one that was killed, or met a full disk
                    self._tidy_up()
            yield

    def _read_anew(self) -> None:
        self._config_ts = None  # whatever its time: two processes may write within one tick of the clock
        self._init_from_datastore_file()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the list, unless it is the one that was read; an announced change counts if it has happened."""
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
            leaving = [str(each) for each in content.get("leaving", [])]
        except ValueError:
            _log.exception("%s: damaged", self._datastore_config_path)
            if throw_exception:
                raise
            return
        happened = announced is not None and announced.has_happened(self._root)
        store.base_path = self._datastore_path
        self._datastore, self._announced, self._leaving, self._config_ts = store, announced, leaving, stamp
        if announced is not None and happened:
            self._take_up(announced)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """After a look at the folder: what was found there stays true if it cannot be written now."""
        try:
            self._write_list()
        except OSError as error:
            _log.warning("%s: not written: %s", self._datastore_config_path, why(error))

    def _write_list(self, announced: _Change | None = None) -> None:
        content = self._datastore.model_dump(exclude={"base_path"})
        if announced is not None:
            content["change"] = announced.model_dump()
        if self._leaving:
            content["leaving"] = self._leaving
        path = Path(self._datastore_config_path)
        with _temporary(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
            sync(temporary)
            stamp = _stamp(temporary.stat())
            os.replace(temporary, path)
        self._config_ts, self._announced = stamp, announced

    def _note(self, image_id: str, entry: ImageLabelModel) -> None:
        """Change the list alone."""
        self._change(_Change(image=image_id, after=entry, file=""))

    def _change(self, change: _Change, staged: Path | None = None) -> None:
        """Make a change true, on disk and here.

        Args:
            change: what.
            staged: becomes the change's file; None: that file is removed.

        Raises:
            OSError: nothing was changed.
            StorageError: it was changed, but the disk does not confirm it.
        """
        file = self._root / change.file
        try:
            if change.has_happened(self._root):  # the list is all there is to change
                self._take_up(change)
                self._write_list()
            else:
                self._write_list(change)
                sync(self._root)
                if staged is not None:
                    os.replace(staged, file)
                else:
                    file.unlink()
                self._take_up(change)
        except BaseException:
            self._recover()
            raise
        confirm(Path(self._datastore_config_path) if self._announced is None else file)
        if self._announced is not None or self._leaving:
            self._tidy_up()

    def _take_up(self, change: _Change) -> None:
        """In a new mapping: others may be reading the old one."""
        others = {image: entry for image, entry in self._datastore.objects.items() if image != change.image}
        self._datastore.objects = others if change.after is None else {**others, change.image: change.after}
        self._leaving = [each for each in self._leaving if each != change.file] + change.leaving

    def _tidy_up(self) -> None:
        """Delete what has left, and write the list without an announcement; what fails is done at the next turn."""
        try:
            for each in self._leaving:
                with contextlib.suppress(OSError):
                    (self._root / each).unlink(missing_ok=True)
            self._leaving = [each for each in self._leaving if os.path.lexists(self._root / each)]
            self._write_list()
        except OSError as error:
            _log.warning("%s: not tidied up yet: %s", self._datastore_config_path, why(error))

    def _recover(self) -> None:
        """After a failure: what is true is what is on disk."""
        try:
            self._read_anew()
        except OSError as error:
            _log.warning("%s: not read: %s", self._datastore_config_path, why(error))
        else:
            if self._announced is not None:
                self._tidy_up()

    @_alone
    def _sweep(self) -> None:
        """Remove the temporary files of killed processes: whoever makes them holds the lock, and now we do."""
        labels = Path(self._datastore.label_path(None))
        for folder in (self._root, *(each for each in labels.iterdir() if each.is_dir())):
            sweep(folder, lock=_CHANGES)

    @contextlib.contextmanager
    def _staged(self, source: str, target: Path) -> Iterator[tuple[Path, str]]:
        """A copy on disk beside its place, and its hash."""
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True)
            sync(target.parent.parent)
        with _temporary(target) as temporary:
            shutil.copyfile(source, temporary)
            sync(temporary)
            yield temporary, file_sha256(temporary)

    def _entry(self, image_id: str) -> ImageLabelModel:
        if (entry := self._datastore.objects.get(image_id)) is None:
            msg = f"no image {image_id[:64]!a} in the datastore"
            raise UnknownIdError(msg, reason="missing")
        return entry

    def _image(self, image_id: str, entry: ImageLabelModel) -> Path:
        return Path(self._datastore.image_path(), self._filename(image_id, entry.image.ext))

    def _label(self, image_id: str, tag: str, label: DataModel) -> Path:
        return Path(self._datastore.label_path(tag), self._filename(image_id, label.ext))

    def _below(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name beside a file, for whoever holds the lock; nothing is left of it."""
    path = temporary_beside(target, lock=_CHANGES)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _with(model: DataModel, info: dict[str, Any]) -> DataModel:
    return model.model_copy(update={"info": {**model.info, **info}})


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_ino, status.st_size
