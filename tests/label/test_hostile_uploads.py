"""Uploads that want the server's memory or time: it keeps both."""

from __future__ import annotations

import functools
import gzip
import io
import struct
import threading
import time
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pydicom
import pytest
from pydicom.uid import CTImageStorage, RLELossless, generate_uid

from tests.needs import need_module

need_module("monailabel")

from tests.label.fuzz_files import broken_files  # noqa: E402
from tests.label.live_server import running  # noqa: E402
from tests.sizes import count  # noqa: E402

_SEED = 20_261_129
_COUNT, _PARALLEL = count(85, thorough=400), 8
_MEMORY = 3 * 10**9
_PROMPT_S = 2.0
# Counting what a bomb unfolds into ends here, so this is what the test waits for. The bombs themselves stay large: of
# 1 GB each, those of one byte a voxel take 4 to 5 GB to read, so that one of them is more than _MEMORY for a reader
# without a limit. (Ours has one of its own: either refuses them, and this test does not tell which.)
_UPLOAD_MB = 96


@functools.cache
def _zeros(megabytes: int) -> bytes:
    """One gzip stream, as all readers take it, in no time: its blocks know nothing of each other."""
    zeros = bytes(64 << 20)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)
    count, check = megabytes // 64, 0
    for _ in range(count):
        check = zlib.crc32(zeros, check)
    header, end = b"\x1f\x8b\x08\0\0\0\0\0\0\xff", zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    return header + block * count + end + struct.pack("<II", check, (megabytes << 20) & 0xFFFFFFFF)


def _nifti_header(shape: tuple[int, int, int], code: int, bits: int) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352)
    header[123] = 2
    struct.pack_into("<h", header, 254, 1)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    return bytes(header)


def _rle(rows: int, columns: int) -> bytes:
    """A slice of some hundred bytes that claims to be of any size."""
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=["a"])
    data.SeriesInstanceUID = data.StudyInstanceUID = data.FrameOfReferenceUID = generate_uid(entropy_srcs=["b"])
    data.Modality, data.PatientID, data.InstanceNumber = "CT", "X", 1
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = [1, 1], 1
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    segment = bytes([129, 0]) * 40
    frame = struct.pack("<16I", 2, 64, 64 + len(segment), *([0] * 13)) + segment * 2
    data.PixelData = pydicom.encaps.encapsulate([frame])
    data["PixelData"].is_undefined_length = True
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = RLELossless
    data.is_little_endian, data.is_implicit_VR = True, False
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, write_like_original=False)
    return file.getvalue()


def _zip(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def _hostile(random: Random) -> list[tuple[str, bytes]]:
    """Ending and content: first what unfolds or claims much, then what is cut off, damaged or no scan."""
    nrrd = (
        "NRRD0004\ntype: {}\ndimension: 3\nspace: left-posterior-superior\nsizes: {}\nencoding: gzip\nendian: little\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    )
    mha = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        "Offset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = {}\nElementType = {}\n"
        "CompressedDataSize = {}\nElementDataFile = LOCAL\n"
    )
    # It may be taken.
    sound = gzip.compress(_nifti_header((512, 512, 256), 2, 8), 1) + _zeros(64)
    files = [
        (".nii.gz", gzip.compress(_nifti_header((512, 512, 256), 4, 16), 1) + _zeros(128)),
        (".nii.gz", gzip.compress(_nifti_header((512, 512, 512), 64, 64), 1) + _zeros(1024)),
        (".nii.gz", gzip.compress(_nifti_header((1024, 1024, 1024), 2, 8), 1) + _zeros(1024)),
        (".nii.gz", gzip.compress(_nifti_header((2048, 2048, 2048), 16, 32), 1) + _zeros(1024) * 2),
        (".nii.gz", gzip.compress(_nifti_header((4, 4, 4), 2, 8), 1) + _zeros(1024) * 3),
        (".nii", _nifti_header((32767, 32767, 32767), 64, 64)),
        (".nrrd", nrrd.format("double", "512 512 512").encode() + _zeros(1024)),
        (".nrrd", nrrd.format("uchar", "1024 1024 1024").encode() + _zeros(1024)),
        (".mha", mha.format("512 512 512", "MET_DOUBLE", len(_zeros(1024))).encode() + _zeros(1024)),
        (".mha", mha.format("99999 99999 99999", "MET_DOUBLE", len(_zeros(64))).encode() + _zeros(64)),
        (".dcm", _rle(65535, 65535)),
        (".zip", _zip("a.dcm", _rle(65535, 65535))),
        (".zip", _zip("a.nii", bytes(256 << 20))),
        (".nhdr", nrrd.format("short", "4 4 4").encode()),
        (".mhd", mha.format("4 4 4", "MET_SHORT", 0).encode()),
        (".hdr", _nifti_header((4, 4, 4), 2, 8)),
        (".nii.gz", sound),
    ]
    small = broken_files(random, ["/etc/passwd"])
    return [random.choice(small) if number % 5 else files[number // 5 % len(files)] for number in range(_COUNT)]


def _mapped_files(process: int) -> int:
    """Bytes of a process's address space that show files: the libraries, for PyTorch with CUDA 3.5 GB by themselves."""
    total = 0
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        place, _, _, _, inode, *_ = line.split()
        start, end = (int(number, 16) for number in place.split("-"))
        total += (end - start) * (inode != "0")
    return total


@pytest.mark.slow
def test_hostile_uploads_neither_fill_the_memory_nor_hold_up_others(
    checkpoint: Path, studies: Path, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/maps").exists():
        pytest.skip("the address space is read from /proc")
    copies = tmp_path / "studies"
    copies.mkdir()
    (copies / "scan_0.nii.gz").write_bytes((studies / "scan_0.nii.gz").read_bytes())
    files = _hostile(Random(_SEED))
    conf = {"checkpoint": checkpoint, "modality": "CT", "upload_mb": _UPLOAD_MB}
    with running(copies, tmp_path, conf, serve=True) as server:
        limit = _MEMORY + _mapped_files(server.process.pid)
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (limit, limit))
        waits: list[float] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                before = time.monotonic()
                assert server.get("/info/").status == 200
                waits.append(time.monotonic() - before)
                done.wait(0.05)

        def upload(number: int) -> int:
            ending, content = files[number]
            file = tmp_path / f"{number}{ending}"
            file.write_bytes(content)
            try:
                if number % 5:
                    return server.form("PUT", f"/datastore/image?image=hostile_{number}", {}, {"file": file}).status
                path = "/datastore/label?image=scan_0&tag=mine"
                return server.form("PUT", path, {"params": {}}, {"label": file}).status
            finally:
                file.unlink()

        with ThreadPoolExecutor(_PARALLEL + 1) as threads:
            asking = threads.submit(ask)
            try:
                statuses = Counter(threads.map(upload, range(_COUNT)))
            finally:
                done.set()
            asking.result()
        assert server.process.poll() is None
        assert set(statuses) <= {200, 400, 413, 415, 422}, statuses
        assert statuses[200] < _COUNT // 10
        assert len(waits) > 20
        assert max(waits) < _PROMPT_S, sorted(waits)[-5:]
        assert server.infer("scan_0", prompts=["liver"]).json()["findings"]
