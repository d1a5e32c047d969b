"""How full-size mask logits are taken to the grid of a level, for the sampling."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

LevelLogits = Literal["bilinear", "max"]
"""``"bilinear"`` (paper) reads 2×2 pixels of a cell, wherever the object lies in it; ``"max"`` its largest logit."""


def to_level(logits: Tensor, size: tuple[int, int], kind: LevelLogits) -> Tensor:
    """Mask logits ``(B, Q, h, w)`` → ``(B, Q, h_l, w_l)``; bilinear without ``align_corners`` [published code]."""
    if kind == "max":
        return largest(logits, size)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def largest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest logit of each cell: ``(B, Q, h, w)`` → ``(B, Q, h_l, w_l)``."""
    height, width = logits.shape[-2:]
    if height % size[0] or width % size[1]:
        return F.adaptive_max_pool2d(logits, size)
    return F.max_pool2d(logits, (height // size[0], width // size[1]))
