"""Test-time averaging: a slice shown slightly turned, scaled and shifted, and its masks brought back.

The poses stay within the ``light`` augmentation of training. None is mirrored: a mirrored patient has left and right
exchanged, which many targets name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.transforms.square import resized_logits

__all__ = ["POSES", "Pose", "first_poses", "mean_logits"]


@dataclass(frozen=True)
class Pose:
    """A rotation about the centre of the network's square, then a change of size, and a shift.

    Attributes:
        angle: in degrees.
        scale: of what is shown; above 1 it looks smaller.
        rows: shift as a share of the edge.
        columns: likewise.
    """

    angle: float = 0.0
    scale: float = 1.0
    rows: float = 0.0
    columns: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether it is any other than the slice as it is."""
        return self != Pose()

    def image(self, images: Tensor) -> Tensor:
        """Images ``(B, C, S, S)`` float in this pose, bilinear; zeros where nothing is known."""
        return _resample(images, self._matrix(), images.shape[-1], "zeros") if self.moves else images

    def restore(self, logits: Tensor, size: int) -> Tensor:
        """Logits ``(B, P, s, s)`` of such images → ``(B, P, size, size)`` of the slice as it is, bilinear."""
        if not self.moves:
            return logits
        matrix = self._matrix()
        inverse = np.linalg.inv(matrix[:, :2])
        # At the border: beyond what was seen its nearest pixels count, not a logit of 0, which means one half.
        logits = resized_logits(logits.float(), (size, size))
        return _resample(logits, np.column_stack([inverse, -inverse @ matrix[:, 2]]), size, "border")

    def _matrix(self) -> np.ndarray:
        """(2, 3): coordinates from −1 to 1, column first, in the pose → in the slice."""
        turn = np.deg2rad(self.angle)
        cos, sin = np.cos(turn) * self.scale, np.sin(turn) * self.scale
        return np.array([[cos, -sin, 2 * self.columns], [sin, cos, 2 * self.rows]])


POSES = (
    Pose(),
    Pose(angle=7, scale=1.06, rows=0.02),
    Pose(angle=-7, scale=0.94, rows=-0.02),
    Pose(angle=7, scale=0.94, columns=0.02),
    Pose(angle=-7, scale=1.06, columns=-0.02),
)
"""The slice as it is, and four others that together favour no direction and no size."""


def first_poses(count: int) -> Sequence[Pose]:
    """As many poses as are to be averaged; one is the slice as it is.

    Raises:
        ConfigError: not 1 to 5.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(POSES):
        raise ConfigError(f"tta averages 1 to {len(POSES)} poses of a slice, got {ascii(count)[:40]}")
    return POSES[:count]


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Logits of the mean probability."""
    if len(logits) == 1:
        return logits[0]
    mean = torch.stack([each.float().sigmoid() for each in logits]).mean(0)
    return torch.logit(mean, eps=1e-6)


def _resample(x: Tensor, matrix: np.ndarray, size: int, padding: str) -> Tensor:
    theta = torch.tensor(matrix, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
    grid = F.affine_grid(theta, [len(x), x.shape[1], size, size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)
