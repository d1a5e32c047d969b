"""2-D images as volumes of one slice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from boltzformer_monai.data.image_files import open_picture
from boltzformer_monai.data.planes import PLANE_AXES
from boltzformer_monai.errors import VolumeError, cannot_open, why
from boltzformer_monai.io.orientation import parse_codes
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.modality import parse_modality

PICTURE_SUFFIX = ".png"
_GREY_TOLERANCE = 2  # between the colours of a grey image that somebody stored as RGB


def read_picture(path: Path, modality: str) -> Volume:
    """Read an 8-bit PNG image (H, W), grey or RGB of equal colours, as a volume of one axial slice.

    It states no size and no place: every pixel is taken for 1 mm, the slice for 1 mm thick, and the display is taken
    for the usual one (the patient's right at the left, anterior at the top).

    Returns:
        float32 (W, H, 1) with the values 0 to 255, whose axial slice is the image.

    Raises:
        VolumeError: it cannot be read, or it is a colour image.
    """
    pixels = _grey_pixels(path)
    return picture_volume(pixels.astype(np.float32), modality=parse_modality(modality), source=str(path))


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """Open a PNG file whose pixels are decoded within the block.

    Raises:
        VolumeError: it cannot be opened or decoded.
    """
    try:
        with open_picture(path) as image:
            yield image
    except FileNotFoundError:
        raise VolumeError(f"{path}: no such file", reason="missing") from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow reports broken PNG chunks as SyntaxError
        if (closed := cannot_open(path, error)) is not None:
            raise closed from None
        raise VolumeError(f"{path}: cannot be read as a PNG image ({why(error)})", reason="damaged") from None


def picture_volume(pixels: np.ndarray, *, modality: str = "unknown", source: str = "") -> Volume:
    """Return pixels (H, W) as the volume (W, H, 1) of 1 mm voxels whose axial slice they are."""
    slice_axis, rows, columns = parse_codes(PLANE_AXES["axial"])
    # Along (columns, rows, slice) the index rises to Left, Posterior, Superior; RAS+ counts the first two backwards.
    signs = [1.0 if code in "RAS" else -1.0 for code in (columns, rows, slice_axis)]
    return Volume(pixels.T[:, :, None], np.diag([*signs, 1.0]), modality=modality, source=source)


def _grey_pixels(path: Path) -> np.ndarray:
    """Return the grey values (H, W), uint8.

    Raises:
        VolumeError: the file cannot be read, is not 8-bit, or is a colour image.
    """
    with opened_image(path) as image:
        if image.mode not in ("L", "1", "P", "LA", "RGB", "RGBA"):
            msg = f"{path}: holds {image.mode} pixels, not 8-bit grey; convert it to an 8-bit PNG"
            raise VolumeError(msg, reason="unsupported format")
        pixels = np.array(image.convert("L" if image.mode in ("L", "1", "LA") else "RGB"))
    if pixels.ndim == 2:
        return pixels
    if int((pixels.max(axis=2) - pixels.min(axis=2)).max(initial=0)) > _GREY_TOLERANCE:
        raise VolumeError(f"{path}: is a colour image; only grey slices of CT and MR can be used", reason="colour")
    return np.ascontiguousarray(pixels[:, :, 1])
