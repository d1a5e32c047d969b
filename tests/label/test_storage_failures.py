"""A disk that fails at any call: no request ends as an internal error, and none is half-done."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import random
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from starlette.exceptions import HTTPException  # noqa: E402

from boltzformer_monai.errors import StorageError, VolumeError  # noqa: E402
from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.label.datastore.folder import FolderDatastore  # noqa: E402
from boltzformer_monai.label.server.error_responses import ErrorResponses  # noqa: E402
from boltzformer_monai.label.server.sessions import ScanSessions  # noqa: E402
from tests.label.faults import failing_disk  # noqa: E402

FAILURES = 200
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSALS = (errno.EROFS, errno.EIO, errno.EPERM)
SIZE = (6, 5, 4)
Known = dict[str, Any]
"""By image: its scan, what was noted, and its labels: tag → (file, names, what was noted)."""


@pytest.fixture
def store(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderDatastore:
    """The running server, on a folder, sessions and temporary files of the test's own."""
    for name in ("studies", "temporary", "sessions"):
        (tmp_path / name).mkdir()
    for number in range(3):
        write_image_file(np.full(SIZE, number, np.int16), np.eye(4), tmp_path / "studies" / f"s{number}.nii.gz")
    server = client.app.state.boltzformer
    store = FolderDatastore(str(tmp_path / "studies"), auto_reload=False, read_only=False)
    monkeypatch.setattr(server, "_datastore", store)
    monkeypatch.setattr(server, "_sessions", ScanSessions(str(tmp_path / "sessions")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return store


class Life:
    """Random requests, and what must be there after each of them.

    Args:
        client: of the server.
        folder: with the studies.
        seed: of what is asked.
    """

    def __init__(self, client: Any, folder: Path, seed: int) -> None:
        self.client = client
        self.folder = folder
        self.random = random.Random(seed)
        self.count = 0
        self.known: Known = {f"s{n}": {"scan": digest(voxels(folder, n)), "note": None, "labels": {}} for n in range(3)}

    def ask(self) -> tuple[str, Callable[[], Any], Known]:
        """Name of a request, a call that makes it, and what is known once it was done."""
        self.count += 1
        after = json.loads(json.dumps(self.known))
        image = self.random.choice(sorted(after))
        tag = self.random.choice(("final", "original", "mine"))
        labels = after[image]["labels"]
        kind = self.random.choice(("put label",) * 4 + ("drop label", "note label", "image", "note image", "session"))
        if kind in ("drop label", "note label"):
            kind, tag = (kind, self.random.choice(sorted(labels))) if labels else ("put label", tag)
        if kind == "image":
            kind = "put image" if len(after) < 3 else "drop image"
        scan, label = f"image={image}", f"label={image}&tag={tag}"
        if kind == "put image":
            name, content = f"new{self.count}", voxels(self.folder, self.count)
            after[name] = {"scan": digest(content), "note": None, "labels": {}}
            call = self.put(f"/datastore/image?image={name}", file=("a.nii.gz", content))
        elif kind == "drop image":
            del after[image]
            call = functools.partial(self.client.delete, f"/datastore/image?id={image}")
        elif kind == "note image":
            after[image]["note"] = self.count
            call = self.put(f"/datastore/image/info?{scan}", info={"note": self.count})
        elif kind == "session":
            call = self.put("/session/", files=("a.nii.gz", voxels(self.folder, self.count)))
        elif kind == "put label":
            ending = self.random.choice((".nii.gz", ".nii.gz", ".nrrd"))
            content = voxels(self.folder, self.count % 9 + 1, np.uint8, ending)
            names = [{"name": f"n{self.count}", "idx": 1}]
            labels[tag] = [digest(content), names, None]
            path = f"/datastore/label?{scan}&tag={tag}"
            call = self.put(path, label=(f"a{ending}", content), params={"label_info": names})
        elif kind == "drop label":
            del labels[tag]
            call = functools.partial(self.client.delete, f"/datastore/label?id={image}&tag={tag}")
        else:
            labels[tag][2] = self.count
            call = self.put(f"/datastore/label/info?{label}", info={"note": self.count})
        return kind, call, after

    def put(self, path: str, **fields: Any) -> Callable[[], Any]:
        """A request to come: tuples are files, the other fields JSON."""
        files = {name: value for name, value in fields.items() if isinstance(value, tuple)}
        data = {name: json.dumps(value) for name, value in fields.items() if name not in files}
        return functools.partial(self.client.put, path, data=data, files=files or None)


def voxels(folder: Path, value: int, kind: Any = np.int16, ending: str = ".nii.gz") -> bytes:
    """A file with this value in every voxel."""
    path = folder.parent / f"made{ending}"
    write_image_file(np.full(SIZE, value, kind), np.eye(4), path)
    return path.read_bytes()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def seen_by(client: Any) -> Known:
    """What the server's replies say."""
    found: Known = {}
    for image, entry in client.get("/datastore/?output=all").json()["objects"].items():
        labels = {}
        for tag in entry["labels"]:
            where = f"label={image}&tag={tag}"
            info = client.get(f"/datastore/label/info?{where}").json()
            content = client.get(f"/datastore/label?{where}").content
            labels[tag] = [digest(content), info.get("label_info"), info.get("note")]
        content = client.get(f"/datastore/image?image={image}").content
        found[image] = {"scan": digest(content), "note": entry["image"]["info"].get("note"), "labels": labels}
    return found


def seen_in(folder: Path) -> Known:
    """What a server finds that starts now."""
    return seen_of(FolderDatastore(str(folder), auto_reload=False, read_only=False))


def seen_of(store: FolderDatastore) -> Known:
    """What a datastore says; quicker than by requests."""
    found: Known = {}
    for image in store.list_images():
        labels = {}
        for tag in store.get_labels_by_image_id(image):
            info = store.get_label_info(image, tag)
            content = Path(store.get_label_uri(image, tag)).read_bytes()
            labels[tag] = [digest(content), info.get("label_info"), info.get("note")]
        scan = Path(store.get_image_uri(image)).read_bytes()
        found[image] = {"scan": digest(scan), "note": store.get_image_info(image).get("note"), "labels": labels}
    return found


@pytest.mark.slow
def test_whatever_call_fails_nothing_is_half_done(client: Any, store: FolderDatastore, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    life = Life(client, studies, seed=0)
    failures: dict[str, int] = {}
    lengths: dict[str, int] = {}
    with failing_disk() as disk:
        while sum(failures.values()) < FAILURES:
            kind, request, after = life.ask()
            code = life.random.choice(NO_ROOM + REFUSALS)
            disk.arm(life.random.randint(1, lengths[kind]) if kind in lengths else None, code)
            reply = request()
            failed, calls = disk.failed, disk.calls
            disk.arm(None)
            if not failed:
                lengths[kind] = max(lengths.get(kind, 0), calls)
            else:
                failures[failed] = failures.get(failed, 0) + 1
            where = f"{kind}, {failed or 'nothing'} failed, {errno.errorcode[code]}: {reply.status_code} {reply.text}"
            if reply.status_code == 200:
                life.known = after
            else:
                assert failed, where
                assert reply.status_code == (507 if code in NO_ROOM else 503), where
                detail = reply.json()["detail"]
                assert "\n" not in detail, where
                assert str(tmp_path) not in detail, where
                if "does not confirm" in detail:
                    assert failed in ("fsync", "open"), where
                    life.known = after
                else:
                    assert "nothing was changed" in detail or "cannot be written" in detail, where
            assert seen_of(store) == life.known, where
            if life.random.random() < 0.1:
                assert seen_by(client) == life.known, where
            left = list((tmp_path / "temporary").iterdir())
            if failed in ("unlink", "rmdir"):  # the copy of an upload may be what could not be removed
                for folder in left:
                    shutil.rmtree(folder)
            else:
                assert left == [], where
            if life.random.random() < 0.1:
                assert seen_in(studies) == life.known, where
    assert seen_in(studies) == life.known
    assert left_over(tmp_path) == []
    assert set(failures) >= {"open", "write", "fsync", "replace", "unlink"}, failures


def left_over(folder: Path) -> list[str]:
    hidden = [path.relative_to(folder).as_posix() for path in folder.rglob(".*")]
    return [name for name in hidden if name != "studies/.lock-changes"]


@pytest.mark.parametrize(("code", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EROFS, 503)])
def test_wherever_the_disk_refuses_the_status_says_so(code: int, status: int) -> None:
    refusal = OSError(code, os.strerror(code))

    def told(error: Exception, cause: Exception | None = None) -> int:
        error.__cause__ = cause
        found = ErrorResponses().describe(error)
        assert found is not None
        return found[0]

    assert told(refusal) == status
    assert told(HTTPException(400, "There was an error parsing the body"), refusal) == status  # an upload
    assert told(StorageError("scores.json: cannot be written"), refusal) == status
    assert told(VolumeError("a.nii.gz: cannot be written", reason="write"), refusal) == status
    assert told(RuntimeError("of a library"), refusal) == status
    assert told(VolumeError("a.nii.gz: cannot be read"), refusal) == 422
    assert ErrorResponses().describe(FileNotFoundError(errno.ENOENT, "none")) is None


def test_an_archive_that_cannot_be_written_leaves_nothing(
    store: FolderDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_image_file(np.ones(SIZE, np.uint8), np.eye(4), tmp_path / "label.nii.gz")
    store.save_label("s0", str(tmp_path / "label.nii.gz"), "final", {})
    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(OSError, match="space"):
        store.get_dataset_archive(None)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_session_is_there_or_not(store: FolderDatastore, client: Any, tmp_path: Path) -> None:
    """One that was never finished, and one whose folder cannot be deleted at once."""
    sessions = client.app.state.boltzformer.sessions()
    half = tmp_path / "sessions" / str(uuid.uuid4())
    half.mkdir()
    (tmp_path / "sessions" / "not ours").mkdir()
    made = client.put("/session/", files=[("files", ("a.nii.gz", voxels(tmp_path, 1))) for _ in range(2)]).json()
    folder = Path(sessions.get_session(made["session_id"]).image)
    assert sorted(path.name for path in folder.iterdir()) == ["upload0.nii.gz", "upload1.nii.gz"]
    assert sessions.remove_expired() == 1
    assert client.get(f"/session/{made['session_id']}").status_code == 200
    assert client.delete(f"/session/{made['session_id']}").status_code == 200
    assert client.get(f"/session/{made['session_id']}").status_code == 404
    assert [path.name for path in (tmp_path / "sessions").iterdir()] == ["not ours"]
