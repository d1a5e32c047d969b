"""The ``.npz`` cases of the CVPR challenge on text-guided 3-D segmentation, which BiomedParse v2 reads and writes.

======================  ============================================================================================
``imgs``                (D, H, W) uint8, windowed already, in the order of SimpleITK: x runs along the last axis
``spacing``             (3,) millimetres along x, y, z
``text_prompts``        0-d object array of ``{"1": sentence, …, "instance_label": 0 or 1}``: a pickle
``segs`` (written)      (D, H, W) the keys of the prompts as label values, with ``spacing``
======================  ============================================================================================

The format says nothing of the patient's left and right. Nothing in a file is run: NumPy's loader is not used, and the
pickle is read as a text is, by a parser that knows a dict of texts and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import ConfigError, VolumeError, not_opened, why
from boltzformer_monai.io.orientation import LPS_TO_RAS_AFFINE
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.limits import open_file, require_room
from boltzformer_monai.modality import OTHER, names_another_modality, parse_modality, settled_modality
from boltzformer_monai.storage import atomic_path

__all__ = ["ENDING", "ChallengeCase", "is_challenge_file", "read_case", "read_case_volume", "write_segmentation"]

ENDING = ".npz"
INSTANCES = "instance_label"
_PEAK = 6  # bytes a voxel: as stored, as float32, and its windowed copy
_MEMBERS, _DIRECTORY = 64, 1 << 16  # of the archive; a case has a handful
_HEADER, _PROMPTS = 4096, 1 << 20  # bytes of an array's header and of the pickle
_DEFLATED = 1040  # no deflated byte becomes more than 1032
_MOST_VALUES = 2**16 - 1
_END, _END_64 = b"PK\5\6", b"PK\6\7"
_ENCRYPTED = 1
_NUMBERS = ("<f8", "<f4", "<i8", "<i4")
_ARRAY = re.compile(
    r"\{\s*'descr':\s*'([^']{1,16})',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\(([\d, ]*)\),?\s*\}\s*"
)
_DAMAGE = (
    OSError, EOFError, ValueError, LookupError, NotImplementedError, RuntimeError, OverflowError, struct.error,
    zlib.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class ChallengeCase:
    """What a case says beside its voxels.

    Attributes:
        shape: (D, H, W).
        spacing: mm along x, y, z, the axes of W, H, D.
        prompts: label value → text, in the order of the values; empty where the file has none.
        instances: whether the objects of a prompt are to be told apart.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    prompts: Mapping[int, str]
    instances: bool

    @functools.cached_property
    def modality(self) -> str:
        """``"CT"``, ``"MR"`` or ``"other"``, as the prompts say; ``""`` where they do not agree on one."""
        found = {_modality(text) for text in self.prompts.values()} - {""}
        return found.pop() if len(found) == 1 else ""


def is_challenge_file(path: str | os.PathLike[str]) -> bool:
    """Tell by its name whether a file is such a case."""
    return os.fspath(path).lower().endswith(ENDING)


def read_case(path: str | os.PathLike[str]) -> ChallengeCase:
    """Read all but the voxels.

    Raises:
        VolumeError: the file is no such case, damaged, or its prompts are more than a dict of texts.
    """
    with _opened(Path(path)) as archive:
        return _case(archive, Path(path))[0]


def read_case_volume(path: str | os.PathLike[str], *, modality: str | None = None) -> Volume:
    """Read a case as a scan.

    Args:
        path: the file.
        modality: ``"CT"``, ``"MR"`` or ``"other"`` (PET, ultrasound, …) where the prompts do not say it.

    Returns:
        Array (I, J, K) = (W, H, D), float32, 0–255. The affine has the spacing; its directions are no statement of
        the file: it is as if W ran to the patient's left, H to posterior and D to superior.

    Raises:
        VolumeError: as :func:`read_case`, or it is too large, or of another modality.
    """
    place = Path(path)
    with _opened(place) as archive:
        case, images = _case(archive, place)
        settled = _settled(case, modality, place)
        count = prod(case.shape)
        require_room(count, _PEAK, place)
        grey = np.empty(count, np.uint8)
        with archive.open(images.name) as stream:
            stream.read(images.offset)
            done = 0
            while data := stream.read(min(1 << 20, count - done)):
                grey[done : done + len(data)] = np.frombuffer(data, np.uint8)
                done += len(data)
    if done < count:
        raise _refused(place, "its imgs end too early; copy it again", reason="truncated")
    array = grey.reshape(case.shape, order="F" if images.fortran else "C").transpose(2, 1, 0)
    affine = LPS_TO_RAS_AFFINE @ np.diag([*case.spacing, 1.0])
    text = "the case asks for single objects, and the label map holds one value for all objects of a prompt"
    caveats = (Caveat("not instances", text),) if case.instances else ()
    return Volume(array.astype(np.float32), affine, settled, source=str(path), caveats=caveats)


def write_segmentation(labels: np.ndarray, like: Volume, path: Path) -> None:
    """Write a label map as ``segs`` (D, H, W) with ``spacing``, and nothing else, atomically.

    Args:
        labels: (I, J, K) uint8 or uint16.
        like: the scan.
        path: of the file; its folder must exist.

    Raises:
        VolumeError: the file system refuses.
    """
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            segs = np.ascontiguousarray(labels.transpose(2, 1, 0))
            np.savez_compressed(file, segs=segs, spacing=np.array(like.spacing, np.float64))
    except OSError as error:
        msg = f"{path}: cannot be written ({why(error)}); does its folder have room, and may you write there?"
        raise VolumeError(msg, reason="write") from error


class _Array(NamedTuple):
    """An array in the archive, by its header."""

    name: str
    dtype: str
    fortran: bool
    shape: tuple[int, ...]
    offset: int
    """Bytes before its content."""
    size: int
    """Bytes of its content that the archive claims."""


def _case(archive: zipfile.ZipFile, path: Path) -> tuple[ChallengeCase, _Array]:
    images = _array(archive, "imgs", path)
    if images is None:
        raise _refused(path, "holds no imgs: it is no case of the challenge", reason="unsupported format")
    if images.dtype not in ("|u1", "u1") or len(images.shape) != 3 or 0 in images.shape:
        msg = f"its imgs are {images.dtype} of shape {_short(images.shape)}, and uint8 (D, H, W) is needed"
        raise _refused(path, msg, reason="dimensions" if len(images.shape) != 3 else "unsupported format")
    if prod(images.shape) != images.size:
        msg = f"its imgs claim the shape {_short(images.shape)} and have {images.size} bytes; copy it again"
        raise _refused(path, msg)
    shape = (images.shape[0], images.shape[1], images.shape[2])
    prompts = _prompts(archive, path)
    instances = bool(prompts.pop(INSTANCES, 0))
    values = {int(key): str(text) for key, text in sorted(prompts.items(), key=lambda item: int(item[0]))}
    return ChallengeCase(shape, _spacing(archive, path), values, instances), images


def _spacing(archive: zipfile.ZipFile, path: Path) -> tuple[float, float, float]:
    found = _array(archive, "spacing", path)
    if found is None or found.dtype not in _NUMBERS or found.shape != (3,) or found.size != 3 * int(found.dtype[2]):
        what = "no spacing" if found is None else f"a spacing of {found.dtype} {_short(found.shape)}"
        msg = f"has {what}, and three numbers in mm (x, y, z) are needed"
        raise _refused(path, msg, reason="pixel spacing")
    values = np.frombuffer(_content(archive, found, path), found.dtype).astype(np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise _refused(path, f"its spacing is {values.tolist()}, which no scan has; correct it", reason="pixel spacing")
    return float(values[0]), float(values[1]), float(values[2])


def _prompts(archive: zipfile.ZipFile, path: Path) -> dict[str, str | int]:
    found = _array(archive, "text_prompts", path)
    if found is None:
        return {}
    if found.dtype != "|O" or found.shape != () or found.size > _PROMPTS:
        what = f"are {found.dtype} of shape {_short(found.shape)} and {found.size} bytes"
        msg = f"its text_prompts {what}, and a dict of texts in a 0-d object array is needed"
        raise _refused(path, msg, reason="labels")
    try:
        return _checked(_unpickled(_content(archive, found, path)))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError and str(error).isascii() else "it is damaged"
        msg = (
            f"its text_prompts are no dict of texts ({' '.join(reason.split())[:120]}), and nothing else is read; "
            "do not open it with NumPy's allow_pickle"
        )
        raise _refused(path, msg, reason="labels") from error


def _content(archive: zipfile.ZipFile, array: _Array, path: Path) -> bytes:
    """All bytes of a small array."""
    with archive.open(array.name) as stream:
        data = stream.read(array.offset + array.size)[array.offset :]
    if len(data) < array.size:
        raise _refused(path, f"its {array.name} ends too early; copy it again", reason="truncated")
    return data


def _checked(content: object) -> dict[str, str | int]:
    """The prompts, if that is what they are."""
    if not isinstance(content, dict):
        raise ValueError("no dict")
    values = set()
    for key, value in content.items():
        if key == INSTANCES and isinstance(value, int) and value in (0, 1):
            continue
        if not (key.isascii() and key.isdigit() and len(key) <= 5 and 0 < int(key) <= _MOST_VALUES):
            raise ValueError(f"{key[:20]!a} is no label value from 1 to {_MOST_VALUES}")
        if not isinstance(value, str) or int(key) in values:
            raise ValueError(f"the label value {key} has no text, or two")
        values.add(int(key))
    return content


class _Stand:
    """Stands for one of the four objects of NumPy that an object array is framed by."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: object = None


_FRAMING = {
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy ndarray": "class",
    "numpy dtype": "dtype",
}
_CALLED = {"reconstruct": "array", "dtype": "object dtype"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
})  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickled(data: bytes) -> object:
    """The one object in a pickled 0-d object array of NumPy, made of dicts, texts and whole numbers.

    The instructions are read with :func:`pickletools.genops`, which runs none, and followed on a list. Of the names
    that a pickle may import only NumPy's framing of the array is known, and it becomes a stand-in: nothing is imported.

    Raises:
        ValueError: there is an instruction or a name that such an array has not.
        LookupError, TypeError: the instructions make no sense.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    marks: list[int] = []

    def since_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    instruction: tuple[Any, Any, Any]
    for instruction in pickletools.genops(data):
        name, argument = instruction[0].name, instruction[1]
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return _framed(stack.pop())
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({} if name == "EMPTY_DICT" else [] if name == "EMPTY_LIST" else ())
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            _of(list, stack).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            keys, values = items[::2], items[1::2]
            if not all(isinstance(key, str) for key in keys) or any(isinstance(each, _Stand) for each in values):
                raise ValueError("a key is no text")
            _of(dict, stack).update(zip(keys, values, strict=True))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            word = argument if name == "GLOBAL" else " ".join([stack.pop(), stack.pop()][::-1])
            if word not in _FRAMING:
                raise ValueError(f"it names {ascii(word[:60])}")
            stack.append(_Stand(_FRAMING[word]))
        elif name == "REDUCE":
            stack.pop()  # the arguments: the framing is the same whatever they are
            stack.append(_Stand(_CALLED[_of(_Stand, [stack.pop()]).kind]))
        elif name == "BUILD":
            state = stack.pop()
            _of(_Stand, stack).state = state
        else:
            raise ValueError(f"it holds the instruction {name}")
    raise ValueError("it does not end")


def _of(kind: type, stack: list[Any]) -> Any:
    """The topmost object, of this very kind."""
    if type(stack[-1]) is not kind:
        raise ValueError("its instructions make no sense")
    return stack[-1]


def _framed(array: object) -> object:
    """What a 0-d object array holds, whose state is ``(version, shape, dtype, fortran_order, [object])``."""
    state = array.state if isinstance(array, _Stand) and array.kind == "array" else None
    if not isinstance(state, tuple) or len(state) != 5 or state[1] != () or not isinstance(state[4], list):
        raise ValueError("no object array")
    (content,) = state[4]
    return content


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, whose damage met in the block is the user's error."""
    try:
        file = open_file(path)
    except OSError as error:
        raise not_opened(path, error) from error
    with file:
        require_room(os.fstat(file.fileno()).st_size, 1, path)
        try:
            _check_directory(file, path)
            with zipfile.ZipFile(file) as archive:
                yield archive
        except _DAMAGE as error:
            raise _refused(path, f"is no sound .npz ({why(error)}); copy it again") from error


def _check_directory(file: IO[bytes], path: Path) -> None:
    """Refuse an archive of very many members before the list of them is read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 64))
    tail = file.read()
    start = tail.rfind(_END)
    if start < 0 or len(tail) - start < 22:
        raise _refused(path, "is no .npz: it does not end as a ZIP archive does; copy it again", reason="truncated")
    members, length = struct.unpack_from("<HI", tail, start + 10)
    if members > _MEMBERS or length > _DIRECTORY or tail[max(0, start - 20) :].startswith(_END_64):
        raise _refused(path, "has more members than a case of the challenge", reason="unsupported format")


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> _Array | None:
    """The header of an array, None where there is none of this name.

    Raises:
        VolumeError: it is no array, or claims more than its bytes can hold.
    """
    members = [each for each in archive.infolist() if each.filename == f"{name}.npy"]
    if not members:
        return None
    member = members[0]
    most = member.compress_size * (_DEFLATED if member.compress_type == zipfile.ZIP_DEFLATED else 1)
    sound = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not member.flag_bits & _ENCRYPTED
    if len(members) > 1 or not sound or member.file_size > most or member.compress_size > _size(archive):
        raise _refused(path, f"its {name} claim more than the file holds, or are packed in another way; copy it again")
    with archive.open(member) as stream:
        start = stream.read(8)
        width = {1: 2, 2: 4, 3: 4}.get(start[6] if len(start) == 8 and start[:6] == b"\x93NUMPY" else 0)
        length = int.from_bytes(stream.read(width or 0), "little")
        text = stream.read(length).decode("latin-1") if width and length <= _HEADER else ""
    if (match := _ARRAY.fullmatch(text)) is None:
        raise _refused(path, f"its {name} are no array of NumPy; copy it again")
    shape = tuple(int(number) for number in match[3].replace(" ", "").split(",") if number)
    offset = 8 + (width or 0) + length
    return _Array(member.filename, match[1], match[2] == "True", shape, offset, member.file_size - offset)


def _size(archive: zipfile.ZipFile) -> int:
    return os.fstat(archive.fp.fileno()).st_size if archive.fp is not None else 0


def _settled(case: ChallengeCase, wanted: str | None, path: Path) -> str:
    """The modality of a case, whose grey values need none to be read."""
    if case.modality != OTHER:
        return settled_modality(case.modality, wanted, source=f"{path}: its prompts say")
    if wanted in (None, OTHER):
        return OTHER
    msg = f"its prompts say that it is neither CT nor MR, but {wanted} was asked for; leave the modality out"
    raise _refused(path, msg, reason="modality")


def _modality(text: str) -> str:
    if names_another_modality(text):
        return OTHER
    try:
        found = parse_modality(text)
    except ConfigError:  # it names both, or neither
        return ""
    return "" if found == "unknown" else found


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(str(shape)) <= 40 else f"{len(shape)} axes"


def _refused(path: Path, problem: str, *, reason: str = "damaged") -> VolumeError:
    return VolumeError(f"{path}: {problem}", reason=reason)
