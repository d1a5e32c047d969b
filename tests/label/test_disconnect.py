"""Clients that leave before their answer."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.errors import CancelledError  # noqa: E402
from boltzformer_monai.inferers.protocols import VolumeRun  # noqa: E402
from boltzformer_monai.label import disconnect, service  # noqa: E402
from boltzformer_monai.label.disconnect import client_disconnected  # noqa: E402
from boltzformer_monai.label.infer_request import parse_request  # noqa: E402
from boltzformer_monai.label.learning.scoring import scores_file  # noqa: E402
from tests.label.live_server import listening  # noqa: E402

_WANTED = {"prompts": ["liver"], "planes": ["axial", "coronal", "sagittal"]}
_PATIENCE_S = 60


def _page(port: int) -> socket.socket:
    return _asked(port, "/boltzformer/api/segment", "application/json", json.dumps({"image": "scan_1", **_WANTED}))


def _slicer(port: int) -> socket.socket:
    form = urllib.parse.urlencode({"params": json.dumps(_WANTED)})
    return _asked(port, "/infer/boltzformer?image=scan_1&output=json", "application/x-www-form-urlencoded", form)


def _with_defaults(port: int) -> socket.socket:
    return _asked(port, "/infer/boltzformer?image=scan_1&output=json")


def _asked(port: int, path: str, kind: str = "", body: str = "") -> socket.socket:
    """A connection on which a request was sent and no answer was read."""
    link = socket.create_connection(("127.0.0.1", port))
    of_body = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n" if body else ""
    link.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{of_body}\r\n{body}".encode())
    return link


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], bool]]:
    """The question "is it still wanted?" of every pass of the network."""
    noted: list[Callable[[], bool]] = []
    stock = VolumeRun._one_pass

    def run(self: VolumeRun, *arguments: Any) -> int:
        assert self.should_stop is not None
        noted.append(self.should_stop)
        return stock(self, *arguments)

    monkeypatch.setattr(VolumeRun, "_one_pass", run)
    return noted


@pytest.mark.parametrize("ask", [_page, _slicer])
def test_a_client_that_leaves_stops_its_request(
    client: Any, passes: list[Callable[[], bool]], monkeypatch: pytest.MonkeyPatch, ask: Callable[[int], socket.socket]
) -> None:
    whole = client.post("/boltzformer/api/segment", json={"image": "scan_1", **_WANTED}).json()
    needed = len(passes)
    assert needed >= 3
    passes.clear()
    held, noting = threading.Event(), VolumeRun._one_pass

    def hold(self: VolumeRun, *arguments: Any) -> int:
        reached = noting(self, *arguments)
        assert held.wait(_PATIENCE_S)
        return reached

    monkeypatch.setattr(VolumeRun, "_one_pass", hold)
    with listening(client.app) as port:
        with ask(port):
            _until(lambda: bool(passes))
            assert not passes[0]()
        _until(passes[0])
        held.set()
        again = client.post("/boltzformer/api/segment", json={"image": "scan_1", **_WANTED}).json()
    assert len(passes) == 1 + needed
    assert again["findings"] == whole["findings"]


@pytest.mark.parametrize("ask", [_page, _slicer, _with_defaults])
def test_one_that_leaves_the_queue_is_never_served(
    client: Any, passes: list[Callable[[], bool]], monkeypatch: pytest.MonkeyPatch, ask: Callable[[int], socket.socket]
) -> None:
    queued: list[Callable[[], bool]] = []

    def noting() -> Callable[[], bool]:
        queued.append(client_disconnected())
        return queued[-1]

    monkeypatch.setattr(service, "client_disconnected", noting)
    held = threading.Event()
    client.app.state.boltzformer.service._worker.submit(held.wait, _PATIENCE_S)
    with listening(client.app) as port:
        with ask(port):
            _until(lambda: bool(queued))
        _until(queued[0])
        held.set()
        assert client.post("/boltzformer/api/segment", json={"image": "scan_1", "prompts": ["liver"]}).json()["result"]
    assert len(passes) == 1


def test_scores_and_batches_are_finished_whoever_leaves(client: Any) -> None:
    app = client.app.state.boltzformer
    store = app.datastore()
    request = parse_request({"prompts": ["liver"]}, default_prompts=[])
    left = threading.Event()
    left.set()
    token = disconnect._DISCONNECTED.set(left)
    try:
        with pytest.raises(CancelledError), app.service.segmented(Path(store.get_image_uri("scan_1")), request):
            pass
        scores = app.scoring({"method": "uncertainty", "prompts": "liver", "uncertainty": 2})
        wanted = {"model": "boltzformer", "prompts": "liver", "images": ["scan_1"], "label_tag": "mine"}
        batch = app.batch_infer({**wanted, "multi_gpu": False})
        store.remove_label("scan_1", "mine")
    finally:
        disconnect._DISCONNECTED.reset(token)
        scores_file(app.service).unlink(missing_ok=True)
    assert scores["scan_1"] > 0
    assert "error" not in batch["scan_1"]


def test_a_patient_client_gets_its_answer(client: Any, passes: list[Callable[[], bool]]) -> None:
    with listening(client.app) as port, _page(port) as link:
        link.settimeout(_PATIENCE_S)
        assert link.recv(15) == b"HTTP/1.1 200 OK"
    assert passes
    assert not any(asked() for asked in passes)


def test_a_segmentation_that_takes_too_long_is_stopped(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its waiting does not count; the next one is served."""
    serving = client.app.state.boltzformer.service
    wanted = {"image": "scan_1", **_WANTED}
    with monkeypatch.context() as patch:
        patch.setattr(serving, "settings", serving.settings.model_copy(update={"segment_s": 1e-6}))
        reply = client.post("/boltzformer/api/segment", json=wanted)
    assert reply.status_code == 504
    assert reply.json()["detail"].startswith("stopped: the segmentation took longer than 1e-06 seconds")
    assert client.post("/boltzformer/api/segment", json=wanted).status_code == 200
