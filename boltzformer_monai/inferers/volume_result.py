"""Probability, mask and statistics of each prompt in a volume, on the scan's own grid."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.planes import Slicing
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.levels import mean_level, threshold_level
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.point import LesionAtPoint, lesion_at
from boltzformer_monai.inferers.probability_store import ProbabilityStore
from boltzformer_monai.io.volume import Volume

ARBITRATIONS = ("probability", "first")


@dataclass(frozen=True)
class PromptFinding:
    """Statistics of one prompt.

    Attributes:
        prompt: as given.
        found: whether the mask has a voxel.
        presence: highest presence probability of a slice, of several judged planes the mean; ``None`` without presence
            head.
        confidence: mean probability (0–1) over the mask's voxels; ``None`` if not found.
        slices: slices with a mask, along the axis of the widest spacing.
        voxels: of the mask.
        volume_ml: of the mask.
    """

    prompt: str
    found: bool
    presence: float | None
    confidence: float | None
    slices: int
    voxels: int
    volume_ml: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


class VolumeResult:
    """Compressed probabilities of all prompts; arrays are made one prompt at a time on demand.

    A context manager; leaving it, or :meth:`close`, frees the storage.

    Args:
        prompts: as given.
        grid: the scan, with the modality that it was taken for.
        slicings: the ways in which it was sliced; their probabilities are averaged.
        store: probabilities and presence of every slice; taken over.
        threshold: probability from which a voxel belongs to an object.
        rule: drops slices by their presence; ``None`` drops none.
        rule_planes: planes of the rule; default: all.
        repeats: repetitions that the probabilities are means of.
        caveats: of the result.
        inputs: the network's input texts; default: the prompts.
        understood: how each prompt was read, if not as it is; see
            :meth:`~boltzformer_monai.data.prompt_check.Reading.understood`.
        point: a place in the scan, millimetres in RAS+.
        only_at_point: each prompt keeps the component of its mask that is at the point, and nothing else.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        grid: Volume,
        slicings: Sequence[Slicing],
        store: ProbabilityStore,
        threshold: float,
        rule: PresenceRule | None = None,
        rule_planes: Sequence[str] | None = None,
        repeats: int = 1,
        caveats: Sequence[Caveat] = (),
        inputs: Sequence[str] | None = None,
        understood: Sequence[Mapping[str, Any] | None] | None = None,
        point: Sequence[float] | None = None,
        only_at_point: bool = False,
    ) -> None:
        self.prompts = tuple(prompts)
        self.grid = grid
        self.slicings = tuple(slicings)
        self.planes = tuple(slicing.plane for slicing in slicings)
        self.rule = rule
        self.rule_planes = self.planes if rule_planes is None else tuple(rule_planes)
        self.repeats = repeats
        self.caveats = tuple(caveats)
        self.inputs = self.prompts if inputs is None else tuple(inputs)
        self.understood = (None,) * len(self.prompts) if understood is None else tuple(understood)
        self.point = None if point is None else tuple(point)
        self.only_at_point = only_at_point and point is not None
        self.level = threshold_level(threshold)
        self._at_point: dict[int, LesionAtPoint | None] = {}
        self._store = store

    def probability(self, index: int) -> np.ndarray:
        """``(I, J, K)`` uint8, 0–255 for 0–1, mean of the planes; what was dropped counts as 0."""
        whole = self._mean(index, dropping=True)
        if not self.only_at_point:
            return whole
        lesion = self._lesion_at_point(index, whole)
        return np.zeros_like(whole) if lesion is None else lesion.only(whole)

    def at_point(self, index: int) -> LesionAtPoint | None:
        """The component of the whole mask at the point, or the nearest; ``None`` without a point, or a near one."""
        if self.point is not None and index not in self._at_point:
            self._lesion_at_point(index, self._mean(index, dropping=True))
        return self._at_point.get(index)

    def _lesion_at_point(self, index: int, whole: np.ndarray) -> LesionAtPoint | None:
        if index not in self._at_point:
            self._at_point[index] = lesion_at(whole >= self.level, self.grid, self.point or ())
        return self._at_point[index]

    def mask(self, index: int) -> np.ndarray:
        """``(I, J, K)`` boolean: the probability reaches the threshold."""
        return self.probability(index) >= self.level

    def entropy(self, index: int) -> np.ndarray | None:
        """Binary entropy of the mean probability, ``(I, J, K)`` uint8, 0–255 for 0–1 bit; ``None`` without repeats.

        Nothing is dropped for it: what the presence rule or another prompt removed is not certain for that.
        """
        if self.repeats == 1:
            return None
        p = np.arange(1, 255) / 255
        bits = np.zeros(256)  # 0 bit at both ends
        bits[1:255] = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
        return np.rint(255 * bits).astype(np.uint8)[self._mean(index, dropping=False)]

    def label_map(self, arbitration: str = "probability", *, values: Sequence[int] | None = None) -> np.ndarray:
        """``(I, J, K)``, the value of each voxel's prompt, 0 for none; uint8, or uint16 above 255.

        Args:
            arbitration: of a voxel that several prompts claim: the most ``"probability"`` (of equal ones the first),
                or the ``"first"`` prompt.
            values: from 1 to 65535, one per prompt; default: 1, 2, ….

        Raises:
            ConfigError: another arbitration, or other values.
        """
        if arbitration not in ARBITRATIONS:
            raise ConfigError(f"unknown arbitration {arbitration!r}; known are {', '.join(ARBITRATIONS)}")
        values = range(1, len(self.prompts) + 1) if values is None else values
        if len(values) != len(self.prompts) or not all(0 < value < 2**16 for value in values):
            msg = f"a label map needs a value from 1 to 65535 for each of {len(self.prompts)} prompts, got {values}"
            raise ConfigError(msg)
        shape = self._store.shapes[0]
        labels = np.zeros(shape, np.uint8 if max(values) <= 255 else np.uint16)
        highest = np.full(shape, self.level - 1, np.uint8)  # what is below the threshold has lost already
        decided = self._write_winners(labels, values) if arbitration == "probability" else frozenset()
        for index in range(len(self.prompts)):
            for number, found in self._slices(index):
                if number in decided:
                    continue
                wins = found > highest[number]
                labels[number][wins] = values[index]
                highest[number][wins] = found[wins] if arbitration == "probability" else 255
        labels = self.slicings[0].restore(labels)
        for index, value in enumerate(values) if self.only_at_point and decided else ():
            lesion = self.at_point(index)  # the winners were decided before the others were dropped
            of_prompt = labels == value
            labels[of_prompt if lesion is None else of_prompt & (lesion.only(of_prompt) == 0)] = 0
        return labels

    def _write_winners(self, labels: np.ndarray, values: Sequence[int]) -> frozenset[int]:
        """Fill in the slices ``(N, H, W)`` whose pixels the protocol has given to prompts; return their numbers."""
        if len(self.slicings) > 1:
            return frozenset()
        of_winner = np.array([0, *values], labels.dtype)
        decided: set[int] = set()
        for number in range(len(labels)):
            if (winner := self._store.winner(0, number)) is not None:
                labels[number] = of_winner[winner]
                decided.add(number)
        return frozenset(decided)

    @functools.cached_property
    def findings(self) -> list[PromptFinding]:
        """One per prompt, in order."""
        return [self._finding(index) for index in range(len(self.prompts))]

    def close(self) -> None:
        """Free the storage; ``findings`` computed before remain."""
        self._store.close()

    def __enter__(self) -> VolumeResult:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finding(self, index: int) -> PromptFinding:
        values, order = in_memory_order(self.probability(index))
        mask = values >= self.level
        voxels = int(np.count_nonzero(mask))
        spacing = [round(mm, 3) for mm in self.grid.spacing]
        across = max(range(3), key=lambda axis: (spacing[axis], axis))  # ties: the last, along which files stack
        others = tuple(axis for axis in range(3) if order[axis] != across)
        presence = [
            found
            for plane in range(len(self.planes))
            if self.planes[plane] in self.rule_planes and (found := self._store.presence(index, plane)) is not None
        ]
        return PromptFinding(
            prompt=self.prompts[index],
            found=voxels > 0,
            presence=float(np.mean([found.max() for found in presence])) if presence else None,
            confidence=float(values[mask].mean(dtype=np.float64) / 255) if voxels else None,
            slices=int(np.count_nonzero(mask.any(axis=others))),
            voxels=voxels,
            volume_ml=voxels * abs(float(np.linalg.det(self.grid.affine[:3, :3]))) / 1000,
        )

    def _mean(self, index: int, *, dropping: bool) -> np.ndarray:
        """Mean probability of the planes ``(I, J, K)`` uint8."""
        return mean_level(
            (self._of_plane(index, plane, dropping=dropping) for plane in range(len(self.planes))), len(self.planes)
        )

    def _kept(self, index: int, plane: int, *, dropping: bool) -> np.ndarray:
        """Numbers of the slices that hold anything, and that neither protocol nor presence rule dropped."""
        kept = self._store.filled(index, plane)
        presence = self._store.presence(index, plane)
        if dropping:
            kept = kept & ~self._store.dropped(index, plane)
        if dropping and self.rule is not None and presence is not None and self.planes[plane] in self.rule_planes:
            kept = kept & self.rule.kept(presence)
        return np.flatnonzero(kept)

    def _of_plane(self, index: int, plane: int, *, dropping: bool) -> np.ndarray:
        stack = np.zeros(self._store.shapes[plane], np.uint8)
        for number in self._kept(index, plane, dropping=dropping):
            stack[number] = self._store.get(index, plane, number)
        return self.slicings[plane].restore(stack)

    def _slices(self, index: int) -> Iterator[tuple[int, np.ndarray]]:
        """Indices and slices of the first plane that are not empty."""
        if len(self.planes) == 1 and not self.only_at_point:
            for number in self._kept(index, 0, dropping=True):
                yield int(number), self._store.get(index, 0, number)
            return
        for number, values in enumerate(self.slicings[0].extract(self.probability(index))):
            if values.any():
                yield number, values


def in_memory_order(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """A view in memory order, which is several times as fast to iterate, and the order of its axes."""
    order = tuple(sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis])))
    return array.transpose(order), order
