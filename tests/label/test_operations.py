"""A server as a hospital runs it: keys, an audit log that is required, and an end that loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

import httpx  # noqa: E402
import nibabel  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from boltzformer_monai.label.api_keys import add_key  # noqa: E402
from tests.label.conftest import AFFINE, scan  # noqa: E402
from tests.label.live_server import Server, running  # noqa: E402

pytestmark = pytest.mark.slow

NAME = "Mustermann_Erika"
_REQUESTS = 500
_PATIENCE_S = 300


@dataclass(frozen=True)
class _Hospital:
    server: Server
    keys: dict[str, str]
    audit: Path

    def client(self, name: str) -> httpx.Client:
        return httpx.Client(
            base_url=self.server.url, headers={"Authorization": f"Bearer {self.keys[name]}"}, timeout=_PATIENCE_S
        )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.audit / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small disk of its own where that is allowed, else an ordinary one."""
    folder = tmp_path / "audit"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    yield folder
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def hospital(checkpoint: Path, tmp_path: Path, audit: Path) -> Iterator[_Hospital]:
    """The server, on scans whose names and headers name a patient."""
    studies = tmp_path / "studies"
    studies.mkdir()
    image = nibabel.Nifti1Image(scan(0), AFFINE)
    image.header["descrip"] = NAME.encode()
    nibabel.save(image, studies / f"{NAME}.nii.gz")
    file = tmp_path / "keys.txt"
    keys = {"ward": add_key(file, "ward", "annotator"), "research": add_key(file, "research", "user")}
    keys["it"] = add_key(file, "it", "admin")
    conf = {"checkpoint": checkpoint, "modality": "CT", "audit": "required", "audit_folder": audit, "drain_s": "120"}
    options = ["--keys", str(file), "--log-format", "json"]
    with running(studies, tmp_path, conf, serve=True, options=options, ready="/ready") as server:
        yield _Hospital(server, keys, audit)


def test_500_requests_of_two_keys_leave_500_lines(hospital: _Hospital, tmp_path: Path) -> None:
    with hospital.client("ward") as ward, hospital.client("research") as research:
        label = tmp_path / "label.nii.gz"
        nibabel.save(nibabel.Nifti1Image((scan(0) > 100).astype(np.uint8), AFFINE), label)

        def ask(number: int) -> httpx.Response:
            client = (ward, research)[number % 2]
            if number % 50 == 1:
                return client.post("/boltzformer/api/segment", json={"image": NAME, "prompts": ["liver"]})
            if number % 50 == 2:  # of the ward
                info = {"label_info": [{"name": "liver", "idx": 1}], "user": NAME}
                return client.put(
                    f"/datastore/label?image={NAME}&tag=final",
                    files={"label": (f"{NAME}.nii.gz", label.read_bytes())}, data={"params": json.dumps(info)},
                )  # fmt: skip
            if number % 50 == 3:
                return client.get(f"/datastore/image?image={NAME}")
            if number % 50 == 4:
                return client.get(f"/datastore/image?image=no_{NAME}", headers={"X-Request-ID": NAME})
            return client.get(f"/datastore/image/info?image={NAME}")

        with ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(ask, range(_REQUESTS)))
    assert Counter(reply.status_code for reply in replies) == {200: _REQUESTS - 10, 404: 10}
    lines = hospital.lines()
    assert len(lines) == _REQUESTS
    assert {line["request"] for line in lines} == {reply.headers["x-request-id"] for reply in replies}
    assert Counter(line["user"] for line in lines) == {"ward": _REQUESTS // 2, "research": _REQUESTS // 2}
    assert sum(bool(line["stored"]) for line in lines) == 10
    text = (hospital.audit / "audit.jsonl").read_text().lower()
    assert NAME.lower() not in text
    assert "mustermann" not in text
    _metrics_parse(hospital)
    about = [line for line in _log(hospital.server) if line["logger"].endswith("request_log")]
    assert len(about) >= _REQUESTS
    assert "mustermann" not in json.dumps(about).lower()


def _metrics_parse(hospital: _Hospital) -> None:
    text = hospital.server.get("/metrics").content.decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    counted = [each for each in samples if each.name == "boltzformer_requests_total"]
    assert sum(each.value for each in counted if each.labels["route"].startswith("/datastore/image")) >= _REQUESTS * 0.9
    assert "mustermann" not in text.lower()


def _log(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]


def test_only_keys_of_the_file_open_it_each_for_its_role(hospital: _Hospital) -> None:
    server = hospital.server
    for path in ("/info/", "/boltzformer/api/config", f"/datastore/image?image={NAME}", "/logs/"):
        assert server.get(path).status == 401, path
        for wrong in ("x", hospital.keys["ward"] + "x", "bfk_"):
            headers = {"Authorization": f"Bearer {wrong}"}
            assert httpx.get(server.url + path, headers=headers).status_code == 401, (path, wrong)
    for path in ("/health", "/ready", "/version", "/metrics"):
        assert server.get(path).status == 200
    with hospital.client("ward") as ward, hospital.client("research") as research:
        assert ward.get("/info/").status_code == research.get("/info/").status_code == 200
        info = {"info": "{}"}
        assert research.put(f"/datastore/image/info?image={NAME}", data=info).status_code == 403
        assert ward.put(f"/datastore/image/info?image={NAME}", data=info).status_code == 200
        assert ward.get("/logs/").status_code == 403
    _client_signs_in(hospital)
    _a_stranger_s_upload_is_not_read(hospital)
    signed_in, *_ = (each for each in hospital.lines() if each["route"] == "/auth/token" and each["status"] == 200)
    assert signed_in["user"] == "ward"
    refused = [line for line in hospital.lines() if line["status"] == 401]
    assert refused
    assert {line["user"] for line in refused} == {None}
    text = server.log.read_text() + (hospital.audit / "audit.jsonl").read_text()
    assert not [key for key in hospital.keys.values() if key in text]


def _a_stranger_s_upload_is_not_read(hospital: _Hospital) -> None:
    """The server answers before the end of a form that is larger than 1 MiB."""
    address = httpx.URL(hospital.server.url)
    for length in ("Content-Length: 9000000", "Transfer-Encoding: chunked"):
        with socket.create_connection((address.host, address.port), timeout=10) as connection:
            head = f"PUT /datastore/image HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer bfk_x\r\n{length}\r\n"
            connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 401 "), length


def _client_signs_in(hospital: _Hospital) -> None:
    """As the module of 3D Slicer does: name and password, the key being the password."""
    from monailabel.client import MONAILabelClient
    from monailabel.client.client import MONAILabelClientException

    client = MONAILabelClient(hospital.server.url)
    assert client.auth_enabled()
    with pytest.raises(MONAILabelClientException):
        client.auth_token("ward", "wrong")
    client.update_auth(client.auth_token("ward", hospital.keys["ward"]))
    assert client.auth_valid_token()
    assert client.info()["models"]


def test_what_a_batch_does_later_is_told_with_who_started_it(hospital: _Hospital) -> None:
    with hospital.client("it") as admin:
        started = admin.post("/batch/infer/boltzformer", json={"prompts": ["liver"], "label_tag": "original"})
        assert started.status_code == 200, started.text
        end = time.monotonic() + _PATIENCE_S
        while admin.get("/batch/infer").json()["status"] in ("SUBMITTED", "RUNNING") and time.monotonic() < end:
            time.sleep(0.2)
        assert admin.get("/batch/infer").json()["status"] == "DONE"
    (line,) = (each for each in hospital.lines() if each["method"] == "job")
    (asked,) = (each for each in hospital.lines() if each["route"].startswith("/batch/") and each["method"] == "POST")
    assert (line["request"], line["user"], line["status"]) == (asked["request"], "it", "done")
    assert [each["what"] for each in line["stored"]] == ["label saved"]
    assert line["prompts"] == ["liver"]
    assert all(line[each] for each in ("scan", "model"))
    assert "mustermann" not in (hospital.audit / "audit.jsonl").read_text().lower()


def test_a_full_audit_disk_refuses_everything_but_health(hospital: _Hospital) -> None:
    if not os.path.ismount(hospital.audit):
        pytest.skip("no small disk can be mounted here")
    with hospital.client("ward") as ward:
        assert ward.get("/info/").status_code == 200
        lines = len(hospital.lines())
        filler = hospital.audit / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:  # until the disk is full
                file.write(b"x" * 4096)
        reply = ward.put(f"/datastore/image/info?image={NAME}", data={"info": json.dumps({"note": 1})})
        assert reply.status_code == 507
        assert "nothing was done" in reply.json()["detail"]
        assert len(hospital.lines()) == lines
        assert ward.get("/health").status_code == 200
        assert ward.get("/ready").json()["reasons"] == ["the audit log cannot be written"]
        filler.unlink()
        assert "note" not in ward.get(f"/datastore/image/info?image={NAME}").json()
        assert ward.get("/ready").status_code == 200


def test_sigterm_lets_a_running_request_end_and_refuses_new_ones(hospital: _Hospital) -> None:
    replies: list[httpx.Response] = []
    wanted = {"image": NAME, "prompts": ["liver", "left kidney"], "planes": ["axial", "coronal", "sagittal"]}

    def ask() -> None:
        with hospital.client("ward") as ward:
            for _ in range(50):  # until one is under way when the signal comes
                replies.append(ward.post("/boltzformer/api/segment", json={**wanted, "uncertainty": 20}))
                if replies[-1].status_code != 200 or signalled.is_set():
                    break

    signalled = threading.Event()
    asking = threading.Thread(target=ask)
    with hospital.client("research") as research:
        asking.start()
        while not _segmenting(research):
            time.sleep(0.01)
        os.kill(hospital.server.process.pid, signal.SIGTERM)
        signalled.set()
        refused: httpx.Response | None = None
        while refused is None or refused.status_code == 200:
            refused = research.get("/info/")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert research.get("/ready").status_code == 503
        assert research.get("/health").status_code == 200
    asking.join(_PATIENCE_S)
    assert replies[-1].status_code == 200
    assert len(replies[-1].json()["findings"]) == 2
    assert hospital.server.process.wait(_PATIENCE_S) == 0
    assert hospital.lines()[-1]["route"] == "/boltzformer/api/segment"
    assert "Traceback" not in hospital.server.log.read_text()


def _segmenting(client: httpx.Client) -> bool:
    return 'boltzformer_queue_running{queue="segment"} 1.0' in client.get("/metrics").text
