"""Scans that no medical reader opens whole: one channel of a 4-D NIfTI file, and a flat picture as one slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from boltzformer_monai.data.image_files import open_picture
from boltzformer_monai.data.planes import PLANE_AXES
from boltzformer_monai.data.windows import normalise_modality
from boltzformer_monai.errors import VolumeError, cannot_open, why
from boltzformer_monai.io.orientation import parse_codes
from boltzformer_monai.io.volume import Volume

__all__ = ["PICTURE_SUFFIX", "picture_volume", "read_channel", "read_picture"]

PICTURE_SUFFIX = ".png"
_GREY_TOLERANCE = 2  # between the colours of a grey picture that somebody stored as RGB


def read_channel(path: Path, channel: int, modality: str) -> Volume:
    """Read one picture of a 4-D NIfTI file.

    Returns:
        float32 (I, J, K) with the file's affine.

    Raises:
        VolumeError: the file cannot be read, has no such channel, or a voxel is not finite.
    """
    from boltzformer_monai.io.nifti import read_nifti

    array, affine = read_nifti(path, layers=True)
    if array.ndim != 4 or not 0 <= channel < array.shape[3]:
        there = f"only 0 to {array.shape[3] - 1}" if array.ndim == 4 else f"its shape is {array.shape}"
        msg = f"{path}: has no channel {channel}, {there}"
        raise VolumeError(msg, reason="dimensions")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused just below
        array = array[..., channel].astype(np.float32)
    if not np.isfinite(array).all():
        msg = f"{path}: channel {channel} has voxels that are NaN or infinite"
        raise VolumeError(msg, reason="not finite")
    return Volume(array, affine, modality=normalise_modality(modality), source=str(path))


def read_picture(path: Path, modality: str) -> Volume:
    """Read an 8-bit picture (H, W), grey or RGB of equal colours, as a volume of one axial slice.

    A picture states no size and no place: every pixel is taken for 1 mm, the slice for 1 mm thick, and the display is
    taken for the usual one (the patient's right at the left, anterior at the top).

    Returns:
        float32 (W, H, 1) with the values 0 to 255, whose axial slice is the picture.

    Raises:
        VolumeError: it cannot be read, or it is a colour picture.
    """
    pixels = _grey_pixels(path)
    return picture_volume(pixels.astype(np.float32), modality=normalise_modality(modality), source=str(path))


def picture_volume(pixels: np.ndarray, *, modality: str = "unknown", source: str = "") -> Volume:
    """Return pixels (H, W) as the volume (W, H, 1) of 1 mm voxels whose axial slice they are."""
    slice_axis, rows, columns = parse_codes(PLANE_AXES["axial"])
    # Along (columns, rows, slice) the index rises to Left, Posterior, Superior; RAS+ counts the first two backwards.
    signs = [1.0 if code in "RAS" else -1.0 for code in (columns, rows, slice_axis)]
    return Volume(pixels.T[:, :, None], np.diag([*signs, 1.0]), modality=modality, source=source)


def _grey_pixels(path: Path) -> np.ndarray:
    """Return the grey values (H, W), uint8.

    Raises:
        VolumeError: the file cannot be read, is not 8-bit, or is a colour picture.
    """
    try:
        with open_picture(path) as picture:
            if picture.mode not in ("L", "1", "P", "LA", "RGB", "RGBA"):
                msg = f"{path}: holds {picture.mode} pixels, not 8-bit grey; convert it to an 8-bit PNG"
                raise VolumeError(msg, reason="unsupported format")
            pixels = np.array(picture.convert("L" if picture.mode in ("L", "1", "LA") else "RGB"))
    except FileNotFoundError:
        msg = f"{path}: no such file"
        raise VolumeError(msg, reason="missing") from None
    # Pillow reports broken PNG chunks as SyntaxError.
    except (OSError, ValueError, SyntaxError) as error:
        if (closed := cannot_open(path, error)) is not None:
            raise closed from None
        msg = f"{path}: cannot be read as a picture ({why(error)})"
        raise VolumeError(msg, reason="damaged") from None
    if pixels.ndim == 2:
        return pixels
    if int((pixels.max(axis=2) - pixels.min(axis=2)).max(initial=0)) > _GREY_TOLERANCE:
        msg = f"{path}: is a colour picture; only grey slices of CT and MR can be used"
        raise VolumeError(msg, reason="colour")
    return np.ascontiguousarray(pixels[:, :, 1])
