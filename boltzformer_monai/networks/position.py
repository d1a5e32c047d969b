"""Sine position encoding on a 2-D grid (Carion et al., DETR), normalised to the grid's extent."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_encoding(height: int, width: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """``(dim, height, width)`` float32: the first half of the channels encodes the row, the second half the column.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        dim: channels, a multiple of 4.
        device: of the result.
    """
    rows, columns = sine_row_and_column(height, width, dim, device=device)
    return torch.cat((rows[:, :, None].expand(-1, -1, width), columns[:, None, :].expand(-1, height, -1)))


def sine_row_and_column(
    height: int, width: int, dim: int, *, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The encoding's two parts: rows ``(dim/2, height)`` and columns ``(dim/2, width)``."""
    half = dim // 2
    exponent = torch.arange(half, device=device, dtype=torch.float32) // 2 * 2 / half
    frequency = 10000.0**exponent

    def encode(length: int) -> Tensor:
        angle = torch.arange(1, length + 1, device=device, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
        phase = angle[:, None] / frequency
        return torch.stack((phase[:, 0::2].sin(), phase[:, 1::2].cos()), dim=2).flatten(1)

    return encode(height).T, encode(width).T
