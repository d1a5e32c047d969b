"""Prompts in groups that the network decodes together, always of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PADDING", "TOGETHER", "PromptGroup", "prompt_groups"]

TOGETHER = 8
"""Prompts decoded together: memory must not grow with their number."""
TOKEN_STEP = 16
PADDING = -1


class PromptGroup(NamedTuple):
    """Some prompts, filled up to the size of all groups."""

    members: tuple[int, ...]
    """Their indices among all prompts."""
    tokens: Tensor
    """``(size, N_T)`` int64, −1 = padding; the last prompt stands in for those that are missing."""


def prompt_groups(
    tokens: Tensor, members: Sequence[int], *, context: int, together: int = TOGETHER
) -> list[PromptGroup]:
    """Group prompts so that the shapes a prompt is computed in depend on no other prompt.

    Matrix libraries round differently for other shapes, and a rounding difference can flip a sampled patch. So every
    group has the same number of prompts, and a prompt is padded by its own length, not by that of the longest.

    Args:
        tokens: of all prompts ``(P, N_T)``, −1 = padding.
        members: the prompts to group.
        context: tokens that the text encoder reads at most.
        together: prompts in a group.
    """
    by_length: dict[int, list[int]] = {}
    for member in members:
        length = int((tokens[member] != PADDING).sum())
        by_length.setdefault(min(context, -(-length // TOKEN_STEP) * TOKEN_STEP), []).append(member)
    groups = []
    for length, alike in by_length.items():
        padded = F.pad(tokens, (0, max(0, length - tokens.shape[1])), value=PADDING)[:, :length]
        for start in range(0, len(alike), together):
            chosen = alike[start : start + together]
            rows = torch.tensor(chosen + chosen[-1:] * (together - len(chosen)))
            groups.append(PromptGroup(tuple(chosen), padded[rows]))
    return groups
