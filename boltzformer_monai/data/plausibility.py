"""Plausibility of a scan's voxels: Hounsfield units in a CT, and the plane of acquisition.

Readers trust the header; these checks look at the voxels alone. They warn and never refuse, since a rare body part may
look unusual.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.planes import PLANE_AXES, slice_spacing, stack_shape
from boltzformer_monai.io.volume import Volume

__all__ = ["acquisition_plane", "hu_problem", "scan_caveats"]

_SAMPLE = 2_000_000  # voxels
_NOISE = 10.0  # HU; any CT has more contrast
_HU_RANGE = (-5000.0, 33000.0)  # from the darkest padding to metal on an extended scale
_GREY = 255.0
_GREY_SPREAD = 110.0  # fat to muscle in a soft-tissue window; soft tissue in HU without any fat rarely spans more
_PILE = 0.01  # share of the voxels
_OFFSET_TISSUE = (800.0, 1250.0)  # fat to contrast-filled blood, stored with an offset of 1000 or 1024
_DENSE = 300.0  # HU; only bone, calcium, metal and contrast are denser
_ANISOTROPIC = 1.8  # slice distance / pixel spacing of a stack of acquired slices
_THIN = 8  # or the ratio of pixels across to slices


def scan_caveats(volume: Volume, *, modality: str, planes: Sequence[str]) -> list[Caveat]:
    """Caveats about implausible voxels and unsuitable planes.

    Args:
        volume: the scan, (I, J, K) in the scanner's units.
        modality: assumed, ``"CT"`` or ``"MR"``; ``""`` where the values are windowed already.
        planes: to slice along.
    """
    found = []
    problem = hu_problem(volume.array) if modality == "CT" else ""
    if problem:
        text = f"the voxels do not look like Hounsfield units: {problem}; convert the scan to HU, or state its modality"
        found.append(Caveat("not HU", text))
    acquired = acquisition_plane(volume)
    if acquired is not None:
        for plane in planes:
            if plane != acquired:
                count, rows, columns = stack_shape(volume, plane)
                text = (
                    f"the scan was acquired in {acquired} slices, {slice_spacing(volume, acquired)[2]:.3g} mm apart; "
                    f"{plane} ones are {count} images of {rows} x {columns} pixels across them; "
                    f"take the plane {acquired}"
                )
                found.append(Caveat("acquisition plane", text))
    return found


def hu_problem(array: np.ndarray) -> str:
    """Why voxels (any shape) cannot be Hounsfield units; ``""`` if they can.

    Works without air: soft tissue lies around 0 to 100 HU, unless it was stored with an offset, scaled to 0…1 or
    windowed to 0…255.
    """
    values = _sample(array)
    lowest, highest = float(array.min()), float(array.max())
    if values.size == 0 or lowest == highest:
        return ""  # a single value is no evidence
    low, middle, high = (float(value) for value in np.percentile(values, (0.5, 50, 99.5)))
    if high - low <= _NOISE and abs(middle) <= _NOISE:
        return f"99 % of them lie between {low:.4g} and {high:.4g}, as after scaling to 0…1 or to unit variance"
    if middle > _HU_RANGE[1] or low < _HU_RANGE[0] or (lowest >= 0 and low > 2 * _OFFSET_TISSUE[1]):
        return f"half of them lie above {middle:.4g} and 0.5 % below {low:.4g}"
    if lowest >= 0 and highest <= _GREY and (high - low > _GREY_SPREAD or _clipped(values)):
        return f"all lie between {lowest:.4g} and {highest:.4g}, as after windowing to 8 bits"
    if low > -50 and lowest > -200:
        dense = values[values > _DENSE]
        tissue = np.count_nonzero((dense > _OFFSET_TISSUE[0]) & (dense < _OFFSET_TISSUE[1]))
        if dense.size > 0.05 * values.size and tissue > 0.65 * dense.size:
            around = f"tissue lies around {np.median(dense):.4g}"
            return f"none lies below {lowest:.4g}, and {around}, as stored before rescaling"
    return ""


def acquisition_plane(volume: Volume) -> str | None:
    """The plane of acquisition: voxels across it are further apart, or far fewer; None if its grid favours none."""
    planes = list(PLANE_AXES)
    spacing = [slice_spacing(volume, plane)[2] for plane in planes]
    count = [stack_shape(volume, plane)[0] for plane in planes]
    for measure, ratio in ((np.array(spacing), _ANISOTROPIC), (1 / np.array(count), float(_THIN))):
        order = np.argsort(measure)
        if measure[order[2]] >= ratio * measure[order[1]]:
            return planes[int(order[2])]
    return None


def _sample(array: np.ndarray) -> np.ndarray:
    """Every n-th voxel; n is odd, so that the samples do not stay in one column."""
    flat = array.ravel(order="K")
    return flat[:: max(1, flat.size // _SAMPLE) | 1]


def _clipped(values: np.ndarray) -> bool:
    """Whether a window has clipped many values to 0 or 255."""
    return bool(np.isin(values, (0, _GREY)).mean() > _PILE)
