"""``boltzformer serve``: every mistake is one line, and a start and a stop are as one expects."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from boltzformer_monai.cli import main, serve
from boltzformer_monai.io.formats import write_image_file
from tests.needs import need_module

_PATIENCE_S = 300


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder with one small scan."""
    folder = tmp_path / "studies"
    folder.mkdir()
    write_image_file(np.zeros((8, 8, 3), np.int16), np.eye(4), folder / "scan.nii.gz")
    return folder


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    return stderr


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _serve(studies: Path, checkpoint: Path, *more: str) -> int:
    return main(["serve", str(studies), "--checkpoint", str(checkpoint), *more])


def test_help_names_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("FOLDER", "--checkpoint", "--host", "127.0.0.1", "--port", "--conf", "/boltzformer/", "DICOMweb"):
        assert word in text


@pytest.mark.parametrize("arguments", [[], ["x"], ["x", "--checkpoint"], ["x", "--checkpoint", "m", "--port", "many"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    _one_line(capsys)


def test_without_the_extra(
    studies: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert _serve(studies, checkpoint) == 2
    assert "boltzformer-monai[label]" in _one_line(capsys)


class TestWithTheExtra:
    """What is checked once MONAI Label is there."""

    @pytest.fixture(autouse=True)
    def _extra(self) -> None:
        need_module("monailabel")

    def test_no_such_folder(self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert _serve(tmp_path / "nowhere", checkpoint) == 2
        assert "no folder" in _one_line(capsys)
        assert not (tmp_path / "nowhere").exists()

    def test_a_folder_that_cannot_be_written(
        self, studies: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refused(**_: object) -> None:  # root may write everywhere
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(serve.tempfile, "TemporaryFile", refused)
        assert _serve(studies, checkpoint) == 2
        assert "cannot be written (Permission denied), and the labels are kept there" in _one_line(capsys)

    def test_no_such_checkpoint(self, studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert _serve(studies, studies / "model.pt") == 2
        assert "no checkpoint" in _one_line(capsys)

    @pytest.mark.parametrize("damage", ["text", "cut off", "empty"])
    def test_broken_checkpoint(
        self, damage: str, studies: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = checkpoint.read_bytes()
        broken = tmp_path / "model.pt"
        broken.write_bytes({"text": b"hello", "cut off": whole[: len(whole) // 2], "empty": b""}[damage])
        assert _serve(studies, broken) == 2
        assert "model.pt" in _one_line(capsys)

    def test_checkpoint_of_something_else(
        self, studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = tmp_path / "other.pt"
        torch.save({"weights": torch.zeros(3)}, other)
        assert _serve(studies, other) == 2
        assert "other.pt" in _one_line(capsys)

    def test_port_in_use(self, studies: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert _serve(studies, checkpoint, "--port", str(port)) == 2
        assert f"cannot listen on 127.0.0.1:{port}" in _one_line(capsys)

    @pytest.mark.parametrize("more", [["--port", "0"], ["--port", "70000"], ["--host", "no.such.host.invalid"]])
    def test_nowhere_to_listen(
        self, more: list[str], studies: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert _serve(studies, checkpoint, *more) == 2
        assert more[0] in _one_line(capsys)

    @pytest.mark.parametrize(
        ("key", "value", "word"),
        [
            ("cashe_mb", "1", "did you mean 'cache_mb'"),
            ("epochs", "many", "epochs"),
            ("upload_mb", "0", "upload_mb"),
            ("origins", "viewer", "https://"),
            ("hosts", "http://x", "must look like label.example.org"),
            ("prompts", "aorta; Aorta", "twice"),
            ("keys", "", "--conf keys: the value is empty"),
            ("audit", "", "--conf audit: the value is empty"),
        ],
    )
    def test_wrong_settings(
        self, key: str, value: str, word: str, studies: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert _serve(studies, checkpoint, "--port", str(_free_port()), "--conf", key, value) == 2
        assert word in _one_line(capsys)

    def test_no_room_for_what_it_learns(
        self, studies: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        more = ["--port", str(_free_port()), "--workspace", str(tmp_path / "file")]
        assert _serve(studies, checkpoint, *more) == 2
        assert "--workspace" in _one_line(capsys)


@pytest.mark.slow
def test_starts_on_this_machine_only_and_stops_by_ctrl_c(studies: Path, checkpoint: Path, tmp_path: Path) -> None:
    need_module("monailabel")
    from tests.label.live_server import running

    with running(studies, tmp_path, {"checkpoint": checkpoint}, serve=True, fresh=True) as server:
        port = int(server.url.rpartition(":")[2])
        assert _listens_on(port) == {"0100007F"}  # 127.0.0.1
        os.kill(server.process.pid, signal.SIGINT)
        assert server.process.wait(_PATIENCE_S) == 130, server.log.read_text()
    text = server.log.read_text()
    assert "Traceback" not in text
    assert f"http://127.0.0.1:{port}/boltzformer/" in text
    assert "without sign-in" not in text
    assert text.rstrip().endswith("interrupted")


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_leaves_nothing_behind(studies: Path, checkpoint: Path, tmp_path: Path) -> None:
    """As systemd and docker do it: SIGTERM to the server alone, while it keeps a result and scores."""
    need_module("monailabel")
    from tests.label.live_server import running

    (tmp_path / "temporary").mkdir()
    environment = {"TMPDIR": str(tmp_path / "temporary")}
    with running(studies, tmp_path, {"checkpoint": checkpoint}, serve=True, environment=environment) as server:
        body = {"image": "scan", "prompts": ["liver"], "modality": "CT"}
        assert server.post("/boltzformer/api/segment", body).status == 200
        temporary = studies / ".boltzformer" / "tmp"
        assert list(temporary.glob("*/boltzformer-results-*/*/result.nii.gz"))
        server.post("/scoring/uncertainty").json()
        (scoring,) = _children(server.process.pid)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(_PATIENCE_S) == 0, server.log.read_text()
        assert not Path(f"/proc/{scoring}").exists()
    assert [path.name for path in temporary.iterdir()] == [".lock"]
    assert not list((tmp_path / "temporary").glob("boltzformer-*"))
    assert "Traceback" not in server.log.read_text()


def test_options_and_conf_say_the_same(tmp_path: Path) -> None:
    """An option beats the pair of the same name, and a pair is heard where no option is given."""
    need_module("monailabel")

    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    plain = ["serve", str(tmp_path), "--checkpoint", "model.pt"]
    pairs = ["--conf", "device", "cuda:1", "--conf", "workspace", str(tmp_path / "work"), "--conf", "cache_mb", "7"]
    conf = serve._conf(parser.parse_args([*plain, *pairs]), str(tmp_path))
    assert (conf["device"], conf["workspace"], conf["cache_mb"]) == ("cuda:1", str(tmp_path / "work"), "7")
    options = ["--device", "cpu", "--workspace", str(tmp_path / "other"), "--cache-mb", "9"]
    conf = serve._conf(parser.parse_args([*plain, *pairs, *options]), str(tmp_path))
    assert (conf["device"], conf["workspace"], conf["cache_mb"]) == ("cpu", str(tmp_path / "other"), "9")
    assert "device" not in serve._conf(parser.parse_args(plain), str(tmp_path))


def test_a_folder_without_scans_is_told(studies: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    need_module("monailabel")

    serve._warn_of_unserved_files(studies)
    assert not caplog.records
    empty = tmp_path / "empty"
    empty.mkdir()
    serve._warn_of_unserved_files(empty)
    assert "no scan (*.nii.gz" in caplog.text


def test_what_is_not_served_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    need_module("monailabel")

    folder = tmp_path / "scans"
    for name in ("a.nii.gz", "b.mhd", "below/c.nii.gz", "labels/final/a.nii.gz", "datastore_v2.json", ".lock-changes"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    serve._warn_of_unserved_files(folder)
    assert caplog.messages == [f"{folder}: left out, image files: b.mhd, below/c.nii.gz"]


@pytest.mark.parametrize(
    ("host", "warned"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True)]
)
def test_listening_elsewhere_is_told(
    host: str, warned: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    need_module("monailabel")

    asked = {}
    monkeypatch.setattr("monailabel.main.Main.start_server_init_settings", lambda self, options: None)
    monkeypatch.setattr("monailabel.interfaces.utils.app.app_instance", lambda: None)
    monkeypatch.setattr("monailabel.main.Main.action_start_server", lambda self, options: asked.update(vars(options)))
    conf = {"checkpoint": "model.pt", "workspace": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        serve._start(tmp_path, str(tmp_path), conf, host, 8000)
    assert asked["host"] == host
    told = [record for record in caplog.records if "without sign-in" in record.getMessage()]
    assert bool(told) is warned


def _listens_on(port: int) -> set[str]:
    """Local addresses, in the kernel's notation, that listen on a port."""
    table = Path("/proc/net/tcp")
    if not table.is_file():
        pytest.skip("the kernel does not tell who listens")
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and re.search(f":{port:04X}$", row[1])}


def _children(pid: int) -> list[int]:
    """Processes that a process has started; waits until there is one."""
    import psutil  # of MONAI Label

    end = time.monotonic() + _PATIENCE_S
    while not (found := psutil.Process(pid).children()) and time.monotonic() < end:
        time.sleep(0.05)
    return [each.pid for each in found]
