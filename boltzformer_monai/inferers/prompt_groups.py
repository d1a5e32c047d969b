"""Prompts in groups that the network decodes together, always of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.data.prompts import normalise_prompt
from boltzformer_monai.errors import PromptError

TOGETHER = 8
"""Prompts decoded together: memory must not grow with their number."""
TOKEN_STEP = 16
_PADDING = -1


class PromptGroup(NamedTuple):
    """Some prompts, filled up to ``TOGETHER``."""

    members: tuple[int, ...]
    """Their indices among all prompts."""
    tokens: Tensor
    """``(TOGETHER, N_T)`` int64, −1 = padding; the last prompt stands in for those that are missing."""


def checked_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts as given, if they can be asked.

    Raises:
        PromptError: there are none, one is empty or no valid text, or two say the same.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        msg = "give at least one prompt, as a list of texts, e.g. ['left kidney', 'lung nodule']"
        raise PromptError(msg)
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            msg = f"prompt {prompt[:60]!a} holds bytes that are no letters; write it in UTF-8"
            raise PromptError(msg)
    texts = [normalise_prompt(prompt) for prompt in prompts]
    if repeated := [text for index, text in enumerate(texts) if text in texts[:index]]:
        msg = f"prompt {repeated[0]!r} is given twice; a voxel can have one label only"
        raise PromptError(msg)
    return list(prompts)


def prompt_groups(tokens: Tensor, members: Sequence[int], *, context: int) -> list[PromptGroup]:
    """Group prompts so that the shapes a prompt is computed in depend on no other prompt.

    Matrix libraries round differently for other shapes, and a rounding difference can flip a sampled patch. So every
    group has the same number of prompts, and a prompt is padded by its own length, not by that of the longest.

    Args:
        tokens: of all prompts ``(P, N_T)``, −1 = padding.
        members: the prompts to group.
        context: tokens that the text encoder reads at most.
    """
    by_length: dict[int, list[int]] = {}
    for member in members:
        length = int((tokens[member] != _PADDING).sum())
        by_length.setdefault(min(context, -(-length // TOKEN_STEP) * TOKEN_STEP), []).append(member)
    groups = []
    for length, alike in by_length.items():
        padded = F.pad(tokens, (0, max(0, length - tokens.shape[1])), value=_PADDING)[:, :length]
        for start in range(0, len(alike), TOGETHER):
            chosen = alike[start : start + TOGETHER]
            rows = torch.tensor(chosen + chosen[-1:] * (TOGETHER - len(chosen)))
            groups.append(PromptGroup(tuple(chosen), padded[rows]))
    return groups
