"""Measure what is drawn on a scan: the lesions of every target of a label map, DICOM SEG or RTSTRUCT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from boltzformer_monai.findings.lesions import Lesion, acquisition_axis, label_lesions
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.io.volume import Volume

__all__ = ["MeasuredTarget", "measure_targets"]

_MOST_BOXES = 65535  # the largest label value whose box is noted: the list is as long


@dataclass(frozen=True, eq=False)
class MeasuredTarget:
    """A target and its lesions.

    Attributes:
        value: its label value, or the number of its segment or ROI; ``"1+3"`` for several that are one target.
        name: of the target; its value as text where nothing names it.
        voxels: of the target, all components.
        volume_ml: of the target.
        lesions: its components, the largest first.
        shape: of the scan, (I, J, K).
        box: of the scan that holds the lesions.
        inside: int32, of the box's shape: the number of each voxel's lesion, 0 elsewhere.
    """

    value: int | str
    name: str
    voxels: int
    volume_ml: float
    lesions: list[Lesion]
    shape: tuple[int, ...]
    box: tuple[slice, ...]
    inside: np.ndarray

    @classmethod
    def absent(cls, name: str, scan: Volume) -> MeasuredTarget:
        """A target that was looked for and not found."""
        return cls("", name, 0, 0.0, [], scan.shape, (slice(0, 0),) * 3, np.zeros((0, 0, 0), np.int32))

    @property
    def numbers(self) -> np.ndarray:
        """(I, J, K) int32, the number of each voxel's lesion, 0 elsewhere; made anew."""
        numbers = np.zeros(self.shape, np.int32)
        numbers[self.box] = self.inside
        return numbers

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "value": self.value,
            "name": self.name,
            "voxels": self.voxels,
            "volume_ml": self.volume_ml,
            "lesions": [lesion.as_dict() for lesion in self.lesions],
        }


def measure_targets(
    drawn: Segmentation, scan: Volume, *, minimum_ml: float = 0.0, minimum_mm: float = 0.0
) -> Iterator[MeasuredTarget]:
    """Measure one target after the other, in the order of their values; one is in memory at a time.

    Args:
        drawn: on the grid of the scan.
        scan: gives the intensities.
        minimum_ml: volume from which a component is a lesion.
        minimum_mm: largest diameter from which it is one.

    Raises:
        ConfigError: a limit is negative.
    """
    labels = drawn.volume.array
    voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
    boxes = _Boxes(labels)
    across = acquisition_axis(scan)
    for value, name, values in _targets(drawn):
        # Only where the target is: a label map may have a hundred organs, or a value for every lesion.
        box = boxes.around(values)
        part = labels[box]
        mask = part == values[0] if len(values) == 1 else np.isin(part, values)
        voxels = int(np.count_nonzero(mask))
        found, inside = label_lesions(mask, _cropped(scan, box), minimum_ml=minimum_ml, minimum_mm=minimum_mm)
        first = box[across].start
        lesions = [
            replace(each, axial_slice=each.axial_slice + first, slices=(each.slices[0] + first, each.slices[1] + first))
            for each in found
        ]
        volume_ml = float(f"{voxels * voxel_ml:.6g}")
        yield MeasuredTarget(value, name, voxels, volume_ml, lesions, labels.shape, box, inside)


class _Boxes:
    """Where the values of a label map lie.

    Args:
        labels: (I, J, K), unsigned.
    """

    def __init__(self, labels: np.ndarray) -> None:
        from scipy import ndimage

        self.shape = labels.shape
        self.known: Sequence[tuple[slice, ...] | None] | None = None
        if labels.max() <= _MOST_BOXES:
            turned = labels.flags.f_contiguous and not labels.flags.c_contiguous  # several times as quick
            found = ndimage.find_objects(labels.T if turned else labels)
            self.known = [None if box is None else box[::-1] for box in found] if turned else found

    def around(self, values: Sequence[int]) -> tuple[slice, ...]:
        """The box of some values and a voxel around it, so that only what lies at the scan's edge lies at its own."""
        if self.known is None:
            return tuple(slice(0, length) for length in self.shape)
        boxes = [box for value in values if 0 < value <= len(self.known) and (box := self.known[value - 1]) is not None]
        if not boxes:
            return (slice(0, 1),) * 3
        return tuple(
            slice(max(0, min(each.start for each in along) - 1), min(length, max(each.stop for each in along) + 1))
            for along, length in zip(zip(*boxes, strict=True), self.shape, strict=True)
        )


def _cropped(scan: Volume, box: tuple[slice, ...]) -> Volume:
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [axis.start for axis in box]
    return replace(scan, array=scan.array[box], affine=affine)


def _targets(drawn: Segmentation) -> list[tuple[int | str, str, list[int]]]:
    """(value as the user knows it, name, label values) of each target."""
    names: Mapping[str, str] = drawn.names or {}
    found: dict[str, tuple[str, list[int]]] = {}
    if drawn.segments is None:
        for text, name in names.items():
            found[text] = name, [int(value) for value in text.split("+")]
        named = {value for _, values in found.values() for value in values}
        for value in np.unique(drawn.volume.array).tolist():
            if value and value not in named:
                found[str(value)] = str(value), [value]
    else:
        grouped = {number for text in drawn.renamed for number in text.split("+")}
        for text, name in drawn.renamed.items():
            values = [int(value) for number in text.split("+") for value in _values(drawn.segments.get(number))]
            found[text] = name, values
        for number, text in drawn.segments.items():
            if number not in grouped:
                found[number] = drawn.titles.get(number) or number, [int(value) for value in text.split("+")]
    ordered = sorted(found.items(), key=lambda item: [int(number) for number in item[0].split("+")])
    return [(int(text) if text.isdigit() else text, name, values) for text, (name, values) in ordered]


def _values(text: str | None) -> list[str]:
    return text.split("+") if text else []
