"""Load a slice as square image and label map for the network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from boltzformer_monai.data.neighbours import blend, channel_offsets
from boltzformer_monai.data.slices.reader import SliceRow, read_png
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.transforms.square import SquareFit


class LoadSliced(Transform):
    """``{"rows": rows of one slice, …}`` → adds ``image`` ``(C, S, S)`` float32 0–1 and ``label_map`` ``(1, S, S)``.

    The label map holds label values as float32, 0 = background; slices without a label have none.

    Args:
        size: S, edge of the square in pixels.
        neighbours: slices on each side as channels (2.5-D): C = 2 · neighbours + 1, by rising slice index; at the ends
            of the volume the outermost slice is repeated.
        neighbour_mm: from channel to channel, interpolated between slices; 0: adjacent slices.
    """

    def __init__(self, *, size: int, neighbours: int = 0, neighbour_mm: float = 0.0) -> None:
        self.size = size
        self.neighbours = neighbours
        self.neighbour_mm = neighbour_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Raises :class:`~boltzformer_monai.errors.DatasetError` if a file is missing or damaged."""
        row: SliceRow = data["rows"][0]
        pixels = _read_grey(row.image, row)
        fit = slice_fit(pixels.shape, row, self.size)
        out = dict(data)
        out["image"] = fit.image(self._with_neighbours(pixels, row))[0]
        if row.label is not None:
            labels = read_png(row.label)
            if labels.shape != pixels.shape:
                msg = f"{row.label}: is {labels.shape}, its image {pixels.shape}; slice volume {row.volume!r} again"
                raise DatasetError(msg)
            values = torch.from_numpy(labels.astype(np.float32))
            out["label_map"] = self._keep_small(fit.label(values[None, None])[0], values, fit, data["rows"])
        return out

    def _with_neighbours(self, pixels: np.ndarray, row: SliceRow) -> Tensor:
        """``(1, C, H, W)``."""
        offsets = channel_offsets(self.neighbours, distance_mm=self.neighbour_mm, spacing_mm=row.spacing[2])
        pairs = row.images(offsets)
        read = {row.image: pixels}
        for path in {path for pair in pairs for path in pair} - {row.image}:
            read[path] = _read_grey(path, row)
        channels = [
            blend(read[lower], read[upper], offset.share) for (lower, upper), offset in zip(pairs, offsets, strict=True)
        ]
        return torch.cat([image_tensor(channel) for channel in channels], dim=1)

    @staticmethod
    def _keep_small(label_map: Tensor, values: Tensor, fit: SquareFit, rows: Sequence[SliceRow]) -> Tensor:
        """Keep targets that down-sampling would lose, as their densest pixel."""
        for row in rows:
            wanted = torch.tensor(row.label_values, dtype=torch.float32)
            if row.present and not torch.isin(label_map, wanted).any():
                share = fit.image(torch.isin(values, wanted).float()[None, None])[0, 0]
                label_map.view(-1)[share.argmax()] = wanted[0]
        return label_map


def _read_grey(path: Path, row: SliceRow) -> np.ndarray:
    pixels = read_png(path)
    if pixels.dtype != np.uint8:
        raise DatasetError(f"{path}: has 16 bits, a stored image has 8; slice volume {row.volume!r} again")
    return pixels


def image_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 pixels ``(H, W)`` or ``(B, H, W)`` → ``(B, 1, H, W)`` float32 in 0–1, the network's input scale."""
    stacked = pixels if pixels.ndim == 3 else pixels[None]
    return torch.from_numpy(np.ascontiguousarray(stacked)).to(torch.float32).div_(255)[:, None]


def slice_fit(shape: tuple[int, ...], row: SliceRow, size: int) -> SquareFit:
    """Fit of a stored slice into a square of ``size`` pixels."""
    return SquareFit((shape[0], shape[1]), row.spacing[:2], size)
