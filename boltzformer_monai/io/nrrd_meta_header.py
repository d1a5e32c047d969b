"""The text headers of NRRD and MetaImage, judged before ITK sees them.

ITK allocates what a header claims, passes over what it does not understand, and fills in an orientation that is not
there. What it gets to read has been found complete and stated here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from boltzformer_monai.errors import VolumeError, not_opened
from boltzformer_monai.io.payload import check_deflated, check_raw, check_stream
from boltzformer_monai.limits import open_file, require_room
from boltzformer_monai.modality import modality_of_header

_LONGEST = 1 << 24  # bytes of header; a .seg.nrrd with many segments has some ten thousand
_BLOCK = 1 << 16
_NRRD_END = re.compile(rb"\n\r?\n")
_META_END = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[^\n]*\n", re.MULTILINE)
_LONGEST_FIELD = 500  # bytes of an NRRD field; one of about a thousand overruns a buffer of ITK, which ends the process
_RESULT_BYTES = 4  # of a voxel of what is made of ITK's image
_LONGEST_KEY, _LONGEST_LINE = 200, 1 << 14  # of a MetaImage; ITK cuts longer ones and reads on amid the line
_NRRD_TYPE = re.compile(r"(?:unsigned |signed |u)?(char|short|int|longlong|long long|float|double|int\d+)(?: int|_t)?")
_NRRD_BYTES = {"char": 1, "short": 2, "int": 4, "longlong": 8, "long long": 8, "float": 4, "double": 8} | {
    f"int{8 * size}": size for size in (1, 2, 4, 8)
}
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG_LONG": 8} | {"FLOAT": 4, "DOUBLE": 8}
# What may be written under either name, and the power of the dimensions that it has numbers.
_META_PLACE = (
    (("TransformMatrix", "Rotation", "Orientation"), 2),
    (("Offset", "Position", "Origin"), 1),
    (("ElementSpacing",), 1),
)
_LOCAL = ("LOCAL", "Local", "local")  # the voxels follow the header
_MILLIMETRES = ("", "mm", "millimeter", "millimetre", "millimeters", "millimetres", "?")
_SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las")


def check_nrrd(path: Path, *, layers: bool = False) -> None:
    """Refuse an NRRD file whose header is damaged, claims more than the file holds or leaves left and right open.

    Args:
        path: the file.
        layers: whether a fourth axis is welcome (overlapping segments).

    Raises:
        VolumeError: the reason, and what to do.
    """
    fields, end, attached = _nrrd_fields(path)
    sizes = _whole_numbers(path, fields, "sizes", count=_whole_numbers(path, fields, "dimension", count=1)[0])
    kind = _NRRD_TYPE.fullmatch(fields.get("type", "").lower())
    if kind is None or kind[1] not in _NRRD_BYTES:
        raise _damaged(path, f"the type {fields.get('type', '(none)')!r}")
    voxels, encoding = math.prod(sizes), fields.get("encoding", "").lower()
    skip = [fields.get(name, "0") for name in ("byteskip", "lineskip")]
    data = path if attached else _beside(path, fields.get("datafile", ""))
    start = end if attached else 0
    if skip[0].isdigit() and encoding == "raw":
        start += int(skip[0])
        skip[0] = "0"
    if skip == ["-1", "0"] and encoding == "raw":  # the voxels are whatever the file ends with
        start = max(start, os.path.getsize(data) - voxels * _NRRD_BYTES[kind[1]])
    elif skip != ["0", "0"]:
        msg = f"{path}: skips bytes or lines before its voxels in an unsupported way; save it anew, e.g. in 3D Slicer"
        raise VolumeError(msg, reason="unsupported format")
    _check_voxels(path, data, start, encoding, voxels, _NRRD_BYTES[kind[1]])
    if len([length for length in sizes if length > 1]) > 3 + layers or len(sizes) < 3:
        return  # no volume, whatever it says about its place; the reader says why
    if fields.get("space", "").lower() not in _SPACES or "spacedirections" not in fields:
        msg = f"{path}: its header has no patient space (LPS, RAS or LAS), so left and right are unknown; add 'space:'"
        raise VolumeError(msg, reason="no orientation")
    _check_units(path, re.findall(r'"([^"]*)"', fields.get("spaceunits", "")))
    _check_vectors(path, fields)


def check_is_scan(path: Path) -> None:
    """Refuse an NRRD file that 3D Slicer wrote as a segmentation.

    Raises:
        VolumeError: the reason, and what to do.
    """
    if re.search(r"^Segment\d+_", re.split(r"\n\r?\n", _text(path, _NRRD_END), maxsplit=1)[0], re.MULTILINE):
        msg = f"{path}: is a segmentation, not a scan; pass the scan that it was drawn on, and this file as its label"
        raise VolumeError(msg, reason="not an image")


def check_metaimage(path: Path) -> None:
    """Refuse a MetaImage whose header is damaged, claims more than the file holds or leaves left and right open.

    Raises:
        VolumeError: the reason, and what to do.
    """
    fields, end = _meta_fields(path)
    sizes = _whole_numbers(path, fields, "DimSize", count=_whole_numbers(path, fields, "NDims", count=1)[0])
    kind = re.fullmatch(r"MET_U?(\w+)", fields.get("ElementType", ""))
    if kind is None or kind[1] not in _META_BYTES:
        raise _damaged(path, f"the ElementType {fields.get('ElementType', '(none)')!r}")
    channels = _whole_numbers(path, {"ElementNumberOfChannels": "1"} | fields, "ElementNumberOfChannels", count=1)[0]
    name = fields["ElementDataFile"]
    data = path if name in _LOCAL else _beside(path, name)
    flags = {key: fields.get(key, "False").lower() for key in ("CompressedData", "BinaryDataByteOrderMSB")}
    flags |= {"BinaryData": fields.get("BinaryData", "True").lower()}
    if invalid := next((key for key, value in flags.items() if value not in ("true", "false")), None):
        raise _damaged(path, f"the {invalid} {fields[invalid]!r}")
    if fields.get("HeaderSize", "0") != "0":
        msg = f"{path}: states a HeaderSize, which is not read; save it anew, for example in 3D Slicer"
        raise VolumeError(msg, reason="unsupported format")
    encoding = "gzip" if flags["CompressedData"] == "true" else "raw" if flags["BinaryData"] == "true" else "text"
    start = end if data == path else 0
    if encoding == "gzip" and data == path and "CompressedDataSize" not in fields:  # ITK would inflate the wrong bytes
        raise _damaged(path, "no CompressedDataSize for the voxels in it")
    if encoding == "gzip" and "CompressedDataSize" in fields:
        stated = _whole_numbers(path, fields, "CompressedDataSize", count=1)[0]
        if stated != (held := os.path.getsize(data) - start):  # ITK would inflate the stated part and ignore the rest
            msg = f"{path}: its header states {stated} compressed bytes, the file holds {held}; copy or export it again"
            raise VolumeError(msg, reason="truncated" if stated > held else "damaged")
    _check_voxels(path, data, start, encoding, math.prod(sizes) * channels, _META_BYTES[kind[1]])
    if len(sizes) >= 3:
        _check_meta_place(path, fields, len(sizes))


def metaimage_modality(path: Path) -> str:
    """Return the Modality of a MetaImage (``MET_MOD_CT``) as DICOM codes it, ``""`` for none.

    Raises:
        VolumeError: the header is damaged.
    """
    stated = _meta_fields(path)[0].get("Modality", "").upper().removeprefix("MET_MOD_")
    return "" if stated == "UNKNOWN" else modality_of_header(stated, "")


def _check_meta_place(path: Path, fields: Mapping[str, str], dimensions: int) -> None:
    """Refuse a place that is not stated once and completely."""
    counts = {"CenterOfRotation": dimensions}
    for names, count in _META_PLACE:
        stated = [name for name in names if name in fields]
        if len(stated) > 1:
            raise _damaged(path, f"both {stated[0]} and {stated[1]}")
        counts |= dict.fromkeys(stated, dimensions**count)
    for name, count in counts.items():
        if name in fields and len(_numbers(path, name, fields[name].split())) != count:
            raise _damaged(path, f"the {name} {fields[name]!r}")
    if not set(_META_PLACE[0][0]) & set(fields):
        msg = f"{path}: its header has no TransformMatrix, so left and right are unknown; save it anew with one"
        raise VolumeError(msg, reason="no orientation")
    _check_units(path, [fields.get("DistanceUnits", "")])
    if not all(float(word) > 0 for word in fields.get("ElementSpacing", "0").split()):
        msg = f"{path}: its ElementSpacing {fields.get('ElementSpacing', '(none)')!r} is unusable; correct the header"
        raise VolumeError(msg, reason="pixel spacing")


def detached_voxels(path: Path) -> Path | None:
    """Return the file that a header keeps its voxels in; None if they follow it, or where reading the scan fails."""
    try:
        if path.name.lower().endswith((".nrrd", ".nhdr")):
            fields, _, attached = _nrrd_fields(path)
            return None if attached else _beside(path, fields["datafile"])
        name = _meta_fields(path)[0]["ElementDataFile"]
        return None if name in _LOCAL else _beside(path, name)
    except VolumeError:
        return None


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int, bool]:
    """Return the fields (names in lower case without spaces), where the header ends, and whether voxels follow it."""
    text, fields = _text(path, _NRRD_END), {}
    if re.match(r"NRRD000[1-6]\r?\n", text) is None:
        msg = f"{path}: cannot be read as NRRD (it does not begin with an NRRD header); convert it to NRRD"
        raise VolumeError(msg, reason="damaged")
    end = re.search(r"\n\r?\n", text)
    if re.search(r"\r(?!\n)", text[: end.end() if end else len(text)]):  # ends a line for ITK, even within a comment
        raise _damaged(path, "a carriage return amid a line")
    for line in text[: end.start() if end else len(text)].rstrip().split("\n")[1:]:
        name, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):  # a comment, a free pair
            continue
        key = name.lower().replace(" ", "")
        if not colon or key in fields or len(line) > _LONGEST_FIELD:
            raise _damaged(path, f"the line {line[:40]!r}")
        fields[key] = value.strip()
    attached = "datafile" not in fields
    if attached and end is None:
        msg = f"{path}: its header does not end; the file is cut off, copy or export it again"
        raise VolumeError(msg, reason="truncated")
    return fields, end.end() if end else len(text), attached


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields, and where the header ends."""
    text, fields, place = _text(path, _META_END), {}, 0
    while place < len(text):
        end = text.find("\n", place) + 1 or len(text)
        line, place = text[place:end], end
        key, equals, value = (part.strip() for part in line.partition("="))
        # ITK takes a colon for an equals sign too.
        if not equals or key in fields or ":" in key or len(key) > _LONGEST_KEY or len(line) > _LONGEST_LINE:
            break
        fields[key] = value
        if key == "ElementDataFile":
            return fields, place
    msg = f"{path}: cannot be read as MetaImage (its header is damaged or cut off); copy or export it again"
    raise VolumeError(msg, reason="damaged")


def _text(path: Path, end: re.Pattern[bytes]) -> str:
    """Return the start of a file, with its header as far as ``end`` closes it, and some of what follows."""
    head = b""
    try:
        with open_file(path) as file:
            while len(head) < _LONGEST and (block := file.read(_BLOCK)):
                head += block
                if end.search(head, max(0, len(head) - _BLOCK - _LONGEST_LINE)):
                    break
        return head.decode("latin-1")  # one character a byte
    except OSError as error:
        raise not_opened(path, error) from error


def _check_voxels(path: Path, data: Path, start: int, encoding: str, voxels: int, size: int) -> None:
    """Compare what follows byte ``start`` of ``data`` with the voxels that the header claims, and with the memory."""
    available = max(os.path.getsize(data) - start, 0)
    require_room(voxels, 2 * size + _RESULT_BYTES, path)  # ITK may read a copy before it fills its image
    if encoding == "raw":
        check_raw(str(path), available, voxels * size)
    elif encoding in ("gzip", "gz"):
        check_deflated(str(path), available, voxels * size)
        with open_file(data) as file:
            file.seek(start)
            check_stream(str(path), file, voxels * size)
    elif encoding in ("ascii", "text", "txt"):
        if 2 * voxels - 1 > available:  # a digit and a space each
            check_raw(str(path), available, 2 * voxels - 1)
    else:
        msg = f"{path}: its voxels are encoded as {encoding!r}, which is not read; save it as raw or gzip"
        raise VolumeError(msg, reason="unsupported format")


def _beside(path: Path, name: str) -> Path:
    """Return the file of the voxels that a detached header names."""
    # ITK takes every name that begins with LIST for a list.
    if not name or name.upper().startswith("LIST") or "%" in name or "\0" in name:
        msg = f"{path}: spreads its voxels over several files, which is not read; save it as one file"
        raise VolumeError(msg, reason="unsupported format")
    data = path.parent / name
    # A header from a stranger may name any file of the machine, and would show it as voxels.
    if not data.resolve().is_relative_to(path.parent.resolve()):
        msg = f"{path}: takes its voxels from {name[:200]!r}, outside its own folder; copy that file beside the header"
        raise VolumeError(msg, reason="unsupported format")
    if not os.path.isfile(data):
        msg = f"{path}: the file of its voxels, {name!r}, is not there; copy it beside the header"
        raise VolumeError(msg, reason="missing")
    return data


def _check_units(path: Path, units: Sequence[str]) -> None:
    if other := next((unit for unit in units if unit.lower() not in _MILLIMETRES), None):
        msg = f"{path}: its voxel size is given in {other!r}; convert the file to millimetres first"
        raise VolumeError(msg, reason="units")


def _check_vectors(path: Path, fields: Mapping[str, str]) -> None:
    """Refuse NRRD vectors that are not three finite numbers each."""
    for key in ("spacedirections", "spaceorigin"):
        vectors = re.findall(r"\(([^)]*)\)", fields.get(key, ""))
        if any(len(_numbers(path, key, vector.split(","))) != 3 for vector in vectors):
            raise _damaged(path, f"the {key} {fields[key]!r}")
    if fields["spacedirections"].count("(") != 3:
        raise _damaged(path, f"the space directions {fields['spacedirections']!r}")


def _whole_numbers(path: Path, fields: Mapping[str, str], key: str, *, count: int) -> list[int]:
    """Return exactly ``count`` numbers of at least 1."""
    words = fields.get(key, "").split()
    if len(words) != count or not all(re.fullmatch(r"\d{1,18}", word) and int(word) for word in words):
        msg = f"{path}: its header says {key} {fields.get(key, '(none)')[:60]!r}; it is damaged, export the scan again"
        raise VolumeError(msg, reason="dimensions" if key in ("sizes", "DimSize") else "damaged")
    return [int(word) for word in words]


def _numbers(path: Path, key: str, words: Sequence[str]) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise _damaged(path, f"the {key} {' '.join(words)[:60]!r}")
    return numbers


def _damaged(path: Path, what: str) -> VolumeError:
    """Return the error about a field that makes no sense."""
    return VolumeError(f"{path}: its header has {what}, which is not usable; correct it or export the scan again")
