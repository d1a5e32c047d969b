"""A result of the volume inferer made by hand, with the same interface."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.inferers.volume_result import PromptFinding
from boltzformer_monai.io.volume import Volume


class StubResult:
    """Masks by prompt; the first wins wherever two overlap by ``"first"``, the last by ``"probability"``."""

    def __init__(
        self, grid: Volume, masks: dict[str, np.ndarray], *, repeats: int = 1, caveats: tuple[Caveat, ...] = ()
    ) -> None:
        self.grid, self.repeats, self.caveats = grid, repeats, caveats
        self.prompts = self.inputs = tuple(masks)
        self.understood: tuple[Any, ...] = (None,) * len(masks)
        self.planes = ("axial",)
        self.point = None
        self._masks = list(masks.values())

    def mask(self, index: int) -> np.ndarray:
        return self._masks[index]

    def probability(self, index: int) -> np.ndarray:
        return self._masks[index] * np.uint8(204)

    def at_point(self, index: int) -> None:
        """There is no point."""

    def entropy(self, index: int) -> np.ndarray | None:
        return None if self.repeats == 1 else (self._masks[index] * (40 * (index + 1))).astype(np.uint8)

    def label_map(self, arbitration: str = "probability", *, values: Sequence[int] | None = None) -> np.ndarray:
        labels = np.zeros(self.grid.shape, np.uint8)
        order = list(zip(values or range(1, len(self._masks) + 1), self._masks, strict=True))
        for value, mask in order if arbitration == "probability" else reversed(order):
            labels[mask] = value
        return labels

    @property
    def findings(self) -> list[PromptFinding]:
        ml = abs(np.linalg.det(self.grid.affine[:3, :3])) / 1000
        return [
            PromptFinding(
                prompt,
                bool(m.any()),
                0.9,
                0.8 if m.any() else None,
                int(m.any((0, 1)).sum()),
                int(m.sum()),
                float(m.sum() * ml),
            )
            for prompt, m in zip(self.prompts, self._masks, strict=True)
        ]

    def close(self) -> None:
        pass

    def __enter__(self) -> StubResult:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
