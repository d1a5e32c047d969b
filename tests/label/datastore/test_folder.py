"""The folder's datastore where several processes write."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.errors import DatasetError  # noqa: E402
from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.label.datastore import folder as module  # noqa: E402
from boltzformer_monai.label.datastore.folder import FolderDatastore  # noqa: E402
from boltzformer_monai.label.learning.corrected_labels import corrected_labels  # noqa: E402
from boltzformer_monai.label.safe_ids import UnknownIdError  # noqa: E402

NAMES = {"label_info": [{"name": "cyst", "idx": 1}]}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Eight scans."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in range(8):
        write_image_file(np.full((4, 4, 2), number, np.int16), np.eye(4), folder / f"s{number}.nii.gz")
    return folder


@pytest.fixture
def label(tmp_path: Path) -> str:
    """A label's file."""
    write_image_file(np.ones((4, 4, 2), np.uint8), np.eye(4), tmp_path / "label.nii.gz")
    return str(tmp_path / "label.nii.gz")


def opened(folder: Path, *, reload: bool = False) -> FolderDatastore:
    return FolderDatastore(str(folder), auto_reload=reload, read_only=False)


def names(store: Any) -> dict[str, dict[int, str]]:
    return {each.image_id: each.names for each in corrected_labels(store)}


def test_a_batch_does_not_forget_what_was_saved_meanwhile(studies: Path, label: str) -> None:
    server = opened(studies)
    batch = opened(studies)  # knows of no label
    server.save_label("s0", label, "final", dict(NAMES))
    server.update_image_info("s1", {"seen": True})
    batch.save_label("s1", label, "original", {"model": "boltzformer"})
    assert names(opened(studies)) == {"s0": {1: "cyst"}}
    assert opened(studies).get_image_info("s1")["seen"] is True
    assert opened(studies).get_labels_by_image_id("s1") == {"original": "s1"}


def test_many_at_once_lose_nothing(studies: Path, label: str) -> None:
    stores = [opened(studies) for _ in range(4)]

    def save(number: int) -> None:
        stores[number % 4].save_label(f"s{number % 8}", label, f"tag{number}", dict(NAMES))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(32)))
    objects = json.loads((studies / "datastore_v2.json").read_text())["objects"]
    assert {tag for entry in objects.values() for tag in entry["labels"]} == {f"tag{number}" for number in range(32)}


def test_the_server_sees_what_a_batch_saved(studies: Path, label: str) -> None:
    server = opened(studies, reload=True)
    opened(studies).save_label("s3", label, "final", dict(NAMES))
    end = time.monotonic() + 30
    while not names(server) and time.monotonic() < end:
        time.sleep(0.05)
    assert names(server) == {"s3": {1: "cyst"}}


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_an_upload_spares_a_scan_that_the_list_does_not_know_yet(
    studies: Path, label: str, tmp_path: Path, ending: str
) -> None:
    store = opened(studies)
    there = studies / f"by_hand{ending}"
    write_image_file(np.full((4, 4, 2), 9, np.int16), np.eye(4), there)
    before = there.read_bytes()
    with pytest.raises(DatasetError, match="there is an image 'by_hand' already"):
        store.add_image("by_hand", label, {})
    assert there.read_bytes() == before
    shutil.copyfile(there, tmp_path / f"again{ending}")
    assert store.add_image("by_hand", str(tmp_path / f"again{ending}"), {}) == "by_hand"


def test_hidden_files_are_no_scans(studies: Path) -> None:
    shutil.copyfile(studies / "s0.nii.gz", studies / ".0a1b2c3d-s9.nii.gz")  # of a server that was killed in a copy
    store = opened(studies)
    store.refresh()
    assert sorted(store.list_images()) == [f"s{number}" for number in range(8)]


@pytest.fixture
def labelled(studies: Path, label: str) -> FolderDatastore:
    """A folder with one final label."""
    store = opened(studies)
    store.save_label("s0", label, "final", dict(NAMES))
    return store


def test_a_copy_that_fails_leaves_the_last_label(
    labelled: FolderDatastore, studies: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (studies / "labels" / "final" / "s0.nii.gz").read_bytes()

    def full(source: str, target: Path) -> None:
        target.write_bytes(b"the first bytes")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(OSError, match="space"):
        labelled.save_label("s0", label, "final", {"label_info": []})
    assert (studies / "labels" / "final" / "s0.nii.gz").read_bytes() == before
    assert names(opened(studies)) == {"s0": {1: "cyst"}}
    assert [path.name for path in (studies / "labels" / "final").iterdir()] == ["s0.nii.gz"]


def test_a_list_that_cannot_be_written_leaves_the_last_label(
    labelled: FolderDatastore, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never new voxels under old names."""
    before = (studies / "labels" / "final" / "s0.nii.gz").read_bytes()
    write_image_file(np.full((4, 4, 2), 7, np.uint8), np.eye(4), tmp_path / "other.nii.gz")

    def full(*_: object) -> None:
        raise OSError(28, "full")

    names_of_7 = {"label_info": [{"name": "x", "idx": 7}]}
    with monkeypatch.context() as patched:
        patched.setattr(FolderDatastore, "_write_list", full)
        with pytest.raises(OSError, match="full"):
            labelled.save_label("s0", str(tmp_path / "other.nii.gz"), "final", names_of_7)
    assert (studies / "labels" / "final" / "s0.nii.gz").read_bytes() == before
    assert names(labelled) == names(opened(studies)) == {"s0": {1: "cyst"}}
    # Killed between list and file, or replaced by hand: not learned.
    (tmp_path / "other.nii.gz").replace(studies / "labels" / "final" / "s0.nii.gz")
    assert names(opened(studies)) == {}


def test_a_label_of_another_kind_replaces_the_last(studies: Path, label: str, tmp_path: Path) -> None:
    store = opened(studies)
    store.save_label("s0", label, "final", dict(NAMES))
    write_image_file(np.ones((4, 4, 2), np.uint8), np.eye(4), tmp_path / "label.nrrd")
    store.save_label("s0", str(tmp_path / "label.nrrd"), "final", dict(NAMES))
    assert [path.name for path in (studies / "labels" / "final").iterdir()] == ["s0.nrrd"]
    store.remove_label("s0", "final")
    assert opened(studies).get_labeled_images() == []
    with pytest.raises(UnknownIdError):
        store.save_label("none", label, "final", {})


def test_files_that_come_and_go_are_noticed(studies: Path, label: str) -> None:
    store = opened(studies)
    store.save_label("s0", label, "final", dict(NAMES))
    (studies / "s7.nii.gz").unlink()
    (studies / "labels" / "final" / "s0.nii.gz").unlink()
    (studies / "s1.nii.gz").rename(studies / "other.nii.gz")
    (studies / "picture.png").write_bytes(b"")
    store.refresh()
    assert sorted(store.list_images()) == ["other", "s0", "s2", "s3", "s4", "s5", "s6"]
    assert store.get_labeled_images() == []


def test_the_watcher_sees_moves_and_survives_errors(studies: Path, label: str) -> None:
    """As rsync and browsers put files there; and with the folder of the labels gone."""
    store = opened(studies, reload=True)

    def waits_for(wanted: set[str]) -> None:
        end = time.monotonic() + 30
        while set(store.list_images()) != wanted and time.monotonic() < end:
            time.sleep(0.05)
        assert set(store.list_images()) == wanted

    scans = {f"s{number}" for number in range(8)}
    (studies / "s1.nii.gz").rename(studies / "z.nii.gz")
    waits_for(scans - {"s1"} | {"z"})
    (studies / ".b.part").write_bytes((studies / "s2.nii.gz").read_bytes())
    (studies / ".b.part").rename(studies / "b.nii.gz")
    waits_for(scans - {"s1"} | {"z", "b"})
    shutil.rmtree(studies / "labels")
    (studies / "b.nii.gz").unlink()
    waits_for(scans - {"s1"} | {"z"})
    store.save_label("z", label, "second", {})
    store.remove_label("z", "second")
    assert store.get_labels_by_image_id("z") == {}
    store.remove_image("z")
    assert "z" not in store.list_images()


@pytest.mark.parametrize("how", ["moved", "modified"])
def test_a_list_that_was_noticed_undoes_no_change_under_way(
    studies: Path, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Another process's list is read by the watcher, and a label saved before that reading is taken up."""
    store = opened(studies, reload=True)
    handler, path = store._handler, store._datastore_config_path
    store._observer.stop()  # its part is played here
    store._observer.join()
    store.save_label("s0", label, "final", dict(NAMES))
    write_image_file(np.ones((4, 4, 2), np.uint8), np.eye(4), tmp_path / "label.nrrd")
    event = SimpleNamespace(src_path=path, dest_path="" if how == "modified" else path)
    opened(studies).update_image_info("s1", {"seen": True})
    read, replaced = threading.Event(), threading.Event()
    validate, clean_up = module.LocalDatastoreModel.model_validate, FolderDatastore._clean_up
    watcher = threading.Thread(target=getattr(handler, f"on_{how}"), args=(event,))

    def slowly(content: Any) -> Any:
        model = validate(content)
        if threading.current_thread() is watcher:
            read.set()
            replaced.wait(2)  # a turn is waited for; nobody's turn is not
        return model

    def tidied(self: FolderDatastore) -> None:
        replaced.set()
        watcher.join(1)  # of an unlocked reading the end falls just here
        clean_up(self)

    monkeypatch.setattr(module.LocalDatastoreModel, "model_validate", slowly)
    monkeypatch.setattr(FolderDatastore, "_clean_up", tidied)
    watcher.start()
    assert read.wait(10)
    store.save_label("s0", str(tmp_path / "label.nrrd"), "final", {"label_info": [{"name": "tumour", "idx": 1}]})
    watcher.join(10)
    assert not watcher.is_alive()
    assert names(opened(studies)) == names(store) == {"s0": {1: "tumour"}}
    assert opened(studies).get_image_info("s1")["seen"] is True


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b'{"objects": 3}'])
def test_a_damaged_list_is_one_line(studies: Path, content: bytes) -> None:
    (studies / "datastore_v2.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"datastore_v2.json: damaged; put back"):
        opened(studies)
    assert (studies / "datastore_v2.json").read_bytes() == content
