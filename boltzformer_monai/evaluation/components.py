"""Connected components of a predicted mask and of the truth, matched one to one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

__all__ = [
    "CONNECTIVITY", "IOU_THRESHOLDS", "Components", "Matching", "best_pairs", "bounding_box", "find_components",
    "label_components", "overlaps",
]  # fmt: skip

CONNECTIVITY = "faces, edges and corners"
"""Neighbours within a component: 8 in 2-D, 26 in 3-D."""

IOU_THRESHOLDS = {"iou0": 0.0, "iou10": 0.1, "iou50": 0.5}
"""IoU that a pair of components must exceed, by its suffix in names."""


class Matching(NamedTuple):
    """Pairs of a predicted and a true component, of which each is in one pair at most."""

    predicted: np.ndarray
    """``(M,)`` indices of predicted components."""
    truth: np.ndarray
    """``(M,)`` indices of their partners."""
    iou: np.ndarray
    """``(M,)`` float64."""


@dataclass(frozen=True, eq=False)
class Components:
    """Sizes of the components of both masks, and the pairs that overlap.

    Attributes:
        predicted: ``(P,)`` pixels or voxels of the prediction's components.
        truth: ``(T,)`` those of the truth's.
        pairs: ``(K, 2)`` indices of a predicted and a true component with a voxel in common.
        iou: ``(K,)`` float64, intersection over union of each pair.
    """

    predicted: np.ndarray
    truth: np.ndarray
    pairs: np.ndarray
    iou: np.ndarray
    _matchings: dict[float, Matching] = field(default_factory=dict, repr=False)

    @property
    def touched(self) -> int:
        """How many components of the truth the prediction touches."""
        return len(np.unique(self.pairs[:, 1]))

    @property
    def touching(self) -> int:
        """How many components of the prediction touch the truth."""
        return len(np.unique(self.pairs[:, 0]))

    def match(self, threshold: float) -> Matching:
        """The one-to-one matching of greatest summed IoU among the pairs above the threshold."""
        if threshold not in self._matchings:
            self._matchings[threshold] = self._match(threshold)
        return self._matchings[threshold]

    def precision(self, threshold: float) -> tuple[int, int]:
        """Matched components of all that are predicted."""
        return len(self.match(threshold).iou), len(self.predicted)

    def recall(self, threshold: float) -> tuple[int, int]:
        """Matched components of all in the truth."""
        return len(self.match(threshold).iou), len(self.truth)

    def f1(self, threshold: float) -> tuple[int, int]:
        """Matched components of both masks, of all: F1, the recognition quality RQ of panoptic quality."""
        return 2 * len(self.match(threshold).iou), len(self.predicted) + len(self.truth)

    def segmentation_quality(self, threshold: float) -> tuple[float, int]:
        """Summed IoU of the matched pairs, and their number: SQ."""
        matched = self.match(threshold)
        return float(matched.iou.sum()), len(matched.iou)

    def panoptic_quality(self, threshold: float) -> tuple[float, int]:
        """Twice the summed IoU of the matched pairs, and all components of both masks: PQ = SQ · RQ."""
        return 2 * float(self.match(threshold).iou.sum()), len(self.predicted) + len(self.truth)

    def _match(self, threshold: float) -> Matching:
        above = np.flatnonzero(self.iou > threshold)
        pairs = above[best_pairs(self.pairs[above], self.iou[above])]
        return Matching(self.pairs[pairs, 0], self.pairs[pairs, 1], self.iou[pairs])


def best_pairs(pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The one-to-one matching of greatest summed weight.

    Args:
        pairs: ``(K, 2)`` indices of two kinds of objects that may be partners.
        weights: ``(K,)``, above 0.

    Returns:
        Ascending indices of the pairs that are chosen; each object is in one of them at most.
    """
    from scipy.optimize import linear_sum_assignment

    if all(len(np.unique(partners)) == len(pairs) for partners in pairs.T):
        return np.arange(len(pairs))  # no object has a choice
    chosen = [np.empty(0, int)]
    for group in _groups(pairs):
        if len(group) > 1:
            rows, row = np.unique(pairs[group, 0], return_inverse=True)
            columns, column = np.unique(pairs[group, 1], return_inverse=True)
            table = np.zeros((len(rows), len(columns)))
            table[row, column] = weights[group]
            places = np.full(table.shape, -1)
            places[row, column] = group
            group = places[linear_sum_assignment(table, maximize=True)]
        chosen.append(group[group >= 0])
    return np.sort(np.concatenate(chosen))


def _groups(pairs: np.ndarray) -> list[np.ndarray]:
    """Indices of pairs, parted into groups without an object in common: each is a small problem of its own."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first = int(pairs[:, 0].max()) + 1
    nodes = first + int(pairs[:, 1].max()) + 1
    links = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1] + first)), shape=(nodes, nodes))
    group = connected_components(links, directed=False)[1][pairs[:, 0]]
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def bounding_box(*masks: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds bool masks of one shape; the whole array if all are empty."""
    box = []
    for axis in range(masks[0].ndim):
        others = tuple(other for other in range(masks[0].ndim) if other != axis)
        used = np.flatnonzero(np.logical_or.reduce([mask.any(others) for mask in masks]))
        box.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(None))
    return tuple(box)


def label_components(mask: np.ndarray, *, rank: int | None = None) -> tuple[np.ndarray, int]:
    """Number the components of a bool mask from 1, 0 elsewhere; also how many they are.

    Args:
        mask: 2-D or 3-D.
        rank: axes along which neighbours may differ at once: 1 for faces alone; default: all.
    """
    if not mask.any():
        return np.broadcast_to(np.int32(0), mask.shape), 0
    from scipy import ndimage

    neighbours = ndimage.generate_binary_structure(mask.ndim, mask.ndim if rank is None else rank)
    labels, count = ndimage.label(mask, structure=neighbours)
    return labels, int(count)


def find_components(prediction: np.ndarray, truth: np.ndarray) -> Components:
    """Components of two bool masks of one shape, 2-D or 3-D."""
    (predicted, p), (true, t) = label_components(prediction), label_components(truth)
    return overlaps(predicted, p, true, t)


def overlaps(predicted: np.ndarray, p: int, truth: np.ndarray, t: int) -> Components:
    """Components that are numbered already, of one shape: from 1 to ``p`` and from 1 to ``t``."""
    both = (predicted > 0) & (truth > 0)
    codes, common = np.unique((predicted[both].astype(np.int64) - 1) * t + truth[both] - 1, return_counts=True)
    pairs = np.stack([codes // max(t, 1), codes % max(t, 1)], axis=1)
    sizes = [np.bincount(labels[labels > 0], minlength=count + 1)[1:] for labels, count in ((predicted, p), (truth, t))]
    union = sizes[0][pairs[:, 0]] + sizes[1][pairs[:, 1]] - common
    return Components(sizes[0], sizes[1], pairs, common / union)
