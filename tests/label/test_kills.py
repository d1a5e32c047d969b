"""A server that is killed while labels are saved: what it acknowledged is there when it starts again."""

from __future__ import annotations

import functools
import http.client
import json
import random
import signal
import stat
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.io.read import read_label_map  # noqa: E402
from boltzformer_monai.label.label_info import names_in  # noqa: E402
from tests.label.live_server import free_port, running  # noqa: E402
from tests.offline import offline  # noqa: E402
from tests.sizes import count  # noqa: E402
from tests.warm_python import Copy, start_copy  # noqa: E402

REAL_KILLS = count(1, thorough=4)  # of a server with all that belongs to it
KILLS = count(5, thorough=100)
WRITERS = 3
SHAPE = (12, 10, 6)
Place = tuple[str, str]
"""Image and tag."""


class Writers:
    """Save labels as fast as the server answers; the n-th has the value n in every voxel, and the name ``name n``.

    Args:
        folder: for the files that are sent.
        seed: of what is saved where.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.saved: dict[Place, int] = {}
        """The last one that was acknowledged."""
        self.tried: dict[Place, set[int]] = {}
        """Later ones that were sent: whether they are there is open."""
        self.refused: list[int] = []
        self.count = self._acknowledged = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def write(self, port: int, least: int, kill: Callable[[], None]) -> None:
        """All of them, until the server is killed: after so many were acknowledged, in the midst of others."""
        self._stop.clear()
        self._acknowledged = 0
        threads = [threading.Thread(target=self._save, args=(port, writer)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        while self._acknowledged < least and any(thread.is_alive() for thread in threads):
            time.sleep(0.002)
        time.sleep(self.random.uniform(0, 0.05))
        kill()
        self._stop.set()
        for thread in threads:
            thread.join(60)
        assert self.refused == []

    def _save(self, port: int, writer: int) -> None:
        while not self._stop.is_set():
            with self._lock:
                self.count += 1
                number = self.count
                # Each has an image of its own for two tags, so that it is known which of two labels is the later one.
                place = (f"s{writer}", self.random.choice(("final", "mine")))
                ending = self.random.choice((".nii.gz", ".nrrd"))
                self.tried.setdefault(place, set()).add(number)
            try:
                status = _put(port, place, number, self.folder / f"{writer}{ending}")
            except (OSError, http.client.HTTPException):
                return
            with self._lock:
                if status != 200:
                    self.refused.append(status)
                    return
                self.saved[place], self.tried[place] = number, set()
                self._acknowledged += 1

    def check(self, port: int) -> None:
        """What a start has found: each label is the last acknowledged one or the one under way, with its names."""
        objects = json.loads(_get(port, "/datastore/?output=all"))["objects"]
        there = {(image, tag): each for image, entry in objects.items() for tag, each in entry["labels"].items()}
        assert set(self.saved) <= set(there) <= set(self.saved) | set(self.tried)
        for place, listed in there.items():
            path = self.folder / f"kept{listed['ext']}"
            path.write_bytes(_get(port, f"/datastore/label?label={place[0]}&tag={place[1]}"))
            array = read_label_map(path).array
            value = int(array.flat[0])
            assert (array == value).all()
            (name,) = names_in(listed["info"]).items()
            allowed = self.tried.get(place, set()) | ({self.saved[place]} if place in self.saved else set())
            found = [each for each in allowed if name == (value, f"name {each}") and value == _value(each)]
            assert found, (place, name, value, allowed)
            self.saved[place], self.tried[place] = found[0], set()


def _value(number: int) -> int:
    return number % 250 + 1


def _get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as reply:
        return bytes(reply.read())


def _put(port: int, place: Place, number: int, file: Path) -> int:
    value = _value(number)
    write_image_file(np.full(SHAPE, value, np.uint8), np.eye(4), file)
    names = json.dumps({"label_info": [{"name": f"name {number}", "idx": value}]})
    mark = "-----mark"
    body = (
        f'--{mark}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{names}\r\n'
        f'--{mark}\r\nContent-Disposition: form-data; name="label"; filename="{file.name}"\r\n\r\n'
    ).encode() + file.read_bytes()
    body += f"\r\n--{mark}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        connection.request("PUT", f"/datastore/label?image={place[0]}&tag={place[1]}", body, headers)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """One scan for each writer, in a folder that is the server's."""
    folder = tmp_path / "studies"
    folder.mkdir(mode=0o700)
    for number in range(WRITERS):
        write_image_file(np.full(SHAPE, number, np.int16), np.eye(4), folder / f"s{number}.nii.gz")
        (folder / f"s{number}.nii.gz").chmod(0o600)
    return folder


def started(studies: Path, folder: Path) -> tuple[Copy, int]:
    """A server of the folder's datastore alone, and its port."""
    port = free_port()
    environment = offline(folder / "connections.txt")
    words = ["-m", "tests.label.kill_server", str(studies), str(port)]
    process = start_copy(words, folder=folder, log=folder / "server.log", environment=environment)
    while True:
        try:
            _get(port, "/datastore/")
            return process, port
        except OSError:
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.01)


@pytest.mark.slow
def test_kills_lose_nothing_that_was_acknowledged(studies: Path, tmp_path: Path) -> None:
    writers = Writers(tmp_path, seed=1)
    for _ in range(KILLS):
        process, port = started(studies, tmp_path)
        writers.check(port)
        assert _strange(studies) == []
        writers.write(port, writers.random.randint(4, 8), process.kill)
    process, port = started(studies, tmp_path)
    writers.check(port)
    process.kill()
    assert _strange(studies) == []
    assert len(writers.saved) == 2 * WRITERS
    assert writers.count > KILLS * WRITERS


@pytest.mark.slow
def test_a_real_server_that_is_killed(studies: Path, checkpoint: Path, tmp_path: Path) -> None:
    writers = Writers(tmp_path, seed=2)
    conf = {"checkpoint": checkpoint, "modality": "CT", "workspace": tmp_path / "workspace"}
    for _ in range(REAL_KILLS):
        with running(studies, tmp_path, conf, serve=True) as server:
            port = int(server.url.rpartition(":")[2])
            writers.check(port)
            assert _strange(studies) == []
            writers.write(port, 20, functools.partial(server.stop, signal.SIGKILL))
    process, port = started(studies, tmp_path)  # the next start; another whole server would find no more
    writers.check(port)
    process.kill()
    assert _strange(studies) == []
    assert writers.saved


def _strange(folder: Path) -> list[str]:
    """Files that are neither scans, labels, list nor lock, and what others may read."""
    found = []
    for path in [folder, *folder.rglob("*")]:
        name = path.relative_to(folder).as_posix()
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o700 if path.is_dir() else 0o600):
            found.append(f"{name} {mode:o}")
        if path.is_file() and path.name.startswith(".") and name != ".lock-changes":
            found.append(name)
    return found
