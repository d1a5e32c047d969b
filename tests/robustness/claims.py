"""Small files that claim much: made here, and read in a process of their own whose memory is limited and measured.

Run as ``python -m tests.robustness.claims FOLDER OUT [COUNT]``. Without COUNT the bombs go through ``slice_volumes.py``
under an address space of 3 GB; with it, as many random claims are read under a budget of 64 MB. OUT gets a JSON line
for each.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SPACE = 3 << 30
BUDGET_GB = 0.064
_BLOCK = 1 << 24
_AFFINE = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\n"


def nifti_header(shape: tuple[int, ...], code: int, bits: int) -> bytes:
    """Return a NIfTI-1 header (352 bytes) of a grid of 1 mm."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[123] = 2
    struct.pack_into("<2h", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    return bytes(header)


def nrrd_header(shape: tuple[int, ...], kind: str, encoding: str) -> bytes:
    """Return an NRRD header of a grid of 1 mm."""
    return (
        f"NRRD0004\ntype: {kind}\ndimension: 3\nspace: left-posterior-superior\nsizes: {' '.join(map(str, shape))}\n"
        f"space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: {encoding}\nspace origin: (0,0,0)\n\n"
    ).encode()


def meta_header(shape: tuple[int, ...], kind: str, packed: int = 0) -> bytes:
    """Return a MetaImage header of a grid of 1 mm, with ``packed`` compressed bytes."""
    extra = f"CompressedData = True\nCompressedDataSize = {packed}\n" if packed else ""
    return (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n{extra}{_AFFINE}"
        f"DimSize = {' '.join(map(str, shape))}\nElementType = MET_{kind}\nElementDataFile = LOCAL\n"
    ).encode()


def sparse(path: Path, head: bytes, size: int) -> None:
    """Write a file that ends with ``size`` zeros, none of which takes a block."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


def gzip_zeros(size: int) -> bytes:
    """Return gzip members that unfold into ``size`` zeros, made at once whatever the size."""
    return gzip.compress(bytes(_BLOCK), 9) * (size // _BLOCK) + gzip.compress(bytes(size % _BLOCK), 9)


def deflated_zeros(head: bytes, size: int) -> bytes:
    """Return one bare deflate stream of ``head`` and ``size`` zeros, which are a repeated block."""
    packer = zlib.compressobj(9, wbits=-15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(_BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (size // _BLOCK) + zlib.compressobj(wbits=-15).flush()


def dicom_slice(index: int, rows: int, columns: int, bits: int, syntax: str, **more: Any) -> Any:
    """Return a CT slice without pixels."""
    import pydicom

    dataset = pydicom.Dataset()
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{index + 1}"
    dataset.SeriesInstanceUID, dataset.Modality, dataset.PatientID = "1.2.3", "CT", "phantom"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, index]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    for name, value in more.items():
        setattr(dataset, name, value)
    return dataset


def save_dicom(dataset: Any, path: Path) -> None:
    """Write a data set, by pydicom 2.4 and 3."""
    dataset.save_as(path, write_like_original=False)


def rle_segment(size: int, segments: int) -> bytes:
    """Return an RLE frame of ``size`` zeros in each segment."""
    run = b"\x81\0" * (size // 128) + (bytes([257 - size % 128, 0]) if size % 128 > 1 else b"\0\0" * (size % 128))
    run += b"\0" * (len(run) % 2)
    offsets = [64 + index * len(run) for index in range(segments)]
    return struct.pack("<16I", segments, *offsets, *[0] * (15 - segments)) + run * segments


def bombs(folder: Path) -> dict[str, list[str]]:
    """Make the bombs; name → options of ``slice_volumes.py``."""
    from pydicom.encaps import encapsulate

    cube, claimed = (900, 900, 1000), 900 * 900 * 1000 * 2
    sparse(folder / "whole.nii", nifti_header(cube, 4, 16), claimed)
    sparse(folder / "short.nii", nifti_header((30_000, 30_000, 30_000), 4, 16), 100)
    (folder / "whole.nii.gz").write_bytes(gzip.compress(nifti_header(cube, 4, 16)) + gzip_zeros(claimed))
    (folder / "short.nii.gz").write_bytes(gzip.compress(nifti_header((30_000, 30_000, 30_000), 4, 16)))
    sparse(folder / "whole.nrrd", nrrd_header(cube, "short", "raw"), claimed)
    (folder / "packed.nrrd").write_bytes(nrrd_header(cube, "short", "gzip") + gzip_zeros(claimed))
    sparse(folder / "whole.mha", meta_header(cube, "SHORT"), claimed)
    packed = gzip_zeros(claimed)
    (folder / "packed.mha").write_bytes(meta_header(cube, "SHORT", len(packed)) + packed)
    for name, rows, syntax in (("rle", 65535, "1.2.840.10008.1.2.5"), ("j2k", 30_000, "1.2.840.10008.1.2.4.90")):
        (folder / name).mkdir()
        for index in range(3):
            dataset = dicom_slice(index, rows, rows, 16, syntax)
            dataset.PixelData = encapsulate([rle_segment(300, 2) if name == "rle" else b"\xff\x4f\xff\x51" + bytes(60)])
            dataset["PixelData"].is_undefined_length = True
            save_dicom(dataset, folder / name / f"{index}.dcm")
    (folder / "deflated").mkdir()
    for index in range(3):
        path = folder / "deflated" / f"{index}.dcm"
        save_dicom(dicom_slice(index, 4, 4, 16, "1.2.840.10008.1.2.1", PixelData=bytes(32)), path)
        content = path.read_bytes().replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99")
        start = 144 + struct.unpack_from("<I", content, 140)[0] + 2
        content = content[:140] + struct.pack("<I", start - 144) + content[144:]
        padding = b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 3 << 30)
        path.write_bytes(content[:start] + deflated_zeros(content[start:] + padding, 3 << 30))
    sound = nifti_header((4, 4, 4), 4, 16) + bytes(128)
    (folder / "sound.nii").write_bytes(sound)
    (folder / "names.json").write_text('{"labels": {"1": "liver"}}', encoding="utf-8")
    (folder / "deep.json").write_text("[" * 200_000 + "]" * 200_000, encoding="utf-8")
    sparse(folder / "large.json", b"{", 5_000_000_000)
    os.mkfifo(folder / "pipe.nii")
    os.mkfifo(folder / "pipe.nii.gz")
    os.mkfifo(folder / "pipe.nrrd")
    os.mkfifo(folder / "pipe.json")
    os.mkfifo(folder / "pipe")
    scans = ["whole.nii", "short.nii", "whole.nii.gz", "short.nii.gz", "whole.nrrd", "packed.nrrd", "whole.mha"]
    scans += ["packed.mha", "rle", "j2k", "deflated", "pipe.nii", "pipe.nii.gz", "pipe.nrrd", "pipe"]
    found = {name: ["--image", str(folder / name), "--modality", "CT"] for name in scans}
    label = ["--image", str(folder / "sound.nii"), "--modality", "CT", "--label"]
    for name in ("whole.nii", "packed.nrrd", "pipe.nrrd", "pipe"):
        found[f"label {name}"] = [*label, str(folder / name), "--labels-json", str(folder / "names.json")]
    for name in ("deep.json", "large.json", "pipe.json"):
        found[name] = [*label, str(folder / "sound.nii"), "--labels-json", str(folder / name)]
    return found


def explode(folder: Path) -> Iterator[dict[str, Any]]:
    """Give every bomb to the command line."""
    import resource

    from boltzformer_monai.cli.slice import main

    tasks = bombs(folder)
    resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
    for name, options in tasks.items():
        words = io.StringIO()
        with measured() as cost, contextlib.redirect_stderr(words), contextlib.redirect_stdout(io.StringIO()):
            code = main([*options, "--output", str(folder / "out")])
        yield {"name": name, "code": code, "words": words.getvalue(), **cost}


_KINDS = {  # bytes → the number types of NIfTI, NRRD and MetaImage
    1: (2, "uchar", "UCHAR"),
    2: (4, "short", "SHORT"),
    4: (16, "float", "FLOAT"),
    8: (64, "double", "DOUBLE"),
}


def random_file(folder: Path, number: int, draw: random.Random) -> tuple[Path, int, bool]:
    """Make a file of a random claim.

    Returns:
        The file or folder, how many voxels it claims, and whether it holds them (all are 0).
    """
    size = draw.choice(list(_KINDS))
    shape = tuple(int(2 ** draw.uniform(0, 11.5)) for _ in range(3))
    voxels = int(np.prod(shape, dtype=object))
    sound = draw.random() < 0.7
    held = voxels * size if sound else int(voxels * size * draw.random())
    code, nrrd, meta = _KINDS[size]
    kind = draw.choice(["nii", "nii.gz", "nrrd", "nrrd-gzip", "mha", "mha-zlib", "dicom", "dicom", "dicom"])
    if kind in ("nii.gz", "nrrd-gzip", "mha-zlib") and held > 1 << 30:
        held, sound = 1 << 30, False
    path = folder / f"{number}.{kind.partition('-')[0]}"
    if kind == "nii":
        sparse(path, nifti_header(shape, code, 8 * size), held)
    elif kind == "nii.gz":
        path.write_bytes(gzip.compress(nifti_header(shape, code, 8 * size)) + gzip_zeros(held))
    elif kind == "nrrd":
        sparse(path, nrrd_header(shape, nrrd, "raw"), held)
    elif kind == "nrrd-gzip":
        sound = sound and held < 1 << 24  # one member is what is read
        path.write_bytes(nrrd_header(shape, nrrd, "gzip") + gzip_zeros(held)[: None if sound else held // 1000 + 9])
    elif kind == "mha":
        sparse(path, meta_header(shape, meta), held)
    elif kind == "mha-zlib":
        packed = zlib.compress(bytes(min(held, 1 << 24)))
        sound = sound and held <= 1 << 24
        path.write_bytes(meta_header(shape, meta, len(packed)) + packed)
    else:
        return _random_series(folder / f"{number}-dicom", draw)
    return path, voxels, sound


def _random_series(folder: Path, draw: random.Random) -> tuple[Path, int, bool]:
    from pydicom.encaps import encapsulate

    folder.mkdir()
    rows, columns = (int(2 ** draw.uniform(0, 12)) for _ in range(2))
    bits, slices, sound = draw.choice([8, 16]), draw.randint(2, 4), draw.random() < 0.7
    kind = draw.choice(["plain", "rle", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"])
    for index in range(slices):
        if kind == "plain":
            data = bytes(rows * columns * bits // 8) if sound else bytes(draw.randint(1, 99))
            data += b"\0" * (len(data) % 2)
        else:
            frame = rle_segment(rows * columns if sound else 64, bits // 8) if kind == "rle" else b"\xff\xd8\xff\xd9"
            data = encapsulate([frame])
        syntax = {"plain": "1.2.840.10008.1.2.1", "rle": "1.2.840.10008.1.2.5"}.get(kind, kind)
        dataset = dicom_slice(index, rows, columns, bits, syntax, PixelData=data)
        dataset["PixelData"].VR = "OW" if bits == 16 and kind == "plain" else "OB"
        dataset["PixelData"].is_undefined_length = kind != "plain"
        save_dicom(dataset, folder / f"{index}.dcm")
    return folder, rows * columns * slices, sound and kind in ("plain", "rle")


def claim(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Read random claims."""
    from boltzformer_monai.errors import VolumeError
    from boltzformer_monai.io.read import read_volume
    from boltzformer_monai.limits import set_memory_gb

    draw = random.Random(count)  # noqa: S311
    set_memory_gb(BUDGET_GB)
    for warm in (folder / "warm.nrrd", folder / "warm.nii"):  # the readers' own libraries are no voxels
        head = nrrd_header((4, 4, 4), "short", "raw") if warm.suffix == ".nrrd" else nifti_header((4, 4, 4), 4, 16)
        sparse(warm, head, 128)
        read_volume(warm)
    for number in range(count):
        path, voxels, sound = random_file(folder, number, draw)
        refused, right = "", False
        with measured() as cost:
            try:
                volume = read_volume(path)
                right = volume.array.size == voxels and not volume.array.any() and volume.array.dtype == np.float32
                del volume
            except VolumeError as error:
                refused = error.reason
        yield {"name": path.name, "voxels": voxels, "sound": sound, "refused": refused, "right": right, **cost}
        if path.is_file():
            path.unlink()


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure seconds and the most bytes that were in memory beyond those before the block."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    before, start = _memory("VmRSS"), time.monotonic()
    cost: dict[str, float] = {}
    yield cost
    cost |= {"seconds": time.monotonic() - start, "peak": _memory("VmHWM") - before}


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


if __name__ == "__main__":
    place = Path(sys.argv[1])
    outcomes = claim(place, int(sys.argv[3])) if len(sys.argv) > 3 else explode(place)
    with Path(sys.argv[2]).open("w", encoding="utf-8") as out:
        for outcome in outcomes:
            out.write(json.dumps(outcome) + "\n")
            out.flush()
