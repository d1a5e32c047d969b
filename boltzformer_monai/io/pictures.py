"""PNG and JPEG files: opened with a limit on their pixels, and read as volumes of one slice.

Such images state neither modality, size nor place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from boltzformer_monai.errors import VolumeError, cannot_open, why
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.limits import memory_budget, open_file
from boltzformer_monai.modality import OTHER, stored_modality

__all__ = ["PICTURE_SUFFIXES", "is_picture", "open_picture", "opened_image", "picture_volume", "read_picture"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_FORMATS = ("PNG", "JPEG")
_GREY_TOLERANCE = 2  # between the colours of a grey image that somebody stored as RGB
_AXIAL = np.diag([-1.0, -1.0, 1.0, 1.0])  # axes to Left, Posterior, Superior: columns and rows of an axial slice

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_PIXELS = 1 << 26  # 8192 x 8192: far above any slice, and below Pillow's own warning
_COPIES = 12  # bytes of a pixel while it is decoded and converted: RGBA, RGB, grey, and one to spare


@contextmanager
def open_picture(path: Path, *, formats: Sequence[str] = ("PNG",)) -> Iterator[Image.Image]:
    """Open an image file; its pixels are decoded on access.

    Args:
        path: the file.
        formats: that it may have, whatever its name: ``"PNG"``, ``"JPEG"``.

    Raises:
        OSError: it cannot be opened, is no regular file or of another format.
        ValueError: it claims too many pixels.
        SyntaxError: Pillow's error for damaged chunks.
    """
    with open_file(path) as file:
        head = file.read(24)
        if head[:8] == _SIGNATURE and len(head) == 24:  # before Pillow reads the chunks; it reports other damage
            _check_size(*struct.unpack_from(">2I", head, 16))
        file.seek(0)
        try:
            with Image.open(file, formats=tuple(formats)) as image:
                _check_size(*image.size)
                yield image
        except Image.DecompressionBombError as error:  # a second header within the file
            raise ValueError(str(error)) from None


def is_picture(path: Path) -> bool:
    """Tell by its name whether a file is an image that :func:`read_picture` reads."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def read_picture(path: Path, modality: str) -> Volume:
    """Read an 8-bit PNG or JPEG image (H, W) as a volume of one axial slice.

    A CT or MR image is grey, or RGB of equal colours; of another modality colours become their luminance. The image
    states no size and no place: every pixel is taken for 1 mm, the slice for 1 mm thick, and the display is taken for
    the usual one (the patient's right at the left, anterior at the top).

    Returns:
        float32 (W, H, 1) with the values 0 to 255, whose axial slice is the image.

    Raises:
        VolumeError: it cannot be read, or it is a colour image of CT or MR.
    """
    kind = stored_modality(modality)
    pixels = _grey_pixels(path, colour=kind == OTHER)
    return picture_volume(pixels.astype(np.float32), modality=kind, source=str(path))


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """Open a PNG or JPEG file whose pixels are decoded within the block.

    Raises:
        VolumeError: it cannot be opened or decoded.
    """
    try:
        with open_picture(path, formats=_FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise VolumeError(f"{path}: no such file", reason="missing") from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow reports broken PNG chunks as SyntaxError
        if (closed := cannot_open(path, error)) is not None:
            raise closed from None
        kind = "JPEG" if path.suffix.lower() != ".png" else "PNG"
        raise VolumeError(f"{path}: cannot be read as a {kind} image ({why(error)})", reason="damaged") from None


def picture_volume(pixels: np.ndarray, *, modality: str = "unknown", source: str = "") -> Volume:
    """Return pixels (H, W) as the volume (W, H, 1) of 1 mm voxels whose axial slice they are."""
    return Volume(pixels.T[:, :, None], _AXIAL, modality=modality, source=source, in_mm=False)


def _grey_pixels(path: Path, *, colour: bool) -> np.ndarray:
    """Return the grey values (H, W), uint8; of ``colour`` images their luminance.

    Raises:
        VolumeError: the file cannot be read, is not 8-bit, or is a colour image where that is none to take.
    """
    with opened_image(path) as image:
        if image.mode not in ("L", "1", "P", "LA", "RGB", "RGBA"):
            msg = f"{path}: holds {image.mode} pixels, not 8-bit grey; convert it to an 8-bit PNG"
            raise VolumeError(msg, reason="unsupported format")
        flat = image.convert("RGB").convert("L") if colour else image
        pixels = np.array(flat.convert("L" if flat.mode in ("L", "1", "LA") else "RGB"))
    if pixels.ndim == 2:
        return pixels
    if int((pixels.max(axis=2) - pixels.min(axis=2)).max(initial=0)) > _GREY_TOLERANCE:
        raise VolumeError(
            f"{path}: is a colour image; only grey slices of CT and MR can be used; of others say --modality other",
            reason="colour",
        )
    return np.ascontiguousarray(pixels[:, :, 1])


def _check_size(width: int, height: int) -> None:
    if width * height > min(_MOST_PIXELS, memory_budget() // _COPIES):
        raise ValueError(f"it claims {width}x{height} pixels, more than are read of an image")
