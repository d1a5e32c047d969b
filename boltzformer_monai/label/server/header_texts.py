"""Send scans without the free texts of their headers.

Converters and users write names, dates and notes into these fields; no viewer needs them.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fastapi.responses import FileResponse

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.label.files import temporary_file
from boltzformer_monai.limits import open_file

_GZIP = b"\x1f\x8b"
_NAMED = 0x1C  # flags of a gzip header: further fields, a name, a comment
_MAX_HEADER = 1 << 24
_CHUNK = 1 << 20
_LEVEL = 1  # fastest: the file is sent once
_NIFTI_TEXTS = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
_NRRD_FIELDS = frozenset({
    "type", "dimension", "space", "space dimension", "sizes", "space directions", "space origin", "space units",
    "kinds", "endian", "encoding", "spacings", "thicknesses", "centers", "centerings", "axis mins", "axismins",
    "axis maxs", "axismaxs", "units", "measurement frame", "block size", "blocksize", "line skip", "lineskip",
    "byte skip", "byteskip",
})  # fmt: skip
_META_FIELDS = frozenset({
    "objecttype", "ndims", "binarydata", "binarydatabyteordermsb", "elementbyteordermsb", "compresseddata",
    "compresseddatasize", "transformmatrix", "rotation", "orientation", "offset", "position", "origin",
    "centerofrotation", "anatomicalorientation", "elementspacing", "elementsize", "dimsize", "elementtype",
    "elementnumberofchannels", "elementdatafile",
})  # fmt: skip


class TemporaryFileResponse(FileResponse):
    """A file that is deleted afterwards, even if it was not sent."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            Path(self.path).unlink(missing_ok=True)


def scan_response(path: Path, **options: Any) -> FileResponse:
    """Send a scan: a temporary copy if its header holds free texts; raises as :func:`strip_texts`."""
    with temporary_file(f"-{path.name[-20:]}") as copy:
        if strip_texts(path, copy):
            return TemporaryFileResponse(copy, **options)
        copy.unlink()
    return FileResponse(path, **options)


def strip_texts(source: Path, target: Path) -> bool:
    """Write a copy of a NIfTI, NRRD or MetaImage file without the free texts of its header.

    Returns:
        Whether it was written; it is not if the source has no such text.

    Raises:
        VolumeError: the header cannot be read.
        OSError: a file cannot be read or written.
    """
    name = source.name.lower()
    with open_file(source) as file:
        if name.endswith((".nii", ".nii.gz")):
            return _nifti(file, target)
        if name.endswith(".nrrd"):
            return _text_header(file, target, re.compile(rb"\A.*?\n\r?\n", re.DOTALL), _keep_nrrd)
        if name.endswith(".mha"):
            end = re.compile(rb"\A.*?^\s*ElementDataFile\s*=[^\n]*\n", re.DOTALL | re.MULTILINE | re.IGNORECASE)
            return _text_header(file, target, end, _keep_meta)
    raise VolumeError(f"{source}: only NIfTI, NRRD and MetaImage in one file are sent", reason="unsupported format")


def _nifti(file: BinaryIO, target: Path) -> bool:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.wrapstruct import WrapStructError

    start = file.read(4)
    file.seek(0)
    packed = start[:2] == _GZIP
    named = packed and bool(start[3] & _NAMED)
    opened: Any = gzip.GzipFile(fileobj=file) if packed else file
    with opened as stream:
        try:
            size = int.from_bytes(stream.read(4), "little")
            stream.seek(0)
            kind = nibabel.Nifti2Header if size in (540, 0x1C020000) else nibabel.Nifti1Header
            # Without extensions, which may claim any length and are removed anyway.
            header = kind(stream.read(kind.sizeof_hdr), check=False)
        except (OSError, EOFError, ValueError, WrapStructError, ImageFileError) as error:
            raise VolumeError(f"{target.name}: the header cannot be read, so the file is not sent") from error
        texts = [key for key in _NIFTI_TEXTS if key in header and header[key].item().strip(b"\0")]
        start_of_voxels = max(int(header["vox_offset"]), header.single_vox_offset)
        if not (texts or named or start_of_voxels > header.single_vox_offset):
            return False
        for key in texts:
            header[key] = b""
        header["vox_offset"] = header.single_vox_offset
        stream.seek(start_of_voxels)
        with contextlib.ExitStack() as written:
            out: Any = written.enter_context(target.open("wb"))
            if packed:
                out = written.enter_context(gzip.GzipFile("", "wb", _LEVEL, out, mtime=0))
            header.write_to(out)
            shutil.copyfileobj(stream, out, _CHUNK)
    return True


def _text_header(file: BinaryIO, target: Path, header: re.Pattern[bytes], known: Callable[[bytes], bool]) -> bool:
    found = header.search(file.read(_MAX_HEADER))
    if found is None:
        raise VolumeError(f"{target.name}: the header cannot be read, so the file is not sent")
    lines = found[0].splitlines(keepends=True)
    kept = [line for line in lines if known(line)]
    if len(kept) == len(lines):
        return False
    file.seek(found.end())
    with target.open("wb") as out:
        out.writelines(kept)
        shutil.copyfileobj(file, out, _CHUNK)
    return True


def _keep_nrrd(line: bytes) -> bool:
    field, colon, value = line.decode("latin-1").partition(":")
    if not colon:
        return line.startswith(b"NRRD") or not line.strip()
    return field.strip().lower() in _NRRD_FIELDS and not value.startswith("=")


def _keep_meta(line: bytes) -> bool:
    return line.decode("latin-1").partition("=")[0].strip().lower() in _META_FIELDS
