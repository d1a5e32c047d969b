"""Pixel padding (PixelPaddingValue): what fills an image outside the scanner's field of view.

Its number may be anything: -2000 in a CT (3024 HU below water), the highest value of all in an MR. It is compared with
the stored values, before any rescaling, and becomes the darkest measured value of the volume: the lowest, or the
highest where low values are shown bright. So no window, percentile or interpolation meets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.bits import PixelBits

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PADDING_TAGS = ("PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue",
                "FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingValue",
                "DoubleFloatPixelPaddingRangeLimit")  # fmt: skip


def padding_mask(
    cells: np.ndarray, values: np.ndarray, bits: PixelBits | None, dataset: Dataset, path: Path
) -> np.ndarray | None:
    """Tell which pixels are padding.

    Args:
        cells: of any shape, as they were decoded.
        values: the stored values in them, before rescaling.
        bits: where the values lie in the cells; None for floats.
        dataset: the header.
        path: of the file, for messages.

    Returns:
        Booleans of the same shape; None where the header states no padding or none of it occurs.

    Raises:
        VolumeError: the header states padding that is no number.
    """
    kind = {"f4": "FloatPixel", "f8": "DoubleFloatPixel"}.get(values.dtype.str[1:], "Pixel")
    value, limit = dataset.get(f"{kind}PaddingValue"), dataset.get(f"{kind}PaddingRangeLimit")
    if value in (None, "", b""):
        return None
    try:
        first = _number(value, bits)
        other = first if limit in (None, "", b"") else _number(limit, bits)
    except (TypeError, ValueError) as error:
        msg = f"{path}: its PixelPaddingValue or PixelPaddingRangeLimit is no number; the header is damaged"
        raise VolumeError(msg, reason="damaged") from error
    low, high = min(first, other), max(first, other)
    if bits is not None and not bits.holds(np.array([low, high])).all():
        values = bits.whole.values(cells)  # it can be there only as a cell of which the header cuts off the top
    mask = values == low if low == high else (values >= low) & (values <= high)
    return mask if mask.any() else None


def fill_padding(stack: np.ndarray, padding: np.ndarray, where: str, *, inverted: bool = False) -> tuple[Caveat, ...]:
    """Give padding the measured value that is shown darkest, in place.

    Padding below or above everything measured is certain. Some exporters state a value that tissue takes too (0 in a CT
    that is stored in HU); of that only what reaches the edge of its slice is padding, and the rest is left as measured.

    Args:
        stack: (slices, rows, columns), rescaled.
        padding: booleans of the same shape, at least one of them true.
        where: the path, for the message.
        inverted: the values will be turned over, so that the highest becomes the lowest.

    Raises:
        VolumeError: there is nothing but padding.
    """
    if padding.all():
        msg = f"{where}: has no pixels but padding (PixelPaddingValue), so nothing was measured; leave it out"
        raise VolumeError(msg, reason="damaged")
    lowest = float(np.min(stack, where=~padding, initial=np.inf))
    highest = float(np.max(stack, where=~padding, initial=-np.inf))
    values = stack[padding]
    count, kept = values.size, 0
    if values.max() >= lowest and values.min() <= highest:
        for plane, mask in zip(stack, padding, strict=True):
            mask &= _reaching_the_edge(mask) | (plane < lowest) | (plane > highest)
        kept = count - int(np.count_nonzero(padding))
    stack[padding] = highest if inverted else lowest
    caveats = []
    if count > kept:
        text = f"{count - kept} voxels are padding (PixelPaddingValue) and got the lowest measured value, {lowest:g}"
        text += ", of the scan turned over" if inverted else ""
        caveats.append(Caveat("padding", text))
    if kept:
        text = f"{kept} voxels inside the slices have the value that the header calls padding (PixelPaddingValue), and "
        text += "were kept as measured; look at the scan"
        caveats.append(Caveat("padding value in tissue", text))
    return tuple(caveats)


def _number(value: Any, bits: PixelBits | None) -> float | int:
    """Return a padding value as a number that a cell can hold.

    Its VR follows PixelRepresentation, but writers mistake one for the other: 63536 for -2000 in 16 bits.
    """
    if bits is None:
        return float(value)
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    size = 1 << bits.whole.stored
    if bits.signed and number >= size // 2:
        return number - size
    return number + size if number < 0 and not bits.signed else number


def _reaching_the_edge(mask: np.ndarray) -> np.ndarray:
    """Return the parts of a mask (rows, columns) that are connected with the edge of the slice."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return np.isin(parts, edge[edge > 0])
