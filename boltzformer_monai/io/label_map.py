"""Label maps: whole numbers on the grid of a scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.grids import GRID_TOLERANCE, check_grid_tolerance, misfit
from boltzformer_monai.io.orientation import signed_permutation
from boltzformer_monai.io.volume import Volume

_UNSCALED = 1e-3  # of 1: what is left of whole numbers up to 131 that a writer scaled into 16 bits


def reorient_label(label: Volume, image: Volume, *, tolerance: float = GRID_TOLERANCE) -> Volume:
    """Bring a label map to the axis order of its image; the grids must already be the same in the patient.

    Nothing is resampled. A label of the same physical grid stored in another axis order or flip is permuted and
    flipped; the result carries the image's affine, and a caveat where the grids were not quite the same.

    Raises:
        VolumeError: the two grids differ anywhere by more than ``tolerance``, see :data:`.grids.GRID_TOLERANCE`, or in
            their number of voxels.
        ConfigError: the tolerance is out of range.
    """
    check_grid_tolerance(tolerance)
    axes = signed_permutation((np.linalg.inv(image.affine) @ label.affine)[:3, :3])
    if axes is not None and axes.apply(label.array).shape == image.shape:
        found = misfit(axes.apply_to_affine(label.affine, label.shape), image.affine, image.shape)
        if found.voxels <= tolerance:
            array = axes.apply(label.array).copy(order="K")
            return replace(label, array=array, affine=image.affine, caveats=(*label.caveats, *found.caveat()))
        difference = f"they lie up to {found} apart"
    else:
        difference = "their axes or voxel counts differ"
    msg = (
        f"label {label.source or '(no path)'} is not on the grid of its image {image.source or '(no path)'}: "
        f"{difference} (label {_describe(label)}, image {_describe(image)}); resample the label to the image first"
    )
    raise VolumeError(msg, reason="grid")


def as_label_values(array: np.ndarray, where: str) -> np.ndarray:
    """Return label values of any type as the smallest of uint8, uint16 and uint32 that holds them.

    Raises:
        VolumeError: a value is not a whole number of at least 0; ``where`` names the file.
    """
    if array.dtype.kind == "f":  # some writers scale whole numbers, which leaves rounding errors
        with np.errstate(invalid="ignore"):  # false for NaN and infinity as well
            for slab in slabs(array):
                whole = np.abs(slab - np.rint(slab)) <= _UNSCALED
                if not whole.all():
                    msg = (
                        f"{where}: its values are not whole numbers ({slab[~whole].flat[0]:.5g}), so it is no label "
                        "map; is it a scan or probabilities? or does its header scale labels? then store them unscaled "
                        "(scl_slope 1, scl_inter 0)"
                    )
                    raise VolumeError(msg, reason="labels")
    lowest, highest = array.min(initial=0), array.max(initial=0)
    if array.dtype.kind == "f":
        lowest, highest = np.rint(lowest), np.rint(highest)
    if lowest < 0 or highest > np.iinfo(np.uint32).max:
        msg = f"{where}: label values from {lowest} to {highest}; they must be whole numbers of at least 0"
        raise VolumeError(msg, reason="labels")
    dtype = next(each for each in (np.uint8, np.uint16, np.uint32) if highest <= np.iinfo(each).max)
    if array.dtype.kind != "f":
        return array.astype(dtype)
    labels = np.empty_like(array, dtype=dtype)
    for slab, whole in zip(slabs(array), slabs(labels), strict=True):
        whole[...] = np.rint(slab)
    return labels


def slabs(array: np.ndarray) -> np.ndarray:
    """Return the array with its slowest axis first: what is computed slab by slab needs no copy of the whole."""
    return np.moveaxis(array, int(np.argmax(np.abs(array.strides))), 0)


def _describe(volume: Volume) -> str:
    spacing = "x".join(f"{value:.4g}" for value in volume.spacing)
    return f"{'x'.join(map(str, volume.shape))} voxels of {spacing} mm {''.join(volume.axis_codes)}"
