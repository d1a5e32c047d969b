"""DICOM SEG: frames of binary, fractional or label-map segments, put on the slices of the image they were drawn on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import grids
from boltzformer_monai.io.dicom.bits import PixelBits
from boltzformer_monai.io.dicom.claims import COPIES, check_compressed_claim
from boltzformer_monai.io.dicom.files import damage_as_volume_error
from boltzformer_monai.io.dicom.frames import FrameGeometry, frame_geometries
from boltzformer_monai.io.dicom.open import read_dicom
from boltzformer_monai.io.dicom.pixels import stored_values
from boltzformer_monai.io.label_layers import FlatSegments, Layer, flatten_layers
from boltzformer_monai.io.orientation import LPS_TO_RAS
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.limits import require_room

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

_SIDES = ("left", "right")


@dataclass(frozen=True)
class _Header:
    """What is needed of a SEG before its pixels; ``segment_of`` has a number per frame, None in a label map."""

    path: Path
    titles: Mapping[int, str]
    frames: list[FrameGeometry]
    segment_of: list[int] | None
    rows: int
    columns: int
    threshold: float


def read_dicom_seg(path: Path, image: Volume, *, tolerance: float = grids.GRID_TOLERANCE) -> FlatSegments:
    """Read a DICOM SEG on the grid of an image.

    Frames are found by their position; a slice without a frame is empty. A voxel of a fractional segment belongs to it
    from half of the MaximumFractionalValue on. A segment's name is its SegmentLabel, else its SegmentDescription, else
    what its property type means; "left" or "right" from the type's modifier goes before a name that does not say it.

    Args:
        path: of the SEG.
        image: the image; its grid and frame of reference decide.
        tolerance: how far, as a share of a voxel, a frame may lie from the image's voxels.

    Raises:
        VolumeError: damaged or truncated, another frame of reference than the image's, or a frame that is not a slice
            of the image.
    """
    with damage_as_volume_error(path, "cannot be read as DICOM SEG"):
        dataset = read_dicom(path)
        header = _parse(path, dataset)
        frame_of_reference = str(dataset.get("FrameOfReferenceUID") or "")
    grids.check_frame_of_reference(path, frame_of_reference, image)
    # All places before any pixel: a grid that fits the image bounds what is decoded.
    places = [_place(header, index, image, tolerance=tolerance) for index in range(len(header.frames))]
    flat = flatten_layers(image.shape, header.titles, _layers(header, dataset, places))
    worst = max((place.off for place in places), key=lambda off: off.voxels, default=grids.Misfit())
    return replace(flat, caveats=worst.caveat())


def _parse(path: Path, dataset: Dataset) -> _Header:
    kind = str(dataset.SegmentationType)
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        msg = f"{path}: its SegmentationType {kind!r} is not read; export it as a binary DICOM SEG"
        raise VolumeError(msg, reason="unsupported format")
    titles = {int(segment.SegmentNumber): _title(segment) for segment in dataset.SegmentSequence}
    if kind == "LABELMAP":
        titles.pop(0, None)  # the background
    frames = frame_geometries(dataset)
    segment_of = None if kind == "LABELMAP" else _frame_segments(dataset, len(frames))
    if not titles or not set(segment_of or ()) <= set(titles):
        msg = f"{path}: its frames show segments that its SegmentSequence does not list; the header is damaged"
        raise VolumeError(msg, reason="damaged")
    threshold = 0.5 * float(dataset.get("MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 0.5
    return _Header(path, titles, frames, segment_of, int(dataset.Rows), int(dataset.Columns), threshold)


def _frame_segments(dataset: Dataset, frames: int) -> list[int]:
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    numbers = []
    for group in dataset.get("PerFrameFunctionalGroupsSequence") or [shared[0]] * frames:
        macro = group if "SegmentIdentificationSequence" in group else shared[0]
        numbers.append(int(macro.SegmentIdentificationSequence[0].ReferencedSegmentNumber))
    return numbers


def _title(segment: Dataset) -> str:
    types = segment.get("SegmentedPropertyTypeCodeSequence") or []
    meaning = str(types[0].get("CodeMeaning") or "") if types else ""
    texts = [str(segment.get(name) or "").strip() for name in ("SegmentLabel", "SegmentDescription")]
    title = next((text for text in (*texts, meaning.strip()) if text), "")
    modifiers = types[0].get("SegmentedPropertyTypeModifierCodeSequence") or [] if types else []
    side = next((text for text in (str(code.get("CodeMeaning") or "").strip().lower() for code in modifiers)
                 if text in _SIDES), "")  # fmt: skip
    return f"{side} {title}" if side and title and not any(word in title.lower() for word in _SIDES) else title


def _place(header: _Header, index: int, image: Volume, *, tolerance: float) -> grids.Place:
    """Return the slice of the image that a frame shows."""
    frame = header.frames[index]
    what = f"{header.path}: frame {index + 1}"
    if frame.position is None or frame.cosines is None or frame.pixel_spacing is None:
        msg = f"{what} has no usable position, orientation or pixel spacing, so its place in the patient is unknown"
        raise VolumeError(msg, reason="no geometry")
    row, column = frame.directions
    affine = np.eye(4)
    affine[:3, 0] = LPS_TO_RAS * row * frame.pixel_spacing[1]
    affine[:3, 1] = LPS_TO_RAS * column * frame.pixel_spacing[0]
    affine[:3, 3] = LPS_TO_RAS * frame.position
    axes = grids.in_plane_axes(affine[:3, :2], image)
    if axes is None:
        msg = f"{what} does not lie along the slices of the image; resample it to the image first"
        raise VolumeError(msg, reason="grid")
    affine[:3, 2] = image.affine[:3, axes[2]]
    place = grids.find_place(affine, (header.columns, header.rows, 1), image, what=what, tolerance=tolerance)
    if not grids.inside(place, image):
        raise VolumeError(f"{what} lies outside the image; pass the scan that it was drawn on, in full", reason="grid")
    return place


def _layers(header: _Header, dataset: Dataset, places: list[grids.Place]) -> Iterator[Layer]:
    unlisted: set[int] = set()
    for index, stored in enumerate(_stored_frames(header, dataset)):
        place = places[index]
        plane = place.axes.apply(stored.T[:, :, None])
        if header.segment_of is not None:
            yield Layer(header.segment_of[index], plane >= header.threshold, place.corner)
            continue
        for number in np.unique(plane[plane != 0]):
            if int(number) in header.titles:
                yield Layer(int(number), plane == number, place.corner)
            else:
                unlisted.add(int(number))
    if unlisted:
        msg = f"{header.path}: its SegmentSequence does not list the segments {sorted(unlisted)[:9]} that it shows"
        raise VolumeError(msg, reason="damaged")


def _stored_frames(header: _Header, dataset: Dataset) -> Iterator[np.ndarray]:
    """Yield the stored values of the frames, (rows, columns).

    Uncompressed frames are unpacked one by one: a hundred segments of a large scan are gigabytes as bytes, and the
    bits of binary frames follow each other without padding.
    """
    size, frames = header.rows * header.columns, None
    with damage_as_volume_error(header.path, "its frames cannot be decoded", reason="truncated"):
        bits = PixelBits.of(dataset, header.path)
        if int(dataset.get("SamplesPerPixel", 1)) != 1 or bits.allocated > 16:
            raise ValueError(f"it has {bits.allocated} bits per value or several samples per pixel, which no SEG has")
        if _is_compressed_or_big_endian(dataset):
            check_compressed_claim(dataset, header.path)
            require_room(size * len(header.frames), COPIES * max(1, bits.allocated // 8), header.path)
            frames = stored_values(dataset, header.path)
    for index in range(len(header.frames)):
        with damage_as_volume_error(header.path, f"its frame {index + 1} cannot be decoded", reason="truncated"):
            if frames is not None:
                stored = frames[index]
            else:
                first, end = index * size * bits.allocated, (index + 1) * size * bits.allocated
                part = np.frombuffer(dataset.PixelData, np.uint8)[first // 8 : -(-end // 8)]
                if bits.allocated == 1:
                    stored = np.unpackbits(part, bitorder="little")[first % 8 :][:size]
                else:
                    stored = bits.values(part.view(bits.dtype.newbyteorder("<")))
            stored = stored.reshape(header.rows, header.columns)
        yield stored


def _is_compressed_or_big_endian(dataset: Any) -> bool:
    syntax = dataset.file_meta.get("TransferSyntaxUID") if "file_meta" in dir(dataset) else None
    return syntax is not None and (syntax.is_compressed or not syntax.is_little_endian)
