"""A file is whole or not there, what killed processes left goes, and a disk's refusal is one line."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boltzformer_monai import storage
from boltzformer_monai.errors import StorageError
from boltzformer_monai.storage import atomic_path, disk_refusal, replacing, sweep, temporary_beside, writing


def write_half(target: Path, failure: type[BaseException]) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise failure


@pytest.mark.parametrize("durable", [True, False])
def test_atomic_path_leaves_all_or_nothing(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "a.nii.gz"
    target.write_text("old")
    with atomic_path(target, durable=durable) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("a.nii.gz")
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    for failure in (ValueError, KeyboardInterrupt):
        with pytest.raises(failure):
            write_half(target, failure)
    assert target.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_failure_names_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(OSError, match="space") as caught, atomic_path(target) as temporary:
                temporary.write_text("new")
            assert caught.value.filename == str(target)
            with (
                pytest.raises(
                    StorageError, match=r"a\.json: cannot be written \(No space left on device\); free space"
                ),
                replacing(target) as temporary,
            ):
                temporary.write_text("new")
        assert target.read_text() == "old"
    with pytest.raises(FileNotFoundError) as missing, atomic_path(tmp_path / "none" / "b") as temporary:
        temporary.write_text("new")
    assert missing.value.filename == str(tmp_path / "none" / "b")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_the_disk_does_not_confirm_was_changed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def broken(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(file)

    monkeypatch.setattr(os, "fsync", broken)
    told = r"a\.json: changed, but the disk does not confirm it \(Input/output error\)"
    with pytest.raises(StorageError, match=told), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.json").read_text() == "new"


def test_what_is_durable_was_synchronised_before_it_got_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    for durable in (True, False):
        with atomic_path(tmp_path / "a", durable=durable) as temporary:
            temporary.write_text("x")
    assert done == ["sync", "rename", "sync", "rename"]


def test_what_a_killed_process_left_goes_with_the_next_file(tmp_path: Path) -> None:
    program = f"""
import os, signal
from boltzformer_monai.storage import atomic_path
with atomic_path({str(tmp_path / "a.nii.gz")!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    mine = temporary_beside(tmp_path / "under way")
    mine.write_text("of a living process")
    others = [tmp_path / name for name in (".boltzformer", ".boltzformer-notes", ".0a1b2c3d-a.nii.gz", "a-b")]
    for other in others:
        other.write_text("not ours")
    with atomic_path(tmp_path / "b.nii.gz", durable=False) as temporary:
        temporary.write_text("one of many")
    assert left.exists()
    with atomic_path(tmp_path / "b.nii.gz") as temporary:
        temporary.write_text("another")
    assert not left.exists()
    assert mine.exists()
    assert all(other.exists() for other in others)


def test_another_machines_file_goes_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(storage, "_machine", lambda: "abcdef")
        old, new = (temporary_beside(tmp_path / name) for name in ("old", "new"))
    for path in (old, new):
        path.write_text("x")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_a_copy_of_this_machine_is_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same name, with one folder of the network; no process here has the number of a living one there."""
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(storage, "_BOOT", boot)
    machines = []
    for text in ("6fd1c2a0", "0a9be7d3", None):
        boot.unlink(missing_ok=True)
        if text is not None:
            boot.write_text(text)
        machines.append(storage._machine.__wrapped__())
    assert len(set(machines)) == 3
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    theirs, ours = (
        tmp_path / f".boltzformer-{machine}-{ended.pid}-0a1b2c-a.nii.gz" for machine in (machines[0], machines[1])
    )
    monkeypatch.setattr(storage, "_machine", lambda: machines[1])
    for path in (theirs, ours):
        path.write_text("half")
    sweep(tmp_path)
    assert theirs.exists()
    assert not ours.exists()
    os.utime(theirs, (time.time() - 2 * 24 * 3600,) * 2)
    sweep(tmp_path)
    assert not theirs.exists()


def test_whoever_holds_the_lock_sweeps_what_was_written_under_it(tmp_path: Path) -> None:
    held, folder, other = (
        temporary_beside(tmp_path / name, lock=lock) for name, lock in (("a", "x"), ("f", "x"), ("b", "y"))
    )
    held.write_text("x")
    folder.mkdir()
    (folder / "inside").write_text("x")
    other.write_text("x")
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path, lock="x")
    assert list(tmp_path.iterdir()) == [other]


def test_long_names_fit(tmp_path: Path) -> None:
    name = "肝" * 80 + ".nii.gz"
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("x")
    assert (tmp_path / name).read_text() == "x"


def test_a_refusal_is_told_from_other_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="choose a folder"), writing(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(ConnectionResetError), writing(tmp_path, much_else=True):
        raise ConnectionResetError(errno.ECONNRESET, "a worker died")
    error = RuntimeError("wrapped")
    error.__context__ = OSError(errno.EDQUOT, "quota")
    assert disk_refusal(error) is error.__context__
    assert disk_refusal(FileNotFoundError(errno.ENOENT, "none")) is None
