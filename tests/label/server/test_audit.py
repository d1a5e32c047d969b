"""The audit log: a line for every request for data, or no answer."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.errors import StorageError  # noqa: E402
from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.label.datastore.folder import FolderDatastore  # noqa: E402
from boltzformer_monai.label.request_record import JOB  # noqa: E402
from boltzformer_monai.label.server.audit import Audit, AuditLog  # noqa: E402
from tests.label.faults import failing_disk  # noqa: E402

NAME = "Mustermann"
_MB = 2**20


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


@pytest.fixture
def named(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The running server on a folder whose scan bears a patient's name; its path."""
    (tmp_path / "studies").mkdir()
    scan = tmp_path / "studies" / f"{NAME}.nii.gz"
    write_image_file(np.full((6, 5, 4), 3, np.int16), np.eye(4), scan)
    store = FolderDatastore(str(scan.parent), auto_reload=False, read_only=False)
    monkeypatch.setattr(client.app.state.boltzformer, "_datastore", store)
    return scan


@pytest.fixture
def log(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AuditLog]:
    """The server's audit log, in a folder of the test's own, and required."""
    log: AuditLog = client.app.state.boltzformer.audit
    other = AuditLog(tmp_path / "audit", required=True, mb=1, keep=0)
    for key, value in vars(other).items():
        monkeypatch.setattr(log, key, value)
    return log


def test_a_request_is_told_without_names(client: Any, named: Path, log: AuditLog, tmp_path: Path) -> None:
    own = str(uuid.uuid4())
    label = tmp_path / f"{NAME}.nii.gz"
    write_image_file(np.ones((6, 5, 4), np.uint8), np.eye(4), label)
    replies = [
        client.post(
            "/boltzformer/api/segment", headers={"X-Request-ID": own},
            json={"image": NAME, "prompts": ["liver", "left kidney"], "threshold": 0.4},
        ),
        client.post(
            f"/infer/boltzformer?image={NAME}&output=json",
            data={"params": json.dumps({"prompts": "liver", "user": NAME})},
        ),
        client.put(
            f"/datastore/label?image={NAME}&tag={NAME}", files={"label": (label.name, label.read_bytes())},
            data={"params": json.dumps({"label_info": [{"name": NAME, "idx": 1}]})},
        ),
        client.put(f"/datastore/label/info?label={NAME}&tag={NAME}", data={"info": json.dumps({"patient": NAME})}),
        client.get(f"/datastore/label?label={NAME}&tag={NAME}"),
        client.delete(f"/datastore/label?id={NAME}&tag={NAME}"),
        client.get(f"/boltzformer/api/images/{NAME}/scan.nii.gz"),
        client.get(f"/datastore/image/info?image={NAME}"),
        client.get("/datastore/?output=all"),
        client.get(f"/datastore/image?image=other_{NAME}"),
        client.get(f"/{NAME}"),
        client.delete(f"/datastore/image?id={NAME}"),
    ]  # fmt: skip
    model = client.get("/version").json()["model"]
    assert client.get("/health").status_code == client.get("/boltzformer/main.js").status_code == 200
    written = lines(tmp_path / "audit")
    assert [line["status"] for line in written] == [reply.status_code for reply in replies]
    assert [line["request"] for line in written] == [reply.headers["x-request-id"] for reply in replies]
    assert [line["status"] for line in written] == [200] * 9 + [404, 404, 200]
    assert NAME.lower() not in json.dumps(written).lower()
    scan = hashlib.sha256(label.read_bytes()).hexdigest()
    first, second, saved, noted, read, removed, *_ = written
    assert (first["request"], first["prompts"], first["model"]) == (own, ["liver", "left kidney"], model)
    assert (second["prompts"], second["model"], second["route"]) == (["liver"], model, "/infer/{model}")
    assert [line["route"] for line in written[-6:]] == [
        "/boltzformer/api/images/{image_id}/scan.nii.gz", "/datastore/image/info", "/datastore/", "/datastore/image",
        "other", "/datastore/image",
    ]  # fmt: skip
    about = [line["scan"] for line in written]
    assert len(set(about[:8])) == 1
    assert re.fullmatch("[0-9a-f]{64}", str(about[0]))
    assert about[8:11] == [None] * 3
    assert about[11] == about[0]
    assert saved["stored"] == [{"what": "label saved", "tag": "other", "sha256": scan}]
    assert noted["stored"] == [{"what": "label info changed", "tag": "other"}]
    assert read["stored"] == []
    assert removed["stored"] == [{"what": "label removed", "tag": "other"}]
    assert written[-1]["stored"] == [{"what": "image removed"}]
    assert saved["client"] == "testclient"


def test_what_is_downloaded_of_a_result_is_told_with_its_scan(
    client: Any, named: Path, log: AuditLog, tmp_path: Path
) -> None:
    result = client.post("/boltzformer/api/segment", json={"image": NAME, "prompts": ["liver"]}).json()["result"]
    for file in ("labels.nii.gz", "report.html"):
        assert client.get(f"/boltzformer/api/results/{result}/{file}").status_code == 200
    _, mask, report = lines(tmp_path / "audit")
    assert mask["scan"] == report["scan"] == hashlib.sha256(named.read_bytes()).hexdigest()


def test_the_next_scan_is_told(client: Any, named: Path, log: AuditLog, tmp_path: Path) -> None:
    assert client.post("/activelearning/first", json={}).json()["id"] == NAME
    (line,) = lines(tmp_path / "audit")
    assert line["scan"] == hashlib.sha256(named.read_bytes()).hexdigest()
    assert line["stored"] == [{"what": "image info changed"}]


def test_steps_of_a_job_have_lines_of_their_own(client: Any, named: Path, log: AuditLog, tmp_path: Path) -> None:
    wanted = {"prompts": ["liver"], "label_tag": "original"}
    own = str(uuid.uuid4())
    reply = client.post(
        "/batch/infer/boltzformer?run_sync=true", headers={"X-Request-ID": own}, json={**wanted, "user": NAME}
    )
    assert reply.status_code == 200, reply.text
    app = client.app.state.boltzformer
    job = {JOB: {"request": "a1", "user": "ward-3"}}  # as in a process of its own
    app.scoring({"method": "uncertainty", "prompts": "liver", "uncertainty": 2, **job})
    app.batch_infer({"model": "boltzformer", "multi_gpu": False, "images": [NAME, f"no {NAME}"], **wanted, **job})
    model, scan = client.get("/version").json()["model"], hashlib.sha256(named.read_bytes()).hexdigest()
    written = lines(tmp_path / "audit")
    assert NAME.lower() not in json.dumps(written).lower()
    saved, request, scored, failed, again = sorted(written, key=lambda line: (line["request"] != own, line["time"]))
    assert [line["route"] for line in (saved, scored, failed, again)] == ["batch", "scoring", "batch", "batch"]
    assert {line["method"] for line in (saved, scored, failed, again)} == {"job"}
    assert [line["status"] for line in (saved, request, scored)] == ["done", 200, "done"]
    assert sorted([failed["status"], again["status"]]) == ["done", "failed"]
    assert saved["request"] == request["request"] == own
    assert request["stored"] == []
    assert {(line["request"], line["user"]) for line in (scored, failed, again)} == {("a1", "ward-3")}
    for line in (saved, scored):
        assert (line["scan"], line["model"], line["prompts"]) == (scan, model, ["liver"])
    assert [(change["what"], change["tag"]) for change in saved["stored"]] == [("label saved", "original")]
    assert sum(len(line["stored"]) for line in (failed, again)) == 1


def test_a_training_is_told_with_its_scans_and_its_model(
    client: Any, named: Path, log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = tmp_path / "label.nii.gz"
    write_image_file(np.ones((6, 5, 4), np.uint8), np.eye(4), label)
    app = client.app.state.boltzformer
    app.datastore().save_label(NAME, str(label), "final", {"label_info": [{"name": NAME, "idx": 1}]})
    model = app.settings.trained_checkpoint

    def trained(*, output: Path, **_: object) -> float:
        output.parent.mkdir(exist_ok=True)
        output.write_bytes(b"weights")
        return 0.5

    monkeypatch.setattr("boltzformer_monai.label.learning.train_task.fine_tune", trained)
    try:
        assert app.train({"model": "boltzformer", JOB: {"request": "a1", "user": "ward-3"}})["trained"]
    finally:
        model.unlink(missing_ok=True)
    (line,) = lines(tmp_path / "audit")
    assert (line["request"], line["user"], line["route"], line["status"]) == ("a1", "ward-3", "train", "done")
    scan, weights = hashlib.sha256(named.read_bytes()).hexdigest(), hashlib.sha256(b"weights").hexdigest()
    assert line["stored"] == [{"what": "model trained", "scans": [scan], "sha256": weights}]


def test_a_job_is_told_who_started_it(client: Any, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "monailabel.utils.async_tasks.task.run_background_task", lambda request, method: started.append(request) or {}
    )
    app = client.app.state.boltzformer
    monkeypatch.setattr(app.datastore(), "get_labeled_images", lambda *_: ["scan_0"])
    routes = ("batch/infer/boltzformer", "train/boltzformer", "train/", "scoring/uncertainty", "scoring/")
    replies = [client.post(f"/{route}", json={}) for route in routes]
    assert [reply.status_code for reply in replies] == [200] * 5
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert [request[JOB] for request in started] == [{"request": each, "user": None} for each in ids]
    assert client.post("/train/boltzformer", json={JOB: {"request": "1", "user": "x"}}).status_code == 400


def test_without_room_a_job_does_nothing(
    client: Any, named: Path, log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    app = client.app.state.boltzformer
    wanted = {"model": "boltzformer", "multi_gpu": False, "images": [NAME], "prompts": ["liver"]}
    with monkeypatch.context() as patch:
        patch.setattr("boltzformer_monai.label.server.audit.tempfile.TemporaryFile", full)
        assert app.batch_infer(wanted) == {NAME: {"error": "write"}}
        with pytest.raises(StorageError, match="cannot be written"):
            app.train({"model": "boltzformer"})
    assert app.datastore().get_labels_by_image_id(NAME) == {}
    assert lines(tmp_path / "audit") == []


def test_a_scan_is_known_by_its_file(client: Any, named: Path, log: AuditLog, tmp_path: Path) -> None:
    client.get(f"/datastore/image/info?image={NAME}")
    (line,) = lines(tmp_path / "audit")
    assert line["scan"] == hashlib.sha256(named.read_bytes()).hexdigest()


@pytest.mark.parametrize(("code", "status"), [(errno.ENOSPC, 507), (errno.EROFS, 503)])
def test_without_room_nothing_is_done(
    client: Any, named: Path, log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, status: int
) -> None:
    def full(*_: object, **__: object) -> Any:
        raise OSError(code, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("boltzformer_monai.label.server.audit.tempfile.TemporaryFile", full)
        reply = client.delete(f"/datastore/image?id={NAME}")
        assert client.get("/health").status_code == 200
    assert reply.status_code == status
    assert reply.json()["detail"] == "refused, nothing was done: the audit log has no room (No space left on device)"
    assert named.is_file()
    assert lines(tmp_path / "audit") == []
    assert client.delete(f"/datastore/image?id={NAME}").status_code == 200
    assert [line["stored"] for line in lines(tmp_path / "audit")] == [[{"what": "image removed"}]]


def test_a_line_that_is_refused_keeps_the_answer(
    client: Any, named: Path, log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = client.get("/metrics").text.count("boltzformer_audit_failures_total 0.0")
    with monkeypatch.context() as patch:
        patch.setattr("boltzformer_monai.label.server.audit.os.fsync", full)
        reply = client.get(f"/datastore/image?image={NAME}")
    assert reply.status_code == 507
    assert reply.json() == {"detail": "withheld: the audit log does not take it (No space left on device)"}
    assert lines(tmp_path / "audit") == []
    assert before == 0 or "boltzformer_audit_failures_total 0.0" not in client.get("/metrics").text


def test_where_it_is_not_required_requests_are_answered(
    client: Any, named: Path, log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(log, "required", False)
    (tmp_path / "audit" / "audit.jsonl").mkdir()
    assert client.get(f"/datastore/image/info?image={NAME}").status_code == 200
    assert "missing in the audit log" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whatever_call_fails_there_are_whole_lines_only(tmp_path: Path, code: int) -> None:
    log = AuditLog(tmp_path, required=True, mb=1, keep=0)
    log.write({"n": 0})
    calls, failed = 1, 0
    with failing_disk() as disk:
        disk.arm(None)
        log.write({"n": 0})
        calls = disk.calls
        for number in range(1, calls + 1):
            disk.arm(number, code)
            try:
                log.write({"n": "x"})
            except StorageError:
                failed += 1
                disk.arm(None)
                assert all(line == {"n": 0} for line in lines(tmp_path) if line["n"] != "x")
        disk.arm(None)
    assert failed >= 2
    assert [line["n"] for line in lines(tmp_path)].count("x") == calls - failed


def test_a_line_that_a_power_failure_cut_takes_no_other_with_it(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, required=True, mb=1, keep=0)
    log.write({"n": 0})
    with log.path.open("ab") as file:
        file.write(b'{"n": 1, "us')
    log.write({"n": 2})
    first, cut, last = log.path.read_text().splitlines()
    assert (json.loads(first), cut, json.loads(last)) == ({"n": 0}, '{"n": 1, "us', {"n": 2})


def test_full_files_are_kept_as_long_as_is_said(tmp_path: Path) -> None:
    entry = {"text": "x" * 100_000}
    for keep, files in ((0, 5), (2, 3)):
        log = AuditLog(tmp_path / str(keep), required=False, mb=1, keep=keep)
        for number in range(45):
            log.write({**entry, "number": number})
        found = sorted((tmp_path / str(keep)).glob("*.jsonl"))
        assert len(found) == files
        assert all(file.stat().st_size <= _MB for file in found)
        numbers = [json.loads(line)["number"] for file in found for line in file.read_text().splitlines()]
        assert sorted(numbers) == list(range(45))[-len(numbers) :]


def _write_many(folder: Path, process: int) -> None:
    log = AuditLog(folder, required=False, mb=1, keep=0)
    for number in range(100):
        log.write({"id": [process, number], "text": "x" * 5_000})


def test_processes_and_threads_share_a_log(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_many, args=(tmp_path, number)) for number in range(2)]
    for each in processes:
        each.start()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: _write_many(tmp_path, number), range(2, 5)))
    for each in processes:
        each.join()
        assert each.exitcode == 0
    found = [tuple(line["id"]) for line in lines(tmp_path)]
    assert len(found) == len(set(found)) == 500
    assert len(list(tmp_path.glob("audit-*.jsonl"))) >= 2


def test_a_disk_that_takes_a_part_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path, required=True, mb=1, keep=0)

    class Part(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(bytes(content)[:100])

    with monkeypatch.context() as patch:
        patch.setattr(
            "boltzformer_monai.label.server.audit.open", lambda path, mode, buffering: Part(path, "a"), raising=False
        )
        with pytest.raises(StorageError, match="No space left"):
            log.write({"text": "x" * 1000})
        patch.setattr(
            "boltzformer_monai.label.server.audit.tempfile.TemporaryFile", lambda **_: Part(tmp_path / "room", "w")
        )
        with pytest.raises(StorageError, match="No space left"):
            log.hold_room()
    log.write({"prompts": ["Niere\u2028links"]})
    assert (tmp_path / "audit.jsonl").read_text().splitlines() == ['{"prompts": ["Niere\\u2028links"]}']


def test_a_required_log_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        AuditLog(tmp_path / "file" / "audit", required=True, mb=1, keep=0)
    AuditLog(tmp_path / "file" / "audit", required=False, mb=1, keep=0)


def test_what_is_about_data_has_a_line() -> None:
    audit = Audit(None, log=None, failed=lambda: None, prefix="/api")  # type: ignore[arg-type]
    free = (
        "/",
        "/health",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/boltzformer",
        "/boltzformer/main.js",
        "/ohif/x",
        "/static/a",
    )
    assert all(audit._without_data(f"/api{path}") for path in free)
    data = (
        "/info/",
        "/healthy",
        "/boltzformer/api/config",
        "/infer/x",
        "/proxy/dicom/wado",
        "/auth/token",
        "/logs/",
        "//",
    )
    assert not any(audit._without_data(f"/api{path}") for path in data)
