"""The volume type: an array with its affine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import orientation
from boltzformer_monai.io.orientation import AxisMap
from boltzformer_monai.modality import OTHER

MODALITIES = ("CT", "MR", OTHER, "unknown")
_VOXEL_MM = (1e-6, 1e4)  # no scanner is finer or coarser


@dataclass(frozen=True)
class Volume:
    """A 3-D scan or label map together with its place in the patient.

    Attributes:
        array: (I, J, K); float32 for images (Hounsfield units for CT), an integer type for labels.
        affine: (4, 4) float64, voxel index → world millimetres in RAS+ (the convention of nibabel and NIfTI).
        modality: ``"CT"``, ``"MR"``, ``"unknown"`` where nothing states it, or ``"other"``: of such a scan, 8-bit grey
            alone is a volume.
        source: where it came from (the path as given); never written into results.
        frame_of_reference: DICOM FrameOfReferenceUID, "" for other files; for matching annotations, never written.
        caveats: what its reader repaired or warns of; they travel with the volume into its results.
        in_mm: False for pictures, which state no size: a millimetre stands for every pixel.

    Raises:
        VolumeError: the array is not 3-D or empty, or the affine is not finite and invertible.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str = "unknown"
    source: str = ""
    frame_of_reference: str = ""
    caveats: tuple[Caveat, ...] = ()
    in_mm: bool = True

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
