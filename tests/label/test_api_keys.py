"""Keys: made once, kept as hashes, and only those of the file open anything."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.errors import ConfigError, StorageError
from boltzformer_monai.label.api_keys import ROLES, KeyFile, add_key, hash_of
from tests.label.faults import failing_disk


def test_a_key_is_printed_once_and_kept_as_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "keys.txt"
    assert main(["key", "ward-3", "--file", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    assert file.read_text() == f"ward-3 annotator {hash_of(key)}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    found = KeyFile(file).owner(key)
    assert found is not None
    assert (found.name, found.roles) == ("ward-3", ("user", "annotator"))
    for wrong in ("", key[:-1], f"{key}x", hash_of(key), "ward-3", "\udcff"):
        assert KeyFile(file).owner(wrong) is None


def test_a_file_holds_several_and_keeps_comments_and_mode(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# of the ward\n")
    first = add_key(file, "one", "user")
    file.chmod(0o640)
    file.write_text(file.read_text().rstrip("\n"))
    second = add_key(file, "two", "admin")
    assert file.read_text().startswith("# of the ward\none user ")
    assert file.stat().st_mode & 0o777 == 0o640
    keys = KeyFile(file)
    owners = [keys.owner(each) for each in (first, second)]
    assert [each and (each.name, each.roles) for each in owners] == [("one", ("user",)), ("two", ROLES)]


def test_a_key_goes_into_the_file_that_a_link_names(tmp_path: Path) -> None:
    file, link = tmp_path / "keys.txt", tmp_path / "link.txt"
    add_key(file, "one", "user")
    link.symlink_to(file)
    keys = KeyFile(link)
    key = add_key(link, "two", "user")
    assert link.is_symlink()
    assert keys.owner(key) is not None
    file.write_text(file.read_text().splitlines()[0])
    assert keys.owner(key) is None


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    names = [f"ward-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as threads:  # a lock of the file holds between threads as between processes
        made = list(threads.map(lambda name: add_key(file, name, "user"), names))
    keys = KeyFile(file)
    owners = [keys.owner(key) for key in made]
    assert [each and each.name for each in owners] == names
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda _: _refused(file, "same"), range(8)))
    assert sorted(taken) == [False] + 7 * [True]


def _refused(file: Path, name: str) -> bool:
    try:
        add_key(file, name, "user")
    except ConfigError:
        return True
    return False


def test_a_file_that_others_can_write_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys.txt"
    add_key(file, "one", "user")
    KeyFile(file)
    assert caplog.text == ""
    file.chmod(0o664)
    KeyFile(file)
    assert "can be written by others" in caplog.text


def test_a_removed_key_opens_nothing_any_more(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    kept, removed = add_key(file, "kept", "user"), add_key(file, "removed", "user")
    keys = KeyFile(file)
    assert keys.owner(removed) is not None
    file.write_text(file.read_text().splitlines()[0])
    assert keys.owner(removed) is None
    assert keys.owner(kept) is not None
    file.write_text("damaged")
    assert keys.owner(kept) is None
    file.unlink()
    assert keys.owner(kept) is None
    file.write_text(f"kept user {hash_of(kept)}")
    assert keys.owner(kept) is not None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"one user", "line 1: must be NAME ROLE SHA256"),
        (b"\none user bfk_plain", "line 2: must be NAME ROLE SHA256"),
        (b"one root " + b"0" * 64, "there is no role 'root'"),
        (b"a/b user " + b"0" * 64, "not a valid name"),
        (b"one user " + b"0" * 64 + b"\none admin " + b"1" * 64, "line 2: 'one' is there twice"),
        (b"one\xff user", "is no file of keys"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        KeyFile(file)
    with pytest.raises(ConfigError):
        add_key(file, "new", "user")
    assert file.read_bytes() == content


def test_mistakes_of_the_command_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.txt"
    add_key(file, "taken", "user")
    into = ["--file", str(file)]
    for words in (["taken", *into], ["a b", *into], ["x", "--file", str(tmp_path)], ["x", "--file", ""],
                  ["x", "--file", "/"], ["x", *into[:1], f"{file}/below"],
                  ["x"], ["x", *into, "--role", "chief"]):  # fmt: skip
        assert main(["key", *words]) == 2, words
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyFile(tmp_path / "none")
    assert sorted(set(os.listdir(tmp_path)) - {".keys.txt.lock"}) == ["keys.txt"]


def test_a_full_disk_keeps_the_keys_of_before(tmp_path: Path) -> None:
    file, failed = tmp_path / "keys.txt", 0
    add_key(file, "kept", "user")
    before = file.read_bytes()
    with failing_disk() as disk:
        disk.arm(None)
        add_key(file, "new", "user")
        for number in range(1, disk.calls + 1):
            file.write_bytes(before)
            disk.arm(number, errno.ENOSPC)
            refusal = ""
            try:
                add_key(file, "new", "user")
            except StorageError as error:
                failed, refusal = failed + 1, str(error)
            disk.arm(None)
            assert not refusal or "does not confirm" in refusal or file.read_bytes() == before
            assert KeyFile(file)
    assert failed >= 3
