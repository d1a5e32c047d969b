"""Select the prompts of a training example from the targets of its slice."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import RandomizableTransform
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.data.slices.reader import SliceRow
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.transforms.tokenizer import PromptTokenizer, pad_tokens


class SelectPromptsd(RandomizableTransform):
    """Adds ``tokens`` ``(P, N_T)`` and ``label`` ``(P, M, M)`` for P targets of the slice; keeps only the image.

    Args:
        tokenizer: turns the chosen prompts into tokens.
        prompts_per_image: P (paper: 1).
        mask_size: M, edge of the masks; label maps are averaged down to it, so objects smaller than a pixel keep a
            share of it.
        negatives: probability that a prompt is for an absent target, if the slice has one; ``None`` samples present
            and absent targets alike.
        weights: target → relative sampling frequency.
        length: N_T; prompts are padded to it.
        random: ``False`` always takes the same targets and the first prompt of each, and keeps their ``rows``
            (validation).
    """

    def __init__(
        self,
        *,
        tokenizer: PromptTokenizer,
        prompts_per_image: int,
        mask_size: int,
        negatives: float | None = 0.0,
        weights: Mapping[str, float] | None = None,
        length: int | None = None,
        random: bool = True,
    ) -> None:
        super().__init__(prob=1.0)
        if prompts_per_image < 1 or not 0 <= (negatives or 0) <= 1:
            msg = f"prompts_per_image must be at least 1 and negatives in 0–1, got {prompts_per_image} and {negatives}"
            raise ConfigError(msg)
        for target, weight in (weights or {}).items():
            if not weight > 0:
                raise ConfigError(f"the weight of target {target!r} must be positive, got {weight}")
        self.tokenizer = tokenizer
        self.prompts_per_image = prompts_per_image
        self.mask_size = mask_size
        self.negatives = negatives
        self.weights = dict(weights or {})
        self.length = length
        self.random = random
        self._tokens: dict[str, tuple[int, ...]] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Rows of one slice and its ``label_map`` ``(1, S, S)`` → training example."""
        rows = self._choose(data["rows"])
        prompts = [row.prompts[self.R.randint(len(row.prompts))] if self.random else row.prompts[0] for row in rows]
        for prompt in prompts:
            if prompt not in self._tokens:
                self._tokens[prompt] = self.tokenizer.encode(prompt)
        tokens = pad_tokens([self._tokens[prompt] for prompt in prompts], length=self.length)
        example: dict[Hashable, Any] = {
            "image": torch.as_tensor(data["image"]),
            "tokens": tokens,
            "label": masks_of(torch.as_tensor(data["label_map"]), rows, self.mask_size),
        }
        return example if self.random else {**example, "rows": rows}

    def _choose(self, rows: Sequence[SliceRow]) -> list[SliceRow]:
        present = [row for row in rows if row.present]
        absent = [row for row in rows if not row.present]
        if not self.random:
            ordered = present + absent
            return [ordered[i % len(ordered)] for i in range(self.prompts_per_image)]
        chosen: list[SliceRow] = []
        sources = {True: absent, False: present} if self.negatives is not None else {False: present + absent}
        pools: dict[bool, list[SliceRow]] = {kind: [] for kind in sources}
        for _ in range(self.prompts_per_image):
            negative = self.negatives is not None and bool(absent)
            negative = negative and (not present or self.R.rand() < (self.negatives or 0))
            if not pools[negative]:  # first use, or every row was used: start over
                pools[negative] = list(sources[negative])
            pool = pools[negative]
            weights = torch.tensor([self.weights.get(row.target, 1.0) for row in pool], dtype=torch.float64).numpy()
            chosen.append(pool.pop(int(self.R.choice(len(pool), p=weights / weights.sum()))))
        return chosen


def masks_of(label_map: Tensor, rows: Sequence[SliceRow], size: int) -> Tensor:
    """Label map ``(1, S, S)`` → one mask per row, ``(P, size, size)`` float32 in 0–1."""
    masks = torch.cat([torch.isin(label_map, torch.tensor(row.label_values, dtype=torch.float32)) for row in rows])
    masks = masks.to(torch.float32)
    if size == masks.shape[-1]:
        return masks
    return F.interpolate(masks[None], size=(size, size), mode="area")[0]
