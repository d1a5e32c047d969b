"""Many malformed requests: each is refused with a reason, nothing outside is touched, the server goes on."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from tests.label.conftest import AFFINE, SHAPE  # noqa: E402
from tests.label.fuzz_client import Ask, ask, complaint  # noqa: E402
from tests.label.fuzz_requests import FAMILIES, malformed  # noqa: E402
from tests.sizes import count  # noqa: E402

_EACH = count(100, thorough=300)
_SEED = 20_261_122
_OPENED: list[str] = []
_LISTENING = threading.Event()
_WORDS = b"these words lie outside of the studies"


@pytest.fixture(scope="module")
def secrets(client: Any, studies: Path) -> Iterator[list[Path]]:
    """Files beside and above the studies, and labels that are links to one; none may be read, written or deleted."""
    folder = studies.parent / "secret-folder"
    folder.mkdir()
    files = [studies.parent / "secret.raw", studies.parent.parent / f"above-{os.getpid()}.raw", folder / "label.nii.gz"]
    for file in files[:2]:
        file.write_bytes((_WORDS * 4)[:128])  # as many bytes as some headers claim
    write_image_file(np.ones(SHAPE, np.uint8), AFFINE, files[2])
    files.append((studies / "linked.nii.gz").resolve())
    leak = studies / "labels" / "leak"
    leak.mkdir(parents=True)
    for name in ("scan_1", "linked"):
        (leak / f"{name}.nii.gz").symlink_to(files[2])
    (studies / "labels" / "away").symlink_to(folder)
    client.app.state.boltzformer.datastore().refresh()
    for file in files:
        os.utime(file, (1, file.stat().st_mtime))  # reading it would show
    yield files
    for path in [*leak.iterdir(), studies / "labels" / "away", *files[:3]]:
        path.unlink()
    leak.rmdir()
    folder.rmdir()
    client.app.state.boltzformer.datastore().refresh()


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Paths that Python opens meanwhile; such a hook cannot be taken away again, only be told to be deaf."""
    if not getattr(sys, "_boltzformer_hook", False):
        sys.addaudithook(_hear)
        sys._boltzformer_hook = True  # type: ignore[attr-defined]
    _OPENED.clear()
    _LISTENING.set()
    try:
        yield _OPENED
    finally:
        _LISTENING.clear()


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _LISTENING.is_set() and isinstance(arguments[0], str | bytes):
        _OPENED.append(os.fsdecode(arguments[0]))


def _seen(folder: Path, *, without: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder, links not followed."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name) != without]
        for name in names:
            stat = Path(place, name).lstat()
            found[str(Path(place, name))] = (stat.st_size, stat.st_mtime_ns)
    return found


def _good(client: Any) -> tuple[bytes, list[str]]:
    """A good request's label map, and the images there are."""
    reply = client.post(
        "/infer/boltzformer?image=scan_0&output=image",
        data={"params": '{"prompts": ["liver"], "threshold": 0.3, "presence": false}'},
    )
    assert reply.status_code == 200, reply.text
    return reply.content, sorted(client.get("/datastore/?output=all").json()["objects"])


@pytest.fixture(scope="module", autouse=True)
def no_processes(client: Any) -> Iterator[list[Any]]:
    """Nothing that is malformed may start a training or scoring in the background."""
    started: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        name = "monailabel.utils.async_tasks.task.run_background_task"
        patch.setattr(name, lambda request, method, **_: started.append((method, request)) or {})
        yield started


def test_malformed_requests_are_refused_and_touch_nothing(
    client: Any, studies: Path, secrets: list[Path], no_processes: list[Any]
) -> None:
    before, outside = _good(client), _seen(studies.parent, without=studies)
    scans = {path: path.read_bytes() for path in studies.glob("scan_*.nii.gz")}
    hidden = [_WORDS, *(file.read_bytes()[:64] for file in secrets[2:])]
    for file in secrets:
        os.utime(file, (1, file.stat().st_mtime))
    wrong, statuses, told = [], Counter[int](), time.monotonic()
    with recorded() as opened:
        for family in FAMILIES:
            for request in malformed(family, _SEED, _EACH, [str(file) for file in secrets]):
                reply = ask(client, request)
                statuses[reply.status] += 1
                text = complaint(request, reply)
                if any(each in reply.body for each in hidden):
                    text = "shows a file from outside"
                if text:
                    shown = (
                        f"{request.method} {request.target[:150]} {str(request.headers)[:150]} {request.body[:250]!r}"
                    )
                    wrong.append(f"[{family}] {reply.status} {text}: {shown} -> {reply.body[:250]!r}")
    assert statuses.total() >= 6 * _EACH
    assert not wrong, f"{len(wrong)} of {statuses.total()} in {time.monotonic() - told:.0f} s\n" + "\n".join(wrong[:40])
    assert no_processes == []
    assert _strange(opened, client, studies) == []
    if _reading_shows(studies.parent):
        assert [file for file in secrets if file.stat().st_atime != 1] == []
    assert {path: path.read_bytes() for path in studies.glob("scan_*.nii.gz")} == scans
    of_the_server = {"datastore_v2.json", ".lock", ".lock-changes", ".boltzformer", "labels"}
    given = {*(path.name for path in scans), "linked.nii.gz", "picture.png"}
    assert {path.name for path in studies.iterdir()} - of_the_server == given
    after = _seen(studies.parent, without=studies)
    assert {path for path in outside | after if outside.get(path) != after.get(path)} <= _own_files(client)
    assert _good(client) == before


def _own_files(client: Any) -> set[str]:
    """Files outside the studies that the server may change: sessions and logs."""
    server = client.app.state.boltzformer
    places = [Path(server.sessions().store_path), Path(server.app_dir) / "logs"]
    return {str(path) for place in places for path in place.rglob("*")}


def _strange(opened: list[str], client: Any, studies: Path) -> list[str]:
    """What was opened although it is neither the server's own nor the interpreter's."""
    import boltzformer_monai

    server = client.app.state.boltzformer
    own = [
        studies, server.app_dir, server.sessions().store_path, server.settings.checkpoint.parent,
        Path(boltzformer_monai.__file__).parent, sys.prefix, sys.base_prefix, "/usr/lib", "/usr/share",
        "/usr/local/lib", "/proc/self", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/sys", "/dev/null",
        "/dev/urandom",
    ]  # fmt: skip
    roots = [os.path.realpath(each) for each in own]
    temporary = os.path.realpath(tempfile.gettempdir())
    strange = []
    for path in dict.fromkeys(opened):
        real = os.path.realpath(path)
        first = os.path.relpath(real, temporary).split(os.sep)[0]
        fresh = first.startswith(("tmp", "boltzformer-"))
        types = os.path.basename(real) in ("mime.types", "nsswitch.conf")
        fresh |= real == temporary  # a file without a name in it
        if not (any(real == root or real.startswith(root + os.sep) for root in roots) or fresh or types):
            strange.append(path)
    return strange


def _reading_shows(folder: Path) -> bool:
    """Whether the file system notes when a file is read."""
    probe = folder / "probe"
    probe.write_bytes(b"x")
    os.utime(probe, (1, probe.stat().st_mtime))
    probe.read_bytes()
    shows = probe.stat().st_atime != 1
    probe.unlink()
    return shows


def test_links_are_neither_followed_nor_deleted(client: Any, studies: Path, secrets: list[Path]) -> None:
    label = secrets[2].read_bytes()
    form = {"files": {"label": ("l.nii.gz", label)}}
    assert client.put("/datastore/label?image=scan_1&tag=leak", **form).status_code == 404
    assert client.put("/datastore/label?image=scan_1&tag=away", **form).status_code == 404
    assert client.get("/datastore/label?label=scan_1&tag=leak").status_code == 404
    assert client.delete("/datastore/label?id=scan_1&tag=leak").status_code == 404
    assert client.delete("/datastore/image?id=scan_1").status_code == 404  # its labels would go with it
    assert client.delete("/datastore/image?id=linked").status_code == 404
    image = {"files": {"file": ("l.nii.gz", (studies / "scan_0.nii.gz").read_bytes())}}
    assert client.put("/datastore/image?image=linked", **image).status_code == 404
    assert (studies / "scan_1.nii.gz").is_file()
    assert secrets[2].read_bytes() == label
    assert list(secrets[2].parent.iterdir()) == [secrets[2]]


def test_a_sound_upload_is_still_taken(client: Any, studies: Path) -> None:
    scan = (studies / "scan_0.nii.gz").read_bytes()
    assert client.put("/datastore/image?image=fuzz new", files={"file": ("a.nii.gz", scan)}).status_code == 200
    label = (studies / "labels" / "original").parent  # labels are kept below it
    assert client.get("/datastore/image?image=fuzz new").content == scan
    assert client.delete("/datastore/image?id=fuzz new").status_code == 200
    assert not list(label.rglob("fuzz*"))
    assert not (studies / "fuzz new.nii.gz").exists()


def test_a_body_that_does_not_say_its_length_is_cut_off(client: Any) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 2**16

    reply = client.post("/boltzformer/api/segment", content=endless(), headers={"content-type": "application/json"})
    assert reply.status_code == 413
    assert "larger" in reply.json()["detail"]


def test_a_small_file_that_unfolds_is_refused(client: Any) -> None:
    from tests.label.fuzz_files import bomb

    reply = client.post("/infer/boltzformer?output=json", files={"file": ("a.nii.gz", bomb())})
    assert reply.status_code == 413
    assert "decompresses" in reply.json()["detail"]


def test_the_requests_are_the_same_for_a_seed() -> None:
    one, two = (malformed("parameters", 1, 20, ["/x"]) for _ in range(2))
    assert one == two
    assert all(isinstance(each, Ask) for each in one)
