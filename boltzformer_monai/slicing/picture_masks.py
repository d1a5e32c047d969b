"""Masks drawn on images, one file for each target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.grids import GRID_TOLERANCE
from boltzformer_monai.io.label_layers import Layer, flatten_layers
from boltzformer_monai.io.pictures import PICTURE_SUFFIXES, opened_image, picture_volume
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.io.volume import Volume

__all__ = ["PictureMasks", "pictures_in"]

_FLAT = ("L", "I", "F")


def pictures_in(folder: Path, suffixes: Sequence[str] = PICTURE_SUFFIXES) -> list[Path]:
    """List the images of a folder, without its subfolders and hidden files; none where it does not exist."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes) if folder.is_dir() else ()
    return sorted(path for path in found if not path.name.startswith("."))


@dataclass(frozen=True)
class PictureMasks:
    """The masks of one image; they may overlap. Picklable.

    Attributes:
        masks: (target, file), at least one.
        threshold: a pixel belongs to the target if its largest colour is above it.
    """

    masks: tuple[tuple[str, Path], ...]
    threshold: int = 0

    def draw_on(self, image: Volume, *, tolerance: float = GRID_TOLERANCE) -> Segmentation:  # noqa: ARG002
        """Return the masks on the grid of the image (W, H, 1).

        Raises:
            VolumeError: a mask cannot be read, has another size than the image, or no value above the threshold
                although it is not black.
        """
        flat = flatten_layers(
            image.shape, {number: target for number, (target, _) in enumerate(self.masks, 1)}, self._layers(image)
        )
        return Segmentation(Volume(flat.array, image.affine, source=str(self.masks[0][1].parent)), flat.names)

    def files(self) -> tuple[Path, ...]:
        """Return the masks."""
        return tuple(path for _, path in self.masks)

    def _layers(self, image: Volume) -> Iterator[Layer]:
        for number, (_, path) in enumerate(self.masks, 1):
            mask = picture_volume(_read_mask(path, self.threshold)).array
            if mask.shape != image.shape:
                size, expected = (f"{shape[0]}x{shape[1]}" for shape in (mask.shape, image.shape))
                raise VolumeError(f"{path}: has {size} pixels, its image {expected}", reason="grid")
            yield Layer(number, mask)


def _read_mask(path: Path, threshold: int) -> np.ndarray:
    """Return the pixels (H, W) whose largest colour is above the threshold."""
    with opened_image(path) as image:
        flat = image.mode in _FLAT or image.mode.startswith("I;")
        largest = np.array(image if flat else image.convert("L" if image.mode == "1" else "RGB"))
    largest = largest if largest.ndim == 2 else largest.max(axis=2)
    mask = np.asarray(largest > threshold)
    if threshold and largest.any() and not mask.any():
        most = f"no value of this mask is above the threshold {threshold}, the largest is {largest.max():g}"
        raise VolumeError(f"{path}: {most}; choose a lower one, 0 for masks of 0 and 1", reason="labels")
    return mask
