"""A folder of wheels is installed by the Dockerfile's own step, without a network, and only if no wheel was changed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.tools import ROOT, load_script, need_sandbox

wheels = load_script("wheels")
docker = load_script("try_container")


def _wheel(folder: Path, name: str, *, needs: str = "") -> Path:
    """A wheel with one module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "answer = 42\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    _wheel(folder, "first_one", needs="second>=1")
    _wheel(folder, "second")
    (folder / "requirements.txt").write_text(wheels.pinned(folder), encoding="utf-8")
    return folder


def _install(folder: Path, work: Path) -> subprocess.CompletedProcess[str]:
    """Run the Dockerfile's step in bubblewrap, as packaging/try_container.py does."""
    need_sandbox()
    (step,) = (step for step in docker.read_dockerfile() if "--no-index" in step.value)
    sandbox = docker.Sandbox(work)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(sandbox.folder("/base"))], check=True)
    line = sandbox.command(
        ["/bin/sh", "-c", step.value],
        writable=["/opt/boltzformer"],
        readable={"/wheels": folder},
        environment={"PATH": "/base/bin:/usr/bin:/bin"},
        network="--network=none" not in step.flags,
    )
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def test_every_wheel_is_named_with_its_hash(folder: Path) -> None:
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["first-one==1.0", "second==1.0"]
    assert len({line.rpartition("sha256:")[2] for line in lines}) == 2


@pytest.mark.slow
def test_the_dockerfile_s_step_installs_them_without_a_network(folder: Path, tmp_path: Path) -> None:
    done = _install(folder, tmp_path / "work")
    assert done.returncode == 0, done.stderr
    (packages,) = (tmp_path / "work" / "opt_boltzformer").glob("lib/python*/site-packages")
    assert (packages / "first_one.py").is_file()
    assert (packages / "second.py").is_file()


@pytest.mark.slow
def test_a_wheel_that_was_changed_is_not_installed(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(folder / "second-1.0-py3-none-any.whl", "a") as file:
        file.writestr("more.py", "")
    done = _install(folder, tmp_path / "work")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_the_sandbox_has_no_network_no_rights_and_nothing_to_write(tmp_path: Path) -> None:
    need_sandbox()
    sandbox = docker.Sandbox(tmp_path)
    code = (
        "import os, socket, sys\n"
        "for place in ('/usr/written', '/written'):\n"
        "    try:\n        open(place, 'w')\n    except OSError:\n        print('closed')\n"
        "try:\n    socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)\n"
        "except ConnectionRefusedError:\n    print('alone')\n"
        "open('/data/written', 'w')\nprint(os.getuid())\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [f"{sys.base_prefix}/bin/python3", "-c", code, str(server.getsockname()[1])]
        line = sandbox.command(words, writable=["/data"], environment={}, user="10001:10001")
        done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["closed", "closed", "alone", "10001"]
    assert (tmp_path / "data" / "written").exists()


def test_a_folder_with_something_in_it_is_refused_before_the_work(tmp_path: Path) -> None:
    shutil.copy(ROOT / "LICENSE", tmp_path / "other")
    command = [sys.executable, str(ROOT / "packaging" / "wheels.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} is not empty; give a new folder\n"
