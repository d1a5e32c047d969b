"""What a server leaves on the disk, for whom, and for how long."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")
pytest.importorskip("fcntl")

from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.label.server.temporary import temporary_folder  # noqa: E402
from tests.label.conftest import AFFINE, SHAPE  # noqa: E402
from tests.label.live_server import running  # noqa: E402

_SERVER = """
import sys, tempfile, time
from pathlib import Path
from boltzformer_monai.label.server.temporary import temporary_folder

with temporary_folder(Path(sys.argv[1])):
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"a patient's scan")
    print(file.name, flush=True)
    sys.stdin.read()
"""
_TRAINING = """
import sys
from boltzformer_monai.label.server.temporary import hold_temporary_folder

held = hold_temporary_folder()
print("held", flush=True)
sys.stdin.read()
"""


def _started(code: str, *arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_folder_of_its_own_that_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = tempfile.gettempdir()
    with temporary_folder(tmp_path / "workspace") as folder:
        assert folder.is_relative_to(tmp_path / "workspace")
        with tempfile.NamedTemporaryFile(delete=False) as file:
            assert Path(file.name).parent == folder
        assert os.environ["TMPDIR"] == str(folder)
        assert all(stat.S_IMODE(each.stat().st_mode) == 0o700 for each in (folder, folder.parent))
    assert not folder.exists()
    assert tempfile.gettempdir() == before
    assert os.environ["TMPDIR"] == str(tmp_path)


def test_what_a_killed_server_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    killed, left = _started(_SERVER, str(tmp_path))
    living, used = _started(_SERVER, str(tmp_path))
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(30)
        assert Path(left).read_bytes()
        with temporary_folder(tmp_path):
            assert not Path(left).parent.exists()
            assert Path(used).exists()
        living.communicate("", timeout=30)
        assert not Path(used).parent.exists()
        assert [each.name for each in (tmp_path / "tmp").iterdir()] == [".lock"]
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()


def test_a_training_that_outlives_its_server_keeps_its_files(tmp_path: Path) -> None:
    server, left = _started(_SERVER, str(tmp_path))
    training, said = _started(_TRAINING, TMPDIR=str(Path(left).parent))
    try:
        assert said == "held"
        server.kill()
        server.wait(30)
        with temporary_folder(tmp_path):
            assert Path(left).exists()
        training.communicate("", timeout=30)
        with temporary_folder(tmp_path):
            assert not Path(left).exists()
    finally:
        for process in (server, training):
            process.kill()
            process.communicate()


def test_servers_that_start_together_leave_each_other_alone(tmp_path: Path) -> None:
    started = [_started(_SERVER, str(tmp_path)) for _ in range(6)]
    assert len({Path(name).parent for _, name in started if Path(name).exists()}) == len(started)
    for process, _ in started:
        process.communicate("", timeout=30)
    assert [each.name for each in (tmp_path / "tmp").iterdir()] == [".lock"]


def test_what_a_server_writes_is_its_users_alone(checkpoint: Path, studies: Path, tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    folder.mkdir(mode=0o755)
    (folder / "scan_0.nii.gz").write_bytes((studies / "scan_0.nii.gz").read_bytes())
    given = {folder, folder / "scan_0.nii.gz"}
    label = tmp_path / "label.nii.gz"
    write_image_file(np.ones(SHAPE, np.uint8), AFFINE, label)
    with running(folder, tmp_path, {"checkpoint": checkpoint, "modality": "CT"}, serve=True) as server:
        scan = studies / "scan_1.nii.gz"
        assert server.form("PUT", "/datastore/image?image=sent", {}, {"file": scan}).status == 200
        assert server.form("PUT", "/session/", {}, {"files": scan}).status == 200
        names = {"label_info": [{"name": "block", "idx": 1}]}
        assert server.form("PUT", "/datastore/label?image=sent", {"params": names}, {"label": label}).status == 200
        assert server.post("/boltzformer/api/segment", {"image": "scan_0", "prompts": ["liver"]}).status == 200
        made = set(folder.rglob("*")) - given
        assert {"sent.nii.gz", "datastore_v2.json", "labels.json", "app.log", "result.nii.gz"} <= {p.name for p in made}
        assert {oct(each.stat().st_mode & 0o777) for each in made if each.is_file()} == {"0o600"}
        assert {oct(each.stat().st_mode & 0o777) for each in made if each.is_dir()} == {"0o700"}
        temporary = folder / ".boltzformer" / "tmp"
        assert any(each.suffix == ".gz" for each in temporary.rglob("*"))
        server.stop(signal.SIGKILL)
        with temporary_folder(folder / ".boltzformer"):
            assert not any(each.suffix == ".gz" for each in temporary.rglob("*"))
    assert all(each.stat().st_mode & 0o777 not in (0o600, 0o700) for each in given)
