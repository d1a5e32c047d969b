"""What a file may cost: how much memory its reading may take, and that it is a file at all.

A header claims whatever it likes, a compressed stream unfolds into a thousand times its size, and a pipe never ends.
Readers ask here *before* they allocate, inflate or open.
"""

from __future__ import annotations

import codecs
import errno
import functools
import io
import json
import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from boltzformer_monai.errors import ConfigError, DatasetError, VolumeError, why

MEMORY_VARIABLE = "BOLTZFORMER_MEMORY_GB"
"""Environment variable with the memory that reading one file may take, in GB (1e9 bytes). The commands set it by
``--memory-gb``; a variable, because worker processes inherit it."""
_SHARE = 0.5  # of the memory that the process may have: network and results need some too
LARGEST_SEED = 2**32 - 1
"""MONAI and NumPy take larger seeds modulo this, so two of them would be one."""
TEXT_LIMIT = 1 << 24
"""Bytes of a text that a person wrote, or that describes one scan."""
_JSON_GROWTH = 32  # bytes of objects that a byte of JSON can become: "[]," is a list of 56 bytes
_ROW_GROWTH = 8  # the same of a byte of a table
_CHUNK = 1 << 20
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_CGROUPS = Path("/sys/fs/cgroup")


def memory_budget() -> int:
    """Bytes that reading one file may take, all its copies together.

    It is the value of :data:`MEMORY_VARIABLE`, but never more than :func:`machine_memory`; half of that by default.

    Raises:
        ConfigError: the variable is not a number above 0.
    """
    ceiling = machine_memory()
    text = os.environ.get(MEMORY_VARIABLE, "").strip()
    if not text:
        return int(ceiling * _SHARE)
    return min(int(_positive(text, MEMORY_VARIABLE) * 1e9), ceiling)


def set_memory_gb(number: float | str, option: str = "--memory-gb") -> None:
    """Set the budget of this process and of those that it starts; the command lines call it once.

    Raises:
        ConfigError: ``option`` is not a number above 0.
    """
    os.environ[MEMORY_VARIABLE] = repr(_positive(str(number), option))


def require_room(count: int, each: float, what: str | os.PathLike[str]) -> None:
    """Refuse what would take more memory than the budget, before it is allocated.

    Args:
        count: how many voxels (or bytes) a header claims.
        each: bytes that one of them takes at the peak of reading, all copies together.
        what: the file, for the message.

    Raises:
        VolumeError: reason ``"too large"``.
    """
    needed, budget = int(count * each), memory_budget()
    if needed > budget:
        msg = (
            f"{os.fspath(what)}: reading it would take {gigabytes(needed)} of memory and {gigabytes(budget)} may be "
            "used; crop or resample the scan, or allow more with --memory-gb"
        )
        raise VolumeError(msg, reason="too large")


def gigabytes(size: int) -> str:
    """Bytes as GB (1e9 bytes), for messages."""
    return f"{size / 1e9:.{0 if size >= 1e10 else 2}{'f' if size >= 1e10 else 'g'}} GB"


def open_file(path: str | os.PathLike[str], *, limit: int | None = None) -> io.BufferedReader:
    """Open an ordinary file for reading bytes; links are followed.

    Raises:
        OSError: it cannot be opened, is larger than ``limit`` bytes, or is a pipe, a socket, a device or a folder;
            ``strerror`` tells which.
    """
    # Not blocking, because opening a pipe that nobody writes to would wait for ever; files do not mind.
    flag = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | flag))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is a pipe, socket or device and not a file", os.fspath(path))
    if limit is not None and (size := os.fstat(file.fileno()).st_size) > limit:
        file.close()
        what = f"has {size / 1e6:.0f} MB, and at most {limit / 1e6:.0f} MB are read of such a file"
        raise OSError(errno.EFBIG, what, os.fspath(path))
    return file


def open_text(path: str | os.PathLike[str], *, encoding: str = "utf-8", limit: int | None = None) -> TextIO:
    """Open an ordinary file for reading text, line ends as they are in it (as the csv module wants them).

    Args:
        path: the file.
        encoding: its encoding; a byte order mark, which Windows puts at the start of UTF-8 and UTF-16, goes before it.
        limit: bytes; default: what fits into the memory budget as rows of a table.

    Raises:
        OSError: it cannot be opened, is no ordinary file, or is longer than ``limit`` bytes.
    """
    file = open_file(path, limit=memory_budget() // _ROW_GROWTH if limit is None else limit)
    start = file.read(3)
    file.seek(0)
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), encoding)
    return io.TextIOWrapper(file, encoding=marked, newline="")


def read_text(path: str | os.PathLike[str], *, encoding: str = "utf-8", limit: int = TEXT_LIMIT) -> str:
    """Read a small text file, as :func:`open_text` opens it; also raises UnicodeDecodeError."""
    with open_text(path, encoding=encoding, limit=limit) as file:
        return file.read()


def read_json(path: str | os.PathLike[str], *, encoding: str = "utf-8", **options: Any) -> Any:
    """Read a JSON file whose objects fit into the memory budget; ``options`` as for :func:`json.loads`.

    Raises:
        OSError: it cannot be opened, is no ordinary file, or too large.
        ValueError: it is no JSON, or nested too deeply.
    """
    return parse_json(read_text(path, encoding=encoding, limit=memory_budget() // _JSON_GROWTH), **options)


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys, of which Python would silently keep the last value: ``object_pairs_hook``.

    Raises:
        ValueError: a key occurs twice.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key "{twice}" occurs twice; keep one of them')
    return content


def read_json_description(path: str | os.PathLike[str], *, missing: str = "no such file", **options: Any) -> Any:
    """Read a JSON file that describes a data set, as :func:`read_json` does.

    Raises:
        DatasetError: it is not there (then ``missing`` is the message) or cannot be read; one line that names it.
    """
    try:
        return read_json(path, **options)
    except FileNotFoundError:
        raise DatasetError(f"{os.fspath(path)}: {missing}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{os.fspath(path)}: cannot be read as JSON ({why(error)})") from None


def parse_json(text: str, **options: Any) -> Any:
    """Parse JSON, as :func:`json.loads` does.

    Raises:
        ValueError: it is no JSON, or nested too deeply, which is a bug's RecursionError otherwise.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def inflated_size(file: BinaryIO, limit: int, *, wbits: int = 47) -> int:
    """Count the bytes that a deflated stream unfolds into, from the file's position on; none of them is kept.

    Args:
        file: the file.
        limit: where counting stops; the result is above it then, by less than a mebibyte.
        wbits: 47 for gzip or zlib, whichever its first bytes say; -15 for a bare stream.

    Raises:
        zlib.error: the stream is damaged.
    """
    stream, total = zlib.decompressobj(wbits), 0
    data = file.read(_CHUNK)
    while data and total <= limit:
        total += len(stream.decompress(data, _CHUNK))
        data = stream.unconsumed_tail
        if stream.eof and wbits > 0:  # gzip files may be strung together, with zeros between them
            data, stream = stream.unused_data, zlib.decompressobj(wbits)
            while data.count(0) == len(data) and (more := file.read(_CHUNK)):
                data = more
            data = data.lstrip(b"\0")
        elif stream.eof:
            break
        data = data or file.read(_CHUNK)
    return total


def machine_memory() -> int:
    """Bytes that this process may have at most: of the machine, of its control group, of its address space."""
    return max(0, min(_physical(), _control_group(), _address_space()))


def _positive(text: str, option: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ConfigError(f"{option} takes a number of gigabytes above 0, got {text!r}")
    return number


def _physical() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows: what a small machine has
        return 8 << 30


@functools.lru_cache(maxsize=1)
def _control_group() -> int:
    """The smallest limit of the groups around this process (containers, systemd, SLURM); versions 1 and 2.

    Read once: it costs more than to decode a small image, before which the memory budget is looked up.
    """
    least = 1 << 62
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, place = (line.split(":", 2) + ["", ""])[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (_CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (_CGROUPS, "memory.max")
        group = root / place.lstrip("/")
        # A container sees its own group as the root, whatever the path is.
        for folder in {root, group, *(each for each in group.parents if each.is_relative_to(root))}:
            least = min([least, *(int(text) for text in _lines(folder / name) if text.isdigit())])
    return least


def _address_space() -> int:
    """What a limit of the address space (``ulimit -v``) leaves."""
    try:
        import resource
    except ImportError:  # Windows
        return 1 << 62
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return 1 << 62
    used = next((int(line.split()[0]) for line in _lines(Path("/proc/self/statm"))), 0) * resource.getpagesize()
    return limit - used


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
