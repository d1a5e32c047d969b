"""Groups of prompts of equal shape, which the network decodes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.transforms.tokenizer import PADDING

__all__ = ["TOGETHER", "PromptGroup", "prompt_groups"]

TOGETHER = 8
"""Prompts decoded together; bounds memory."""
TOKEN_STEP = 16


class PromptGroup(NamedTuple):
    """Some prompts, padded to the size of all groups."""

    members: tuple[int, ...]
    """Their indices among all prompts."""
    tokens: Tensor
    """``(size, N_T)`` int64, −1 = padding; the last prompt is repeated to fill the group."""


def prompt_groups(
    tokens: Tensor, members: Sequence[int], *, context: int, together: int = TOGETHER
) -> list[PromptGroup]:
    """Group prompts such that a prompt's shapes do not depend on the others.

    Matrix libraries round differently for other shapes, and a rounding difference can flip a sampled patch. So all
    groups have the same number of prompts, and a prompt's padding depends on its own length.

    Args:
        tokens: of all prompts ``(P, N_T)``, −1 = padding.
        members: the prompts to group.
        context: most tokens of the text encoder.
        together: prompts per group.
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
