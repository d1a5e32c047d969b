"""The steps of BiomedParse v2 before and after its network, as pure functions of arrays.

A volume (D, H, W) is sliced along an axis that its shape chooses; slices are padded to a square in pixels and resized;
slice, predecessor and successor are the channels. Logits are enlarged, prompts that are absent from a slice or overlap
a more certain one are dropped, the most probable prompt gets a pixel, and pixels go back by nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "EXISTENCE", "OVERLAP", "PixelSquare", "channel_indices", "enlarged", "in_our_order", "kept_prompts", "merged",
    "quantised", "slicing_axis",
]  # fmt: skip

EXISTENCE = 0.5
"""Probability that a prompt's object is in a slice, below which its mask is dropped."""
OVERLAP = 0.5
"""Intersection over union with the mask of a more certain prompt above which a mask is dropped."""


def slicing_axis(shape: Sequence[int]) -> int:
    """The axis of a volume (D, H, W) that its slices are taken along.

    The first, unless the others differ by half of their mean or more: then the shortest, of equal ones the first.
    """
    _, rows, columns = shape
    if 4 * abs(rows - columns) < rows + columns:
        return 0
    return int(np.argmin(shape))


def channel_indices(count: int, start: int, stop: int, neighbours: int) -> np.ndarray:
    """Which of ``count`` slices are the channels of the slices from start to stop: (B, 2 · neighbours + 1).

    The slice itself, the one before, the one after, and so on; beyond the ends slices are mirrored about the outermost.
    """
    steps = [0, *(sign * step for step in range(1, neighbours + 1) for sign in (-1, 1))]
    wanted = np.abs(np.arange(start, stop)[:, None] + np.array(steps))
    mirrored = np.where(wanted >= count, 2 * (count - 1) - wanted, wanted)
    return np.clip(mirrored, 0, count - 1)


def in_our_order(channels: np.ndarray) -> np.ndarray:
    """Channels (B, C) of :func:`channel_indices` from the lowest slice to the highest.

    The networks of this package have them so, and the importer of published weights turns the stem's likewise.
    """
    count = channels.shape[1]
    return channels[:, [*range(count - 2, 0, -2), 0, *range(2, count, 2)]]


@dataclass(frozen=True)
class PixelSquare:
    """A slice padded with zeros to a square of pixels, the smaller half first, and resized.

    Args:
        shape: ``(H, W)`` of the slice.
        size: edge of the network's square.
    """

    shape: tuple[int, int]
    size: int

    @property
    def edge(self) -> int:
        """Pixels along the padded square."""
        return max(self.shape)

    @property
    def before(self) -> tuple[int, int]:
        """Rows above and columns to the left that are padded."""
        rows, columns = self.shape
        return (self.edge - rows) // 2, (self.edge - columns) // 2

    def image(self, pixels: Tensor) -> Tensor:
        """Slices ``(B, C, H, W)``, uint8 or float → ``(B, C, size, size)`` of the same type, bicubic.

        uint8 is rounded and clamped along each axis; float is not clamped.
        """
        (top, left), (rows, columns) = self.before, self.shape
        padded = F.pad(pixels, (left, self.edge - columns - left, top, self.edge - rows - top))
        if self.edge == self.size:
            return padded
        return F.interpolate(padded, size=(self.size, self.size), mode="bicubic", align_corners=False)

    def restore(self, values: Tensor) -> Tensor:
        """What was found ``(…, size, size)``, of any type → ``(…, H, W)``, nearest neighbour (rounded down)."""
        source = torch.arange(self.size, dtype=torch.float32)[None, None]
        nearest = F.interpolate(source, size=self.edge, mode="nearest")[0, 0].long().to(values.device)
        (top, left), (rows, columns) = self.before, self.shape
        return values[..., nearest[top : top + rows], :][..., nearest[left : left + columns]]


def enlarged(logits: Tensor, size: int) -> Tensor:
    """Logits ``(B, P, h, w)`` → ``(B, P, size, size)``, bicubic with antialiasing."""
    if logits.shape[-2:] == (size, size):
        return logits
    return F.interpolate(logits, size=(size, size), mode="bicubic", align_corners=False, antialias=True)


def kept_prompts(
    masks: Tensor, existence: Sequence[float] | None, *, presence: bool = True, suppress: bool = True
) -> list[bool]:
    """Which prompts keep their mask in a slice.

    One prompt alone does where its existence is above :data:`EXISTENCE`. Of several, the most certain goes first; what
    is below :data:`EXISTENCE` or empty is dropped, and so is what overlaps a kept mask by more than :data:`OVERLAP`.

    Args:
        masks: ``(P, H, W)`` bool.
        existence: probability for each prompt that its object is in the slice; ``None`` where the network does not
            say: then all are kept.
        presence: drop absent prompts.
        suppress: drop overlapping prompts.
    """
    count = len(masks)
    if existence is None:
        return [True] * count
    if count == 1:
        return [not presence or existence[0] > EXISTENCE]
    if not suppress:
        return [not presence or each >= EXISTENCE for each in existence]
    flat = masks.flatten(1).to(torch.float32)
    shared = (flat @ flat.T).cpu()  # whole numbers below 2^24: exact
    kept: list[int] = []
    for index in sorted(range(count), key=lambda each: (-existence[each], each)):
        if presence and existence[index] < EXISTENCE:
            break
        if shared[index, index] == 0:
            continue
        area = shared[index, index]
        if all(shared[index, one] <= OVERLAP * (area + shared[one, one] - shared[index, one]) for one in kept):
            kept.append(index)
    return [index in kept for index in range(count)]


def merged(probability: Tensor, kept: Sequence[bool], threshold: float = 0.5) -> Tensor:
    """Probabilities ``(P, H, W)`` of a slice → ``(H, W)`` int64: 1 for the first prompt, …; 0 for none.

    The most probable of the kept prompts wins where it is above the threshold; of equal ones the first.
    """
    allowed = probability * torch.tensor(kept, dtype=probability.dtype, device=probability.device)[:, None, None]
    highest, winner = allowed.max(dim=0)
    return torch.where(highest > threshold, winner + 1, 0)


def quantised(probability: Tensor) -> Tensor:
    """Probabilities → uint8: v where 256 p is above v and at most v + 1, so that 128 begins *above* one half."""
    return (probability * 256).ceil_().sub_(1).clamp_(0, 255).to(torch.uint8)
