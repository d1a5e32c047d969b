"""Small sound annotations in every format that is read, as bytes, with what is drawn in them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

from boltzformer_monai.io import Volume
from boltzformer_monai.io.segmentation import Segmentation
from tests.io.dicom_objects import FRAME_OF_REFERENCE, box_outline, write_rtstruct, write_seg
from tests.robustness.samples import Files

SHAPE = (8, 7, 5)
AFFINE = np.diag([-0.75, -0.875, 2.5, 1.0])
AFFINE[:3, 3] = 60.5, 20.25, 7.0
IMAGE = Volume(np.zeros(SHAPE, np.float32), AFFINE, "CT", "scan.nii", FRAME_OF_REFERENCE)
_BOXES = {1: (slice(1, 5), slice(1, 4), slice(1, 4)), 2: (slice(3, 7), slice(2, 6), slice(0, 3))}  # they overlap


def masks(*, overlap: bool = True) -> dict[int, np.ndarray]:
    """Return number → where that segment lies, bool (I, J, K)."""
    drawn = {number: np.zeros(SHAPE, bool) for number in _BOXES}
    for number, box in _BOXES.items():
        drawn[number][box] = True
    if not overlap:
        drawn[1] &= ~drawn[2]
    return drawn


def is_right(drawn: Segmentation, *, overlap: bool = True) -> bool:
    """Tell whether the segments are those that were spoiled."""
    segments = drawn.segments or {}
    return set(segments) == {"1", "2"} and all(
        np.array_equal(np.isin(drawn.volume.array, [int(value) for value in segments[str(number)].split("+")]), mask)
        for number, mask in masks(overlap=overlap).items()
    )


def seg(folder: Path, kind: str) -> Files:
    """Return a DICOM SEG, BINARY, FRACTIONAL or LABELMAP."""
    if kind == "LABELMAP":
        apart = masks(overlap=False)
        stored = {0: (apart[1] + 2 * apart[2]).astype(np.uint8)}
    else:
        stored = {number: mask.astype(np.uint8) * (1 if kind == "BINARY" else 200) for number, mask in masks().items()}
    return {"drawn.dcm": write_seg(folder / "drawn.dcm", stored, AFFINE, kind=kind).read_bytes()}


def rtstruct(folder: Path) -> Files:
    """Return an RTSTRUCT with a rectangle in each slice of two regions."""
    rois = {}
    for number, (columns, rows, slices) in _BOXES.items():
        low, high = (columns.start - 0.5, rows.start - 0.5), (columns.stop - 0.5, rows.stop - 0.5)
        rois[f"part {number}"] = [
            box_outline(low, high, AFFINE, across=2, position=index) for index in range(slices.start, slices.stop)
        ]
    return {"drawn.dcm": write_rtstruct(folder / "drawn.dcm", rois).read_bytes()}


def layers_nifti(_: Path, *, compressed: bool = False) -> Files:
    """Return a 4-D NIfTI whose layers overlap."""
    import nibabel

    image = nibabel.Nifti1Image(np.stack(list(masks().values()), axis=-1).astype(np.uint8), AFFINE)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    return {"drawn.nii.gz": gzip.compress(content, mtime=0)} if compressed else {"drawn.nii": content}


def slicer(_: Path, *, layered: bool = False, compressed: bool = False) -> Files:
    """Return a .seg.nrrd with names, of one layer or of one layer for each segment."""
    vectors = " ".join(f"({x!r},{y!r},{z!r})" for x, y, z in AFFINE[:3, :3].T.tolist())
    lines = ["NRRD0004", "type: unsigned char", f"dimension: {3 + layered}", "space: right-anterior-superior"]
    lines += [f"sizes: {'2 ' * layered}8 7 5", f"space directions: {'none ' * layered}{vectors}"]
    lines += [f"kinds: {'list ' * layered}domain domain domain", "endian: little"]
    lines += [f"encoding: {'gzip' if compressed else 'raw'}", "space origin: (60.5,20.25,7.0)"]
    for index in range(2):
        lines += [f"Segment{index}_Name:=part {index + 1}", f"Segment{index}_ID:=Segment_{index + 1}"]
        lines += [f"Segment{index}_LabelValue:={index + 1}", f"Segment{index}_Layer:={index if layered else 0}"]
    apart = masks(overlap=layered)
    array = np.stack([apart[1], 2 * apart[2]]) if layered else apart[1] + 2 * apart[2]
    voxels = array.astype(np.uint8).tobytes(order="F")
    voxels = gzip.compress(voxels, mtime=0) if compressed else voxels
    return {"drawn.seg.nrrd": "\n".join([*lines, "", ""]).encode() + voxels}


SOUND: dict[str, tuple[Callable[[Path], Files], bool]] = {
    "SEG binary": (lambda folder: seg(folder, "BINARY"), True),
    "SEG fractional": (lambda folder: seg(folder, "FRACTIONAL"), True),
    "SEG label map": (lambda folder: seg(folder, "LABELMAP"), False),
    "RTSTRUCT": (rtstruct, True),
    "nifti": (layers_nifti, True),
    "nifti.gz": (lambda folder: layers_nifti(folder, compressed=True), True),
    "seg.nrrd": (slicer, False),
    "seg.nrrd gzip": (lambda folder: slicer(folder, compressed=True), False),
    "seg.nrrd layers": (lambda folder: slicer(folder, layered=True), True),
}
"""Name → what makes its files (given a folder to work in), and whether its segments overlap."""
