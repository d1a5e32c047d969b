"""Spoiled NIfTI, NRRD and MetaImage files: each reads as a sound volume or is refused in one line, and nothing else.

Where the spoiling cannot touch the voxels or their place, what is read must be right; where it takes voxels away or
makes the header claim others, the file must be refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from boltzformer_monai.io import Volume
from tests.robustness.explore import CUTS, FLIPS, explore, flipped, put, sizes
from tests.robustness.judge import judge
from tests.robustness.samples import AFFINE, ARRAY, Files, metaimage, nifti, nrrd

EXAMPLES = sizes(cut=20, flip=25, field=150, line=80, stream=25)
"""Spoiled inputs for each parameter of the tests below."""

SOUND: dict[str, Callable[[], Files]] = {
    "nifti1": nifti,
    "nifti1.gz": lambda: nifti(compressed=True),
    "nifti1 pair": lambda: nifti(pair=True),
    "nifti2": lambda: nifti(version=2, codes=(0, 1)),
    "nifti2.gz": lambda: nifti(version=2, compressed=True, codes=(1, 0)),
    "nrrd": nrrd,
    "nrrd gzip": lambda: nrrd(compressed=True),
    "nhdr": lambda: nrrd(detached=True),
    "nhdr gzip": lambda: nrrd(detached=True, compressed=True),
    "mha": metaimage,
    "mha zlib": lambda: metaimage(compressed=True),
    "mhd": lambda: metaimage(detached=True),
}
COMPRESSED = [name for name in SOUND if name.endswith(("gz", "gzip", "zlib"))]
ONE_FILE = [name for name in SOUND if name not in ("nifti1 pair", "nhdr", "nhdr gzip", "mhd")]


def is_right(volume: Volume) -> bool:
    """Tell whether the scan is the one that was spoiled."""
    return np.array_equal(volume.array, ARRAY) and np.allclose(volume.affine, AFFINE, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SOUND)
def test_the_unspoiled_scan_is_right(name: str, tmp_path: Path) -> None:
    volume = judge(put(SOUND[name](), tmp_path))
    assert volume is not None
    assert is_right(volume)


@pytest.mark.parametrize("name", SOUND)
def test_a_file_cut_off_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    files = SOUND[name]()

    def examine(drawn: tuple[int, float]) -> None:
        which, share = drawn
        victim = list(files)[which % len(files)]
        shorter = {key: content[: int(share * len(content))] if key == victim else content
                   for key, content in files.items()}  # fmt: skip
        volume = judge(put(shorter, tmp_path))
        detached_header = victim.endswith((".nhdr", ".mhd"))  # its end may be a line that is not needed
        assert volume is None or (detached_header and is_right(volume))

    explore(st.tuples(st.integers(0, 1), CUTS), EXAMPLES["cut"], examine)


@pytest.mark.parametrize("name", SOUND)
def test_changed_bytes_anywhere(name: str, tmp_path: Path) -> None:
    files = SOUND[name]()
    first = next(iter(files))

    def examine(flips: list[tuple[float, int]]) -> None:
        # Mostly the header: what is changed among raw voxels is another scan.
        judge(put(files | {first: flipped(files[first], flips, end=min(len(files[first]), 600))}, tmp_path))

    explore(FLIPS, EXAMPLES["flip"], examine)


@pytest.mark.parametrize("name", COMPRESSED)
def test_changed_bytes_of_a_compressed_stream_do_not_go_unnoticed(name: str, tmp_path: Path) -> None:
    files = SOUND[name]()
    last = list(files)[-1]
    start = max(files[last].find(b"\n\n") + 2, files[last].find(b"LOCAL\n") + 6) if name in ONE_FILE else 0
    start = 0 if last.endswith(".nii.gz") else start

    def examine(flips: list[tuple[float, int]]) -> None:
        volume = judge(put(files | {last: flipped(files[last], flips, start=start)}, tmp_path))
        assert volume is None or is_right(volume)  # there is a checksum

    explore(FLIPS, EXAMPLES["stream"], examine)


_HUGE, _BAD = [60000, 32767, 2**31, 2**62], [0, -1, -32768]
_NOT_LENGTHS = [float("nan"), float("inf"), -float("inf")]
_LENGTHS = [*_NOT_LENGTHS, 0.0, -1.0, 1e30, 1e-30]
NIFTI_FIELDS: list[tuple[str, int | None, list[float], bool]] = [
    # field, element, values, whether the file must be refused
    *[("dim", axis, [*_HUGE, *_BAD], True) for axis in (1, 2, 3)],
    *[("dim", axis, [1.0, 5.0, 12.0], False) for axis in (1, 2, 3)],
    ("dim", 0, [-1, 0, 1, 2, 8, 300], True),
    ("dim", 0, [4, 5, 6, 7], False),
    *[("pixdim", axis, _LENGTHS, False) for axis in (0, 1, 2, 3, 4)],
    *[(row, axis, _NOT_LENGTHS, True) for row in ("srow_x", "srow_y", "srow_z") for axis in range(4)],
    *[(row, axis, [0.0, 1e30, -40.0], False) for row in ("srow_x", "srow_y", "srow_z") for axis in range(4)],
    *[(f"quatern_{letter}", None, [*_LENGTHS, 0.5], False) for letter in "bcd"],
    *[(f"qoffset_{letter}", None, [*_LENGTHS, 50.0], False) for letter in "xyz"],
    ("datatype", None, [0, 1, 2, 8, 16, 32, 64, 128, 255, 256, 768, 1024, 1536, 2048, 2304, 999, -1], True),
    ("bitpix", None, [1, 8, 24, 32, -16, 32767], True),
    ("vox_offset", None, [*_NOT_LENGTHS, -1.0, 100.0, 348.0, 1e9, 1e30], False),
    ("scl_slope", None, [float("inf"), 1e38], False),
    ("scl_inter", None, [float("inf"), float("nan")], False),
    ("sform_code", None, [0, 99, -1], True),
    ("sform_code", None, [2, 3, 4, 5], False),
    ("qform_code", None, [0, 1, 2, 4], False),
    ("xyzt_units", None, [0, 1, 3, 2, 8, 255], False),
    ("magic", None, [0, 1], True),
    ("sizeof_hdr", None, [0, 347, 2**31 - 1, -1], True),
    ("intent_code", None, [1007, 3006, -1], False),
]


@pytest.mark.parametrize("version", [1, 2])
def test_nonsense_in_a_nifti_header(version: int, tmp_path: Path) -> None:
    import nibabel

    sound = nifti(version=version, codes=(1, 0))["scan.nii"]
    kind = (nibabel.Nifti1Header, nibabel.Nifti2Header)[version - 1]
    length = (348, 540)[version - 1]

    def examine(drawn: tuple[tuple[str, int | None, list[float], bool], int, bool]) -> None:
        (field, axis, values, refused), which, compressed = drawn
        value = values[which % len(values)]
        header = kind(sound[:length], check=False)
        data = header.structarr
        if field == "magic":
            data[field] = b"" if value else b"n+9"
        elif axis is None:
            data[field] = _cast(value, data[field].dtype)
        else:
            data[field][axis] = _cast(value, data[field].dtype)
        content = header.binaryblock + sound[length:]
        import gzip

        name = "scan.nii.gz" if compressed else "scan.nii"
        volume = judge(put({name: gzip.compress(content, 1) if compressed else content}, tmp_path))
        assert not (refused and volume is not None), (field, axis, value)
        if volume is not None and field.startswith(("pixdim", "quatern", "qoffset", "intent", "xyzt")):
            assert is_right(volume)  # the sform alone says where the voxels lie

    explore(st.tuples(st.sampled_from(NIFTI_FIELDS), st.integers(0, 99), st.booleans()), EXAMPLES["field"], examine)


def _cast(value: float, dtype: np.dtype) -> np.ndarray:
    """Return the value in a field's type, wrapped or cut to what the type holds."""
    if dtype.kind in "iu":
        whole, bits = int(value) if np.isfinite(value) else 0, 8 * dtype.itemsize
        wrapped = whole if dtype.itemsize == 8 else max(min(whole, 2 ** (bits - 1) - 1), -(2 ** (bits - 1)))
        return np.array(wrapped % 2**bits, dtype=f"u{dtype.itemsize}").view(f"i{dtype.itemsize}").astype(dtype)
    return np.array(value).astype(dtype)


_NONSENSE = ["", "0", "-1", "nan", "inf", "1e400", "60000 60000 60000", "13 17", "13 17 19 2", "9" * 30, "none", "%d"]
_NONSENSE += [
    "raw",
    "gzip",
    "bzip2",
    "ascii",
    "hex",
    "double",
    "uchar",
    "block",
    "MET_DOUBLE",
    "MET_FLOAT_ARRAY",
    "LIST",
]
_NONSENSE += ["(1,0,0) (0,1,0)", "(1,0,0) (1,0,0) (0,0,1)", "(nan,0,0) (0,1,0) (0,0,1)", "none (1,0,0) (0,1,0)", "True"]
_NONSENSE += [
    "(0,0,0)",
    "(0,0)",
    "scanner-xyz",
    "left-anterior-superior",
    '"m" "m" "m"',
    "1 0 0 0 1 0 0 0 0",
    "x" * 5000,
]
_NONSENSE += [
    "nan 1 1",
    "0 1 1",
    "-1 1 1",
    "1 1",
    "../../etc",
    "\0",
    "\xff\xfe",
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "big",
    "3",
]


@pytest.mark.parametrize("name", ["nrrd", "mha", "nhdr gzip", "mha zlib"])
def test_nonsense_in_a_text_header(name: str, tmp_path: Path) -> None:
    files = SOUND[name]()
    first = next(iter(files))
    mark = b"\n\n" if name == "nrrd" else b"LOCAL\n"
    end = files[first].find(mark) + len(mark) if name in ONE_FILE else len(files[first])
    header, rest = files[first][:end].decode(), files[first][end:]
    lines = [line for line in header.split("\n") if line]
    tail = "\n\n" if name == "nrrd" else "\n"

    def examine(drawn: tuple[int, str, str]) -> None:
        number, action, value = drawn
        changed = list(lines)
        number %= len(lines)
        if action == "drop":
            del changed[number]
        elif action == "double":
            changed.insert(number, changed[number])
        else:
            changed[number] = re.sub(r"([:=] ?).*", lambda match: match[1] + value, changed[number], count=1)
        content = ("\n".join(changed) + tail).encode("latin-1") + rest
        volume = judge(put(files | {first: content}, tmp_path))
        if volume is not None and not re.match(
            "space|Transform|Offset|ElementSpacing|type|Element|endian|B", lines[number]
        ):
            assert is_right(volume), lines[number]

    actions = st.sampled_from(["value"] * 8 + ["drop", "double"])
    explore(st.tuples(st.integers(0, 99), actions, st.sampled_from(_NONSENSE)), EXAMPLES["line"] // 2, examine)


@pytest.mark.parametrize("name", ["nifti1", "nifti1.gz", "nifti2.gz", "nrrd", "nrrd gzip", "mha", "mha zlib", "mhd"])
def test_a_small_file_that_claims_huge_voxels_costs_nothing(name: str, tmp_path: Path) -> None:
    """Refused before allocation: the peak of what Python and numpy hold stays small, and ITK is not asked."""
    import gzip
    import tracemalloc

    files = SOUND[name]()
    first = next(iter(files))
    content = files[first]
    if name.startswith("nifti"):
        raw = gzip.decompress(content) if name.endswith("gz") else content
        claim = struct.pack("<3h", 30000, 30000, 30000) if "1" in name[:6] else struct.pack("<3q", *[60000] * 3)
        place = 42 if "1" in name[:6] else 24
        raw = raw[:place] + claim + raw[place + len(claim) :]
        content = gzip.compress(raw) if name.endswith("gz") else raw
    else:
        content = content.replace(b"13 17 19", b"60000 60000 60000")
    tracemalloc.start()
    try:
        volume = judge(put(files | {first: content}, tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert volume is None
    assert peak < 20e6


@pytest.mark.parametrize("field", ["kinds: ", "space origin: ", "endian: ", "foo: "])
def test_a_long_nrrd_field_does_not_end_the_process(field: str, tmp_path: Path) -> None:
    """NrrdIO writes its complaint about it past the end of a buffer."""
    lines = [line for line in nrrd()["scan.nrrd"].split(b"\n\n")[0].split(b"\n") if not line.startswith(field.encode())]
    header = b"\n".join([*lines, field.encode() + b"9" * 5000, b"", b""])
    assert judge(put({"scan.nrrd": header + ARRAY.tobytes(order="F")}, tmp_path)) is None


def test_a_compressed_metaimage_without_its_size_is_refused(tmp_path: Path) -> None:
    """ITK inflates from the wrong byte and takes what it gets for voxels; a detached file is read rightly."""
    sound, detached = metaimage(compressed=True), metaimage(compressed=True, detached=True)
    for files in (sound, detached):
        first = next(iter(files))
        files[first] = re.sub(rb"CompressedDataSize = \d+\n", b"", files[first])
    assert judge(put(sound, tmp_path)) is None
    volume = judge(put(detached, tmp_path))
    assert volume is not None
    assert is_right(volume)


@pytest.mark.parametrize("unit", [4, 7, 256, 196352])
def test_a_unit_that_does_not_exist(unit: int, tmp_path: Path) -> None:
    import nibabel

    sound = nifti(version=2)["scan.nii"]
    header = nibabel.Nifti2Header(sound[:540], check=False)
    header.structarr["xyzt_units"] = unit
    assert judge(put({"scan.nii": header.binaryblock + sound[540:]}, tmp_path)) is None
