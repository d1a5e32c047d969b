"""Files that are no scans: cut off, damaged, lying about their size, or pointing to files of the server."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from functools import cache
from random import Random

import nibabel
import numpy as np

_SHAPE = (20, 18, 5)
_NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
    "space directions: (2,0,0) (0,2,0) (0,0,5)\nspace origin: (0,0,0)\nencoding: {encoding}\nendian: little\n{more}\n"
)
_META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = {sizes}\n"
    "ElementType = MET_SHORT\nElementDataFile = {data}\n"
)


def broken_files(random: Random, secrets: Sequence[str]) -> list[tuple[str, bytes]]:
    """Ending and content of files that no route may take for a scan or label.

    Args:
        random: decides where they are cut and damaged.
        secrets: paths that headers point to.
    """
    whole = _nifti()
    packed = gzip.compress(whole, 6, mtime=0)
    voxels = whole[352:]
    sizes = " ".join(str(each) for each in _SHAPE)
    nrrd = _NRRD.format(sizes=sizes, encoding="raw", more="").encode() + voxels
    meta = _META.format(sizes=sizes, data="LOCAL").encode() + voxels
    files: list[tuple[str, bytes]] = [(ending, b"") for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".dcm", ".zip")]
    for ending, content in ((".nii.gz", packed), (".nii", whole), (".nrrd", nrrd), (".mha", meta)):
        files += [(ending, content[: random.randrange(1, len(content) - 1)]) for _ in range(12)]
        files += [(ending, random.randbytes(random.randrange(1, 5000))) for _ in range(3)]
    for _ in range(12):  # the checksum notices
        damaged = bytearray(packed)
        damaged[random.randrange(12, len(packed))] ^= 1 << random.randrange(8)
        files.append((".nii.gz", bytes(damaged)))
    for dims in ((32767, 32767, 32767), (0, 1, 1), (-1, 5, 5), (2000, 2000, 2000)):
        header = bytearray(whole)
        header[40:56] = struct.pack("<8h", 3, *dims, 1, 1, 1, 1)
        files += [(".nii", bytes(header)), (".nii.gz", gzip.compress(bytes(header), 1))]
    files += [(".nii.gz", bomb()), (".nii.gz", bomb() * 2), (".nii.gz", gzip.compress(b"")), (".nii.gz", packed[:10])]
    for secret in [*secrets, "/etc/passwd", "../" * 9 + "etc/passwd", "LIST", "a%d.raw 1 5 1"]:
        for more in (f"data file: {secret}\n", f"datafile:{secret}\n", f"Data File: {secret}\n"):
            files.append((".nrrd", _NRRD.format(sizes="4 4 4", encoding="raw", more=more).encode()))
        skip = f"byte skip: -1\ndata file: {secret}\n"
        files.append((".nrrd", _NRRD.format(sizes="2 2 2", encoding="raw", more=skip).encode()))
        files.append((".mha", _META.format(sizes="4 4 4", data=secret).encode()))
    for length in ("99999999 99999999 9", "1e9 1 1", "-1 2 2", "0 0 0"):
        files.append((".nrrd", _NRRD.format(sizes=length, encoding="raw", more="").encode() + voxels))
        files.append((".nrrd", _NRRD.format(sizes=length, encoding="gzip", more="").encode() + packed))
        files.append((".mha", _META.format(sizes=length, data="LOCAL").encode() + voxels))
    dicom = bytes(128) + b"DICM" + random.randbytes(300)
    return [*files, (".dcm", dicom), (".dcm", dicom[:140]), (".zip", b"PK\x03\x04" + random.randbytes(80))]


@cache
def bomb() -> bytes:
    """A sound scan of 64 MB in 65 kB."""
    header = bytearray(_nifti()[:352])
    header[40:56] = struct.pack("<8h", 3, 400, 400, 200, 1, 1, 1, 1)
    return gzip.compress(bytes(header) + bytes(2 * 400 * 400 * 200), 9)


@cache
def _nifti() -> bytes:
    voxels = np.random.default_rng(0).integers(-1000, 1000, _SHAPE, np.int16)
    image = nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 5.0, 1.0]))
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())
