"""The one volume type of this package, and how it comes from and goes to disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import orientation
from boltzformer_monai.io.grids import GRID_TOLERANCE, check_grid_tolerance, misfit
from boltzformer_monai.io.orientation import AxisMap, signed_permutation
from boltzformer_monai.modality import parse_modality, settled_modality

MODALITIES = ("CT", "MR", "unknown")
_UNSCALED = 1e-3  # of 1: what is left of whole numbers up to 131 that a writer scaled into 16 bits
_VOXEL_MM = (1e-6, 1e4)  # no scanner is finer or coarser


@dataclass(frozen=True)
class Volume:
    """A 3-D scan or label map together with its place in the patient.

    Attributes:
        array: (I, J, K); float32 for images (Hounsfield units for CT), an integer type for labels.
        affine: (4, 4) float64, voxel index → world millimetres in RAS+ (the convention of nibabel and NIfTI).
        modality: ``"CT"``, ``"MR"``, or ``"unknown"`` where nothing states it. A scan of another modality is no volume.
        source: where it came from (the path as given); never written into results.
        frame_of_reference: DICOM FrameOfReferenceUID, "" for other files; for matching annotations, never written.
        caveats: what its reader repaired or warns of; they travel with the volume into its results.

    Raises:
        VolumeError: the array is not 3-D or empty, or the affine is not finite and invertible.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str = "unknown"
    source: str = ""
    frame_of_reference: str = ""
    caveats: tuple[Caveat, ...] = ()

    def __post_init__(self) -> None:
        where = self.source or "volume"
        if self.array.ndim != 3 or self.array.size == 0:
            msg = f"{where}: a volume has three non-empty axes, this array has the shape {self.array.shape}"
            raise VolumeError(msg, reason="dimensions")
        if self.array.dtype.kind not in "biuf":
            msg = f"{where}: voxels of type {self.array.dtype} are neither intensities nor labels"
            raise VolumeError(msg, reason="unsupported format")
        if self.modality not in MODALITIES:
            msg = f"{where}: unknown modality {self.modality!r}; known are {', '.join(MODALITIES)}"
            raise VolumeError(msg, reason="modality")
        object.__setattr__(self, "affine", _checked_affine(self.affine, where))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis (I, J, K)."""
        return self.array.shape[0], self.array.shape[1], self.array.shape[2]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from one voxel centre to the next along each axis."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def axis_codes(self) -> tuple[str, str, str]:
        """The side of the patient that each axis increases towards, e.g. ``("L", "P", "S")``."""
        return orientation.axis_codes(self.affine)

    def reoriented(self, codes: str) -> Volume:
        """Return the same volume with its axes flipped and permuted, exactly: no voxel value changes.

        Args:
            codes: the wanted axes, e.g. ``"LPS"``: the first axis increases towards the patient's left, and so on.

        Raises:
            ConfigError: ``codes`` is not an orientation.
        """
        axes = orientation.axis_map(self.axis_codes, orientation.parse_codes(codes))
        if axes == AxisMap((0, 1, 2), (False, False, False)):
            return self
        # A copy, because torch refuses the negative strides of a flipped view; "K" keeps it one pass over memory.
        array = axes.apply(self.array).copy(order="K")
        return replace(self, array=array, affine=axes.apply_to_affine(self.affine, self.shape))


def read_volume(
    path: str | os.PathLike[str],
    *,
    modality: str | None = None,
    series: str | None = None,
    files: Sequence[Path] = (),
    tilt: str = "refuse",
) -> Volume:
    """Read a scan: NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or DICOM.

    Args:
        path: the file, or the folder that holds the DICOM files (subfolders are searched too); a DICOM file of many
            frames that lie in the patient (enhanced CT, MR) is a whole scan.
        modality: CT or MR, in words that :func:`~boltzformer_monai.modality.parse_modality` knows, where the file
            does not say it; it may not contradict a DICOM header.
        series: the SeriesInstanceUID to read when a DICOM folder holds several.
        files: the DICOM files of the series, where they are known already; the rest of the folder is left alone.
        tilt: what to do with slices stacked at an angle to their normal (gantry tilt, a sheared affine) in a file of
            any format: ``"refuse"``, ``"resample"`` to a right-angled grid, or ``"keep"`` the sheared affine.

    Returns:
        The volume in the orientation in which it is stored, array float32 (I, J, K).

    Raises:
        VolumeError: the path is missing, broken, of another modality than CT and MR, not three-dimensional, or its
            geometry cannot be trusted.
        ConfigError: the modality or the treatment of tilt is not a known one.
    """
    from boltzformer_monai.io import formats
    from boltzformer_monai.io.dicom import read as dicom
    from boltzformer_monai.io.dicom.gantry_tilt import check_tilt, settle_tilt

    check_tilt(tilt)
    wanted = None if modality is None else parse_modality(modality)
    wanted = None if wanted == "unknown" else wanted
    place = _existing(path)
    if files or place.is_dir() or (not formats.is_image_file(place) and dicom.is_dicom_file(place)):
        volume = dicom.read_dicom_series(place, series=series, files=files, modality=wanted)
    else:
        if series is not None:
            msg = f"{place}: a series can be chosen only in a DICOM folder; leave the series out"
            raise VolumeError(msg, reason="unsupported format")
        settled = settled_modality(formats.stated_modality(place), wanted, source=f"{place}: its header says")
        array, affine = formats.read_scan_file(place)
        _check_finite(array, place)
        volume = Volume(array, affine, settled, source=str(path))
    return settle_tilt(volume, tilt)


def read_label_map(path: str | os.PathLike[str]) -> Volume:
    """Read a label map from NIfTI, NRRD or MetaImage.

    Returns:
        A volume whose array is the smallest of uint8, uint16 and uint32 that holds its values.

    Raises:
        VolumeError: the file is missing or broken, has layers (overlapping segments), or a voxel is not a whole
            number of at least 0.
    """
    from boltzformer_monai.io import formats

    place = _existing(path)
    if place.is_dir():
        msg = f"{place}: a label map is a NIfTI, NRRD or MetaImage file, not a folder"
        raise VolumeError(msg)
    array, affine = formats.read_image_file(place)
    return Volume(as_label_values(array, str(place)), affine, source=str(path))


def reorient_label(label: Volume, image: Volume, *, tolerance: float = GRID_TOLERANCE) -> Volume:
    """Bring a label map to the axis order of its image; the grids must already be the same in the patient.

    Nothing is resampled. A label of the same physical grid stored in another axis order or flip is permuted and
    flipped; the result carries the image's affine, and a caveat where the grids were not quite the same.

    Args:
        label: the label map.
        image: its image; only the grid matters.
        tolerance: how far, as a share of a voxel (up to 0.5), a voxel of the label may lie from the image's.

    Raises:
        VolumeError: the two grids differ by more than that anywhere, or in their number of voxels.
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


def write_label_map(array: np.ndarray, like: Volume, path: str | os.PathLike[str]) -> None:
    """Write a label map on the grid of ``like``, as uint8 or, for values above 255, uint16; atomically.

    Args:
        array: (I, J, K) booleans or integers from 0 to 65535, in the axes of ``like``.
        like: the volume whose shape and affine the file gets.
        path: ends in .nii, .nii.gz or .nrrd; an existing file is replaced, its folder must exist.

    Raises:
        VolumeError: the array does not fit ``like`` or the range, or the file cannot be written.
    """
    from boltzformer_monai.io import formats

    if array.shape != like.shape:
        msg = f"{path}: a mask of shape {array.shape} does not fit the scan's shape {like.shape}"
        raise VolumeError(msg, reason="grid")
    if array.dtype.kind not in "biu":
        msg = f"{path}: label values must be integers, not {array.dtype}"
        raise VolumeError(msg, reason="labels")
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        msg = f"{path}: label values from {lowest} to {highest} do not fit into 0 to 65535"
        raise VolumeError(msg, reason="labels")
    formats.write_image_file(array.astype(np.uint8 if highest <= 255 else np.uint16), like.affine, Path(path))


def _checked_affine(affine: np.ndarray, where: str) -> np.ndarray:
    """Return a read-only float64 copy of a usable affine."""
    checked = np.array(affine, dtype=np.float64)
    if checked.shape != (4, 4) or not np.isfinite(checked).all() or not np.array_equal(checked[3], (0, 0, 0, 1)):
        msg = f"{where}: its affine is not a finite 4x4 matrix with the last row 0 0 0 1; correct the header"
        raise VolumeError(msg, reason="singular affine")
    lengths = np.linalg.norm(checked[:3, :3], axis=0)
    # The determinant of the unit directions is 1 for a right angle, 0 when two axes coincide; no unit hides in it.
    if (lengths <= 0).any() or abs(np.linalg.det(checked[:3, :3] / lengths)) < 1e-3:
        msg = f"{where}: its affine is singular (an axis is missing or two coincide); correct the header"
        raise VolumeError(msg, reason="singular affine")
    if not ((lengths > _VOXEL_MM[0]) & (lengths < _VOXEL_MM[1])).all():
        msg = f"{where}: its affine gives voxels of {lengths.min():.3g} to {lengths.max():.3g} mm; correct the header"
        raise VolumeError(msg, reason="pixel spacing")
    checked.flags.writeable = False
    return checked


def _existing(path: str | os.PathLike[str]) -> Path:
    place = Path(path)
    if not os.path.exists(place):  # unlike Path.exists, never raises where permission is missing
        msg = f"{place}: no such file or folder, or no permission to see it"
        raise VolumeError(msg, reason="missing")
    return place


def _check_finite(array: np.ndarray, place: Path) -> None:
    bad = sum(int(slab.size - np.count_nonzero(np.isfinite(slab))) for slab in _slabs(array))
    if bad:
        msg = f"{place}: {bad} voxels are NaN or infinite; replace them by the value of air or background first"
        raise VolumeError(msg, reason="not finite")


def as_label_values(array: np.ndarray, where: str) -> np.ndarray:
    """Return label values of any type as the smallest of uint8, uint16 and uint32 that holds them.

    Raises:
        VolumeError: a value is not a whole number of at least 0; ``where`` names the file.
    """
    if array.dtype.kind == "f":  # some writers scale whole numbers, which leaves rounding errors
        with np.errstate(invalid="ignore"):  # false for NaN and infinity as well
            for slab in _slabs(array):
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
    for slab, whole in zip(_slabs(array), _slabs(labels), strict=True):
        whole[...] = np.rint(slab)
    return labels


def _slabs(array: np.ndarray) -> np.ndarray:
    """Return the array with its slowest axis first: what is computed slab by slab needs no copy of the whole."""
    return np.moveaxis(array, int(np.argmax(np.abs(array.strides))), 0)


def _describe(volume: Volume) -> str:
    spacing = "x".join(f"{value:.4g}" for value in volume.spacing)
    return f"{'x'.join(map(str, volume.shape))} voxels of {spacing} mm {''.join(volume.axis_codes)}"
