"""A folder of scans: MONAI Label's datastore, made safe for several processes.

A batch or a training runs in a process of its own that knows the list of scans and labels as it was when it started.
MONAI Label would write that list back with every label, and so forget the names of labels that were saved meanwhile.
Here each change is alone, starts from the file, and is written in one step.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.inferers.summary import file_sha256
from boltzformer_monai.io.atomic import atomic_path
from boltzformer_monai.label.safety import UnknownIdError

__all__ = ["SCANS", "SHA256", "FolderDatastore"]

_log = logging.getLogger(__name__)

SCANS = ("*.nii.gz", "*.nii", "*.nrrd", "*.mha")
SHA256 = "file_sha256"
"""Key of a label's information: hash of the file that it was saved with."""
_LIST = "datastore_v2.json"

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _alone(change: Callable[Concatenate[FolderDatastore, _P], _R]) -> Callable[Concatenate[FolderDatastore, _P], _R]:
    """A method that changes the list: it waits for its turn among all processes, and sees what the last one wrote."""

    @functools.wraps(change)
    def changed(self: FolderDatastore, /, *arguments: _P.args, **options: _P.kwargs) -> _R:
        with self._turn():
            return change(self, *arguments, **options)

    return changed


class FolderDatastore(LocalDatastore):
    """Scans in a folder, their labels below ``labels/TAG``, and a list of both with what was saved along with them.

    Args:
        folder: of the scans; no scan in folders below it is seen.
        endings: patterns of the scans' names.
        auto_reload: whether files that are put there or taken away are noticed.
        read_only: whether the list stays as it is at the start.

    Raises:
        DatasetError: the list is damaged.
    """

    def __init__(self, folder: str, *, endings: Sequence[str] = SCANS, auto_reload: bool, read_only: bool) -> None:
        self._held = FileLock(Path(folder) / ".lock-changes")
        try:
            super().__init__(
                folder, datastore_config=_LIST, extensions=list(endings), auto_reload=auto_reload, read_only=read_only
            )
        except ValueError as error:
            msg = (
                f"{Path(folder) / _LIST}: damaged; put back an older copy, or rename it and start again: "
                "scans and labels stay, the names of the labels' segments would be lost"
            )
            raise DatasetError(msg) from error
        if auto_reload and (handler := getattr(self, "_handler", None)) is not None:
            # Files that are copied in, and another process's list, get their names by a move.
            handler.on_created = handler.on_deleted = handler.on_moved = self._noticed

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
            there = Path(self._datastore.image_path(), self._filename(image_id, taken.image.ext))
            if file_sha256(there) == file_sha256(Path(image_filename)):
                return image_id  # sent again, since the answer was lost, say
            msg = f"there is an image {image_id[:60]!a} already; give another id, or remove that one first"
            raise DatasetError(msg)
        name = self._filename(image_id, ending)
        with atomic_path(Path(self._datastore.image_path(), name)) as temporary:
            shutil.copyfile(image_filename, temporary)
        info = {**(image_info or {}), "ts": int(time.time()), "name": name}
        self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=ending))
        self._update_datastore_file()
        return image_id

    @_alone
    def remove_image(self, image_id: str) -> None:
        """Remove a scan and its labels."""
        super().remove_image(image_id)
        self.refresh()

    @_alone
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Copy a label into the folder, in place of the last one with this tag; what fails leaves that one.

        The list is written first, with the hash of the file: should the process be killed before the file has its name,
        the names are seen to belong to another one.

        Raises:
            UnknownIdError: there is no such scan.
        """
        tag = str(getattr(label_tag, "value", label_tag))  # MONAI Label passes members of its enumeration too
        entry = self._datastore.objects.get(image_id)
        if entry is None:
            msg = f"no image {image_id[:64]!a} in the datastore"
            raise UnknownIdError(msg, reason="missing")
        ending = self._to_id(Path(label_filename).name)[1]
        folder = Path(self._datastore.label_path(tag))
        folder.mkdir(parents=True, exist_ok=True)
        name = self._filename(image_id, ending)
        before = entry.labels.get(tag)
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(label_filename, temporary)
            info = {**(label_info or {}), "ts": int(time.time()), "name": name, SHA256: file_sha256(temporary)}
            entry.labels[tag] = DataModel(info=info, ext=ending)
            try:
                self._update_datastore_file()
            except BaseException:
                entry.labels.pop(tag)
                entry.labels.update({} if before is None else {tag: before})
                raise
        if before is not None and before.ext != ending:
            Path(folder, self._filename(image_id, before.ext)).unlink(missing_ok=True)
        return image_id

    @_alone
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label."""
        super().remove_label(label_id, label_tag)
        self.refresh()

    @_alone
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Note something about a scan."""
        super().update_image_info(image_id, info)

    @_alone
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Note something about a label."""
        super().update_label_info(label_id, label_tag, info)

    @_alone
    def _reconcile_datastore(self) -> None:
        Path(self._datastore.label_path(None)).mkdir(parents=True, exist_ok=True)
        super()._reconcile_datastore()

    def _noticed(self, event: Any) -> None:
        """Of the thread that watches the folder, which an error would end."""
        try:
            if str(getattr(event, "dest_path", "") or event.src_path) == self._datastore_config_path:
                self._init_from_datastore_file()
            else:
                self.refresh()
        except Exception:  # noqa: BLE001 (whatever it is, the next change must be noticed too)
            _log.exception("a change in the folder could not be taken up")

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        """As MONAI Label's, without hidden files: what is being written, or was left so by a killed process."""
        found = super()._list_files(path, patterns)
        return {name: file for name, file in found.items() if not name.startswith(".")}

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._held:
            if self._held.lock_counter == 1:
                self._config_ts = -1.0  # whatever its time: two processes may write within one tick of the clock
                self._init_from_datastore_file()
            yield

    def _remove_non_existing(self) -> int:
        """As MONAI Label's, which empties the list for a moment: who asks just then finds nothing."""
        self._init_from_datastore_file()
        store, kept, gone = self._datastore, {}, 0
        for name, entry in store.objects.items():
            if not Path(store.image_path(), self._filename(name, entry.image.ext)).exists():
                gone += 1
                continue
            labels = {
                tag: label
                for tag, label in entry.labels.items()
                if Path(store.label_path(tag), self._filename(name, label.ext)).exists()
            }
            gone += len(entry.labels) - len(labels)
            kept[name] = entry if len(labels) == len(entry.labels) else entry.model_copy(update={"labels": labels})
        if gone:
            store.objects = kept
        return gone

    def _update_datastore_file(self, lock: bool = True) -> None:
        content = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        path = Path(self._datastore_config_path)
        with FileLock(self._lock_file) if lock else contextlib.nullcontext():
            with atomic_path(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
            self._config_ts = path.stat().st_mtime
