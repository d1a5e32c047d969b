"""The XML files of LIDC-IDRI: what each of the (mostly four) readers outlined in one chest CT.

A reader's nodule of 3 mm or more has ``characteristics`` and an outline (``roi``) in every slice it touches; smaller
nodules and other findings are marked by a point and are not read here. An outline is a closed chain of pixels
``(xCoord, yCoord)`` = (column, row), counted from 0 in the DICOM slice, and it is the first pixel OUTSIDE the nodule;
``inclusion`` FALSE marks a hole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from boltzformer_monai.errors import DatasetError, cannot_open, why
from boltzformer_monai.limits import TEXT_LIMIT, open_file

_ROOT = "LidcReadMessage"


@dataclass(frozen=True)
class Outline:
    """One outline of one reader in one slice.

    Attributes:
        image_uid: SOPInstanceUID of the slice, "" when not stated.
        z: position of the slice, mm (LPS), NaN when not stated.
        points: (column, row) of its pixels, in order.
        included: False for a hole.
    """

    image_uid: str
    z: float
    points: tuple[tuple[int, int], ...]
    included: bool = True


@dataclass(frozen=True)
class Readings:
    """One file: the series it is about ("" when not stated), and for each reader the outlines of all nodules >= 3 mm,
    nodule by nodule.
    """

    series: str
    readers: tuple[tuple[tuple[Outline, ...], ...], ...]


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds trees, but of no file with a DOCTYPE: its entities could fill the memory or read other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which no file of LIDC-IDRI has")


def read_readings(path: Path) -> Readings:
    """Read the reading sessions of a CT.

    Raises:
        DatasetError: the file cannot be read, is no such XML, or an outline lacks its coordinates; one line.
    """
    root = _parse(path)
    if _local(root) != _ROOT:
        raise DatasetError(f"{path}: is a {_local(root)[:80]}, not the {_ROOT} of a CT of LIDC-IDRI")
    try:
        readers = tuple(
            tuple(tuple(map(_outline, nodule.iterfind("{*}roi"))) for nodule in _nodules(session))
            for session in root.iterfind("{*}readingSession")
        )
    except (ValueError, OverflowError) as error:
        raise DatasetError(f"{path}: an outline cannot be understood ({error}); get the file again") from None
    return Readings(_series(root), readers)


def read_series_uid(path: Path) -> str:
    """Return the SeriesInstanceUID that a file is about; "" for one that is broken or not about a CT."""
    try:
        root = _parse(path)
    except DatasetError:
        return ""
    return _series(root) if _local(root) == _ROOT else ""


def fill_outline(outline: Outline, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels inside an outline, bool (columns, rows): without the outline itself.

    Raises:
        ValueError: the outline leaves the slice.
    """
    columns, rows = np.array(outline.points).T
    if min(columns.min(), rows.min()) < 0 or columns.max() >= shape[0] or rows.max() >= shape[1]:
        msg = f"an outline reaches pixel ({columns.max()}, {rows.max()}) of a slice of {shape[0]}x{shape[1]} pixels"
        raise ValueError(msg)
    mask = np.zeros(shape, bool)
    left, top = int(columns.min()), int(rows.min())
    size = (int(columns.max()) - left + 1, int(rows.max()) - top + 1)
    if min(size) < 3:  # nothing fits between two sides
        return mask
    chain = [(int(column) - left, int(row) - top) for column, row in outline.points]
    canvas = Image.new("1", size)
    draw = ImageDraw.Draw(canvas)
    draw.polygon(chain, fill=1)
    draw.line([*chain, chain[0]], fill=0)  # chains with gaps are closed on the way
    mask[left : left + size[0], top : top + size[1]] = np.array(canvas).T
    return mask


def _parse(path: Path) -> ElementTree.Element:
    try:
        with open_file(path, limit=TEXT_LIMIT) as file:
            return ElementTree.parse(file, ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:  # LookupError: unknown encoding
        if (closed := cannot_open(path, error)) is not None:
            raise DatasetError(str(closed)) from None
        raise DatasetError(f"{path}: cannot be read as XML ({why(error)}); get the file again") from None


def _local(element: ElementTree.Element) -> str:
    """Return the tag without its namespace, which a few tools drop."""
    return element.tag.rpartition("}")[2]


def _series(root: ElementTree.Element) -> str:
    return root.findtext("{*}ResponseHeader/{*}SeriesInstanceUid", "").strip()


def _nodules(session: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Yield a reader's nodules of 3 mm or more."""
    for nodule in session.iterfind("{*}unblindedReadNodule"):
        if any(len(rating) for rating in nodule.iterfind("{*}characteristics")):
            yield nodule


def _outline(roi: ElementTree.Element) -> Outline:
    edges = roi.iterfind("{*}edgeMap")
    points = tuple((int(edge.findtext("{*}xCoord", "")), int(edge.findtext("{*}yCoord", ""))) for edge in edges)
    if not points:
        raise ValueError("it has no edgeMap")
    z = roi.findtext("{*}imageZposition", "").strip()
    included = roi.findtext("{*}inclusion", "").strip().upper() != "FALSE"
    return Outline(roi.findtext("{*}imageSOP_UID", "").strip(), float(z) if z else float("nan"), points, included)
