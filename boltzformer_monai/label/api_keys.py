"""API keys: random texts that open the server, each with a name and a role; a file holds their hashes.

A line of the file is ``NAME ROLE SHA256``. The keys have 256 random bits, so a plain hash of one cannot be guessed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from boltzformer_monai.errors import ConfigError, StorageError, did_you_mean, why
from boltzformer_monai.limits import read_text
from boltzformer_monai.storage import atomic_path, writing

_log = logging.getLogger(__name__)

PREFIX = "bfk_"
"""Begins every key, so that it is not taken for a token of the sign-in server."""
ROLES = ("user", "annotator", "reviewer", "admin")
"""Each may do what those before it may."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ApiKey:
    """Name, role and hash of a key."""

    name: str
    role: str
    sha256: str

    @property
    def roles(self) -> tuple[str, ...]:
        """Its role and those below it."""
        return ROLES[: ROLES.index(self.role) + 1]


class KeyFile:
    """The keys of a file, which is read again when it changes: a key that is removed from it opens nothing any more.

    Raises:
        ConfigError: it cannot be read, or a line is not valid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        if os.name == "posix" and path.is_file() and path.stat().st_mode & 0o022:
            _log.warning("%s can be written by others, who so make keys for themselves; chmod go-w", path)
        self._stamp, self._keys = self._read()

    def owner(self, key: str) -> ApiKey | None:
        """The key of this text; None if there is none. The time that it takes does not depend on how much is right."""
        found = None
        given = hash_of(key)
        for each in self._current():
            if hmac.compare_digest(each.sha256, given):
                found = each
        return found

    def _current(self) -> list[ApiKey]:
        with self._lock:
            try:
                if self._stamp != _stamp(self.path):
                    self._stamp, self._keys = self._read()
                    _log.info("keys read again: %s", ", ".join(each.name for each in self._keys) or "none")
            except (OSError, ConfigError) as error:  # nobody can say which keys were to stay
                self._stamp, self._keys = None, []
                _log.error("no key is accepted until the file of keys can be read: %s", why(error))
            return self._keys

    def _read(self) -> tuple[tuple[int, int, int] | None, list[ApiKey]]:
        try:
            return _stamp(self.path), read_keys(self.path)
        except OSError as error:
            raise ConfigError(f"{self.path}: the keys cannot be read ({why(error)}); see boltzformer key") from error


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file, without empty lines and comments (``#``).

    Raises:
        OSError: it cannot be read.
        ConfigError: a line is not valid, or a name is there twice.
    """
    keys: dict[str, ApiKey] = {}
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no file of keys: {why(error)}") from error
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3 or not _HASH.fullmatch(words[2]):
            raise ConfigError(f"{path}, line {number}: must be NAME ROLE SHA256; boltzformer key writes such lines")
        key = ApiKey(check_name(words[0]), check_role(words[1]), words[2])
        if key.name in keys:
            raise ConfigError(f"{path}, line {number}: {key.name!r} is there twice; remove one of the two")
        keys[key.name] = key
    return list(keys.values())


def add_key(path: Path, name: str, role: str) -> str:
    """Add a new key to a file, which is made if it is not there; returns the key, which is kept nowhere.

    Raises:
        ConfigError: the name is not valid or taken, there is no such role, or the file is a folder or not one of keys.
        StorageError: it cannot be written.
    """
    check_name(name)
    check_role(role)
    path = path.resolve()  # a link stays one: whoever revokes keys in the file that it names must not do so in vain
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file to --file")
    with writing(path, "give another --file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):  # two keys made at once must both be there
            return _add(path, name, role)


def _add(path: Path, name: str, role: str) -> str:
    try:
        taken = {each.name for each in read_keys(path)} if path.exists() else set()
        before = read_text(path) if path.exists() else ""
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({why(error)}); give another --file") from error
    if name in taken:
        raise ConfigError(f"{path} has a key named {name!r} already; give another name, or remove its line first")
    key = PREFIX + secrets.token_urlsafe(32)
    with atomic_path(path) as temporary:
        start = before if not before or before.endswith("\n") else f"{before}\n"
        temporary.touch(mode=0o600)  # it names people
        temporary.write_text(f"{start}{name} {role} {hash_of(key)}\n", encoding="utf-8")
        if path.exists():  # the server must still be able to read it
            shutil.copymode(path, temporary)
            if hasattr(os, "chown"):
                with contextlib.suppress(OSError):
                    os.chown(temporary, path.stat().st_uid, path.stat().st_gid)
    return key


def hash_of(key: str) -> str:
    """SHA-256 of a key, hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def check_name(name: str) -> str:
    """A name that logs may show.

    Raises:
        ConfigError: it is not valid.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:60]!a} is not a valid name of a key; use letters, digits and _ . - only")
    return name


def check_role(role: str) -> str:
    """A role.

    Raises:
        ConfigError: there is none of this name.
    """
    if role not in ROLES:
        raise ConfigError(f"there is no role {role[:60]!a}; {did_you_mean(role, ROLES, show=str)}")
    return role


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
