"""Follow-up: lesions of an earlier and a later scan of a patient, matched one to one.

Two lesions of a target may be partners if they overlap after registration, or if their centres are no further than
:data:`REACH_MM` apart. Of all matchings the one is taken whose summed score is greatest: the share of the smaller
lesion that both have in common, plus how near their centres are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.components import best_pairs
from boltzformer_monai.findings.lesions import Lesion
from boltzformer_monai.findings.measure import MeasuredTarget
from boltzformer_monai.findings.registration import Registration
from boltzformer_monai.io.volume import Volume

__all__ = ["CHANGE", "REACH_MM", "Comparison", "Pair", "compare_targets", "target_key"]

REACH_MM = 10.0
"""Lesions that do not overlap may be partners up to this distance: registration and breathing move small ones."""
CHANGE = 0.25
"""Share of the earlier volume from which a change counts; less is within what measuring twice differs by."""


@dataclass(frozen=True)
class Pair:
    """A lesion at both times.

    Attributes:
        target: its name.
        earlier: as measured on the earlier scan.
        later: as measured on the later one.
        status: ``"grown"``, ``"shrunk"`` or ``"stable"``, by volume.
        volume_ratio: later volume through earlier volume.
        overlap: share of the smaller one's volume that both have in common.
        distance_mm: between the centres, after registration.
        doubling_days: volume doubling time of one that grew; ``None`` where it did not, or the days are not known.
    """

    target: str
    earlier: Lesion
    later: Lesion
    status: str
    volume_ratio: float
    overlap: float
    distance_mm: float
    doubling_days: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**vars(self), "earlier": self.earlier.as_dict(), "later": self.later.as_dict()}


@dataclass(frozen=True)
class Comparison:
    """What became of all lesions.

    Attributes:
        pairs: lesions that were found both times.
        new: (target, lesion) of the later scan without a partner.
        gone: (target, lesion) of the earlier scan without a partner.
        not_compared: (target, lesion, time, why) of lesions that the other scan could not show: it ends before them, or
            nobody looked for the target.
        registration: of the two scans.
        days: from the earlier scan to the later one, ``None`` where it is not known.
    """

    registration: Registration
    days: float | None = None
    pairs: list[Pair] = field(default_factory=list)
    new: list[tuple[str, Lesion]] = field(default_factory=list)
    gone: list[tuple[str, Lesion]] = field(default_factory=list)
    not_compared: list[tuple[str, Lesion, str, str]] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many lesions are new, gone, grown, shrunk, stable, and not compared."""
        found = {name: sum(pair.status == name for pair in self.pairs) for name in ("grown", "shrunk", "stable")}
        return {"new": len(self.new), "gone": len(self.gone), **found, "not_compared": len(self.not_compared)}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "counts": self.counts,
            "pairs": [pair.as_dict() for pair in self.pairs],
            "new": [{"target": target, **lesion.as_dict()} for target, lesion in self.new],
            "gone": [{"target": target, **lesion.as_dict()} for target, lesion in self.gone],
            "not_compared": [
                {"target": target, "time": time, "why": why, **lesion.as_dict()}
                for target, lesion, time, why in self.not_compared
            ],
            "days": self.days,
            "registration": self.registration.as_dict(),
        }


def compare_targets(
    earlier: Iterable[MeasuredTarget],
    later: Iterable[MeasuredTarget],
    scans: tuple[Volume, Volume],
    registration: Registration,
    *,
    days: float | None = None,
    change: float = CHANGE,
) -> Comparison:
    """Match the lesions of targets that have the same name.

    Several targets of one name on a scan (segments that are one lesion each) are one, their lesions numbered anew. An
    annotation without any target is an empty label map: it says that nothing is there. In another one, a target that
    is missing may not have been looked for.

    Args:
        earlier: targets of the earlier scan.
        later: targets of the later scan.
        scans: the earlier and the later one.
        registration: of the two.
        days: from one to the other.
        change: share of the earlier volume from which a lesion is grown; shrunk is the reverse of it.

    Raises:
        ConfigError: a change that is not above 0, or days that are.
    """
    if not change > 0:
        raise ConfigError(f"the change from which a lesion is grown must be above 0, got {change}")
    if days is not None and not days > 0:
        raise ConfigError(f"the later scan must be some days after the earlier one, got {days:g}; swap the two")
    result = Comparison(registration, days)
    sides = [_by_name(side) for side in (earlier, later)]
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (
            side.get(key) if side else MeasuredTarget.absent("", scan) for side, scan in zip(sides, scans, strict=True)
        )
        if one is not None and other is not None:
            _match(one, other, scans, result, change)
        elif one is not None:
            why = "the target is not in the later annotation"
            result.not_compared.extend((one.name, lesion, "earlier", why) for lesion in one.lesions)
        elif other is not None:
            why = "the target is not in the earlier annotation"
            result.not_compared.extend((other.name, lesion, "later", why) for lesion in other.lesions)
    return result


def _by_name(targets: Iterable[MeasuredTarget]) -> dict[str, MeasuredTarget]:
    found: dict[str, MeasuredTarget] = {}
    for target in targets:
        key = target_key(target.name)
        found[key] = _together(found[key], target) if key in found else target
    return found


def _together(one: MeasuredTarget, other: MeasuredTarget) -> MeasuredTarget:
    """Two targets as one, whose lesions are numbered anew, the largest first."""
    every = [(side, lesion) for side, target in enumerate((one, other)) for lesion in target.lesions]
    every.sort(key=lambda pair: -pair[1].voxels)
    renumbered = [np.zeros(len(target.lesions) + 1, np.int32) for target in (one, other)]
    for number, (side, lesion) in enumerate(every, 1):
        renumbered[side][lesion.number] = number
    return replace(
        one,
        voxels=one.voxels + other.voxels,
        volume_ml=one.volume_ml + other.volume_ml,
        lesions=[replace(lesion, number=number) for number, (_, lesion) in enumerate(every, 1)],
        box=(slice(None),) * 3,
        inside=np.where(other.numbers > 0, renumbered[1][other.numbers], renumbered[0][one.numbers]),
    )


def target_key(name: str) -> str:
    """What is the same in two spellings of a target's name: case, spaces and underscores do not matter."""
    return " ".join(name.casefold().replace("_", " ").split())


def _match(
    earlier: MeasuredTarget, later: MeasuredTarget, scans: tuple[Volume, Volume], result: Comparison, change: float
) -> None:
    matrix = result.registration.matrix
    centres = [np.array([lesion.centre_mm for lesion in side.lesions]).reshape(-1, 3) for side in (earlier, later)]
    moved = centres[0] @ matrix[:3, :3].T + matrix[:3, 3]
    shared = _shared_ml(earlier, later, scans, matrix)
    for row, column in _near(moved, centres[1]):
        shared.setdefault((row, column), 0.0)
    candidates = np.array(sorted(shared), int).reshape(-1, 2)
    volumes = [np.array([lesion.volume_ml for lesion in side.lesions]) for side in (earlier, later)]
    distances = np.linalg.norm(moved[candidates[:, 0]] - centres[1][candidates[:, 1]], axis=1)
    smaller = np.minimum(volumes[0][candidates[:, 0]], volumes[1][candidates[:, 1]])
    common = np.array([shared[row, column] for row, column in candidates.tolist()])
    overlaps = np.minimum(1, common / smaller) if len(candidates) else common
    chosen = best_pairs(candidates, overlaps + 1 / (1 + distances / REACH_MM))
    for index in chosen:
        row, column = candidates[index]
        one, other = earlier.lesions[row], later.lesions[column]
        ratio = other.volume_ml / one.volume_ml
        status = "grown" if ratio >= 1 + change else "shrunk" if ratio <= 1 / (1 + change) else "stable"
        doubling = None if result.days is None or ratio <= 1 else result.days * math.log(2) / math.log(ratio)
        result.pairs.append(
            Pair(
                target=later.name,
                earlier=one,
                later=other,
                status=status,
                volume_ratio=_kept(ratio),
                overlap=_kept(float(overlaps[index])),
                distance_mm=_kept(float(distances[index])),
                doubling_days=None if doubling is None else _kept(doubling),
            )
        )
    back = np.linalg.inv(matrix)
    seen_later = centres[1] @ back[:3, :3].T + back[:3, 3]
    for index, lesion in enumerate(earlier.lesions):
        if index not in candidates[chosen, 0]:
            if _inside(moved[index], scans[1]):
                result.gone.append((earlier.name, lesion))
            else:
                result.not_compared.append((earlier.name, lesion, "earlier", "the later scan ends before it"))
    for index, lesion in enumerate(later.lesions):
        if index not in candidates[chosen, 1]:
            if _inside(seen_later[index], scans[0]):
                result.new.append((later.name, lesion))
            else:
                result.not_compared.append((later.name, lesion, "later", "the earlier scan ends before it"))


def _shared_ml(
    earlier: MeasuredTarget, later: MeasuredTarget, scans: tuple[Volume, Volume], matrix: np.ndarray
) -> dict[tuple[int, int], float]:
    """Volume in ml that an earlier and a later lesion have in common, by their indices.

    The voxels of the finer grid are looked up in the other, so that a small lesion is not missed between them.
    """
    voxel_ml = [abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000 for scan in scans]
    sides = (earlier, later)
    fine = int(voxel_ml[1] < voxel_ml[0])
    numbers = sides[fine].numbers
    voxels = np.argwhere(numbers)
    to_other = matrix if fine == 0 else np.linalg.inv(matrix)
    index = np.linalg.inv(scans[1 - fine].affine) @ to_other @ scans[fine].affine
    places = np.rint(voxels @ index[:3, :3].T + index[:3, 3]).astype(int)
    inside = ((places >= 0) & (places < scans[1 - fine].shape)).all(axis=1)
    ours = numbers[tuple(voxels[inside].T)]
    theirs = sides[1 - fine].numbers[tuple(places[inside].T)]
    pairs, counts = np.unique(np.stack([ours, theirs])[:, theirs > 0], axis=1, return_counts=True)
    if fine == 1:
        pairs = pairs[::-1]
    return {
        (int(one) - 1, int(other) - 1): float(count * voxel_ml[fine])
        for one, other, count in zip(*pairs, counts, strict=True)
    }


def _near(earlier: np.ndarray, later: np.ndarray) -> list[tuple[int, int]]:
    """Indices of centres within reach of each other."""
    from scipy.spatial import cKDTree

    if not len(earlier) or not len(later):
        return []
    found = cKDTree(earlier).query_ball_tree(cKDTree(later), REACH_MM)
    return [(row, column) for row, columns in enumerate(found) for column in columns]


def _inside(point: np.ndarray, scan: Volume) -> bool:
    voxel = np.linalg.inv(scan.affine)[:3] @ np.append(point, 1)
    return bool((voxel >= -0.5).all() and (voxel <= np.array(scan.shape) - 0.5).all())


def _kept(value: float) -> float:
    return float(f"{value:.6g}")
