"""Memory budget, ordinary files, texts and JSON of a bounded size."""

from __future__ import annotations

import gzip
import io
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from boltzformer_monai import limits
from boltzformer_monai.errors import ConfigError, VolumeError


def test_the_default_is_half_of_what_the_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(limits.MEMORY_VARIABLE, raising=False)
    monkeypatch.setattr(limits, "machine_memory", lambda: 10_000_000_000)
    assert limits.memory_budget() == 5_000_000_000


def test_the_budget_is_what_was_asked_for_and_never_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "machine_memory", lambda: 10_000_000_000)
    monkeypatch.setenv(limits.MEMORY_VARIABLE, "2.5")
    assert limits.memory_budget() == 2_500_000_000
    limits.set_memory_gb(64)
    assert os.environ[limits.MEMORY_VARIABLE] == "64.0"
    assert limits.memory_budget() == 10_000_000_000


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much", "1e999"])
def test_a_budget_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--memory-gb takes a number of gigabytes above 0"):
        limits.set_memory_gb(text)
    monkeypatch.setenv(limits.MEMORY_VARIABLE, text)
    with pytest.raises(ConfigError, match=limits.MEMORY_VARIABLE):
        limits.memory_budget()


def test_what_does_not_fit_is_refused_with_its_size_and_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.MEMORY_VARIABLE, "0.064")
    limits.require_room(16_000_000, 4, "scan.nii")
    with pytest.raises(VolumeError, match=r"scan\.nii: reading it would take 0\.064 GB .* --memory-gb") as caught:
        limits.require_room(16_000_001, 4, Path("scan.nii"))
    assert caught.value.reason == "too large"


def test_a_limit_of_the_address_space_counts() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9));"
        "from boltzformer_monai.limits import machine_memory; print(machine_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 10**9


def test_a_limit_of_the_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        Path("/proc/self/cgroup"): ["0::/slurm/job_1/step_0"],
        tmp_path / "slurm/job_1/step_0/memory.max": ["max"],
        tmp_path / "slurm/job_1/memory.max": ["3000000000"],
        tmp_path / "slurm/memory.max": ["9000000000"],
    }
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "_lines", lambda path: texts.get(path, []))
    assert limits._control_group.__wrapped__() == 3_000_000_000
    texts[Path("/proc/self/cgroup")] = ["5:cpu,cpuacct:/docker/x", "4:memory:/docker/x"]
    texts[tmp_path / "memory/memory.limit_in_bytes"] = ["2000000000"]
    assert limits._control_group.__wrapped__() == 2_000_000_000


def test_pipes_sockets_devices_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe, socket or device"):
        limits.open_file(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe, socket or device"):
        limits.open_file("/dev/zero")
    with pytest.raises(IsADirectoryError):
        limits.open_file(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket must be short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        with pytest.raises(OSError, match=r"."):
            limits.open_file(tmp_path / "socket")


def test_an_ordinary_file_is_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    with limits.open_file(tmp_path / "link") as file:
        assert file.read() == b"abc"


def test_texts_are_read_up_to_their_limit(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("\ufeffä\n", encoding="utf-8")
    assert limits.read_text(path, encoding="utf-8-sig") == "ä\n"
    with path.open("wb") as file:
        file.truncate(50_000_000_000)  # no block of it exists
    with pytest.raises(OSError, match="has 50000 MB, and at most 17 MB are read of such a file"):
        limits.read_text(path)


def test_json_that_is_too_deep_or_too_large_is_a_value_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"a": [1, 2]}', encoding="utf-8")
    assert limits.read_json(path) == {"a": [1, 2]}
    path.write_text("[" * 200_000 + "]" * 200_000, encoding="utf-8")
    with pytest.raises(ValueError, match="nested too deeply"):
        limits.read_json(path)
    monkeypatch.setenv(limits.MEMORY_VARIABLE, "0.064")
    path.write_text("[" + "[]," * 1_000_000 + "[]]", encoding="utf-8")
    with pytest.raises(OSError, match="has 3 MB, and at most 2 MB are read"):
        limits.read_json(path)


def test_inflating_stops_at_the_limit() -> None:
    whole = gzip.compress(b"\0" * 5_000_000) + gzip.compress(b"a" * 1000)
    assert limits.inflated_size(io.BytesIO(whole), 1 << 40) == 5_001_000
    assert 2_000_000 < limits.inflated_size(io.BytesIO(whole), 2_000_000) <= 2_000_000 + (1 << 20)
    for zeros in (1, 1000, (1 << 20) - 20, 1 << 20, 3 << 20):
        padded = gzip.compress(b"a" * 1000) + bytes(zeros) + gzip.compress(bytes(3_000_000)) + bytes(zeros)
        assert len(gzip.decompress(padded)) == 3_001_000
        assert limits.inflated_size(io.BytesIO(padded), 1 << 40) == 3_001_000
    packer = zlib.compressobj(wbits=-15)
    bare = packer.compress(b"\0" * 3_000_000) + packer.flush()
    assert limits.inflated_size(io.BytesIO(bare + b"\0"), 1 << 40, wbits=-15) == 3_000_000
    with pytest.raises(zlib.error):
        limits.inflated_size(io.BytesIO(b"\x1f\x8b broken"), 1 << 40)
