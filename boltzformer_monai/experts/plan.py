"""From the training scans to network and patch, by nnU-Net's published rules (Isensee et al., 2021).

Spacing: the median of the scans; along an axis more than three times as coarse as the others, which also has a third
of their voxels at most, its 10th percentile. Patch: as isotropic in mm as the median scan allows, then the axis that
covers most of the median scan shrinks until two patches fit into the budget of a step. Pooling: every axis that is
within a factor of 2 of the finest spacing is halved, as long as 4 voxels are left; a kernel is 1 along an axis until
the others have come within a factor of 2 of its spacing, then 3. Batch: what the budget leaves, at least 2, and at most
5 % of the dataset's voxels. nnU-Net's budget is graphics memory that it estimates; here it is voxels of a step, to
which that is proportional.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boltzformer_monai.errors import CheckpointError, ConfigError, why
from boltzformer_monai.experts.settings import ExpertSettings
from boltzformer_monai.field_types import check_types

__all__ = ["Fingerprint", "Plan", "Pooling", "make_plan", "pooling"]

_LEAST_EDGE = 4  # of the coarsest feature map
_LEAST_POOLINGS = 2  # DynUNet's
_ANISOTROPIC = 3.0
_MOST = {2: 16, 3: 10}  # times the channels of the finest level: nnU-Net's 512 and 320 of 32
_WHOLE_PATCH = {2: 2048**2, 3: 256**3}
_SHARE_OF_DATA = 0.05


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What the rules take from the training scans; axes are (slice, row, column).

    Attributes:
        shapes: of the scans in voxels.
        spacings: likewise, in mm.
        ct: whether all have Hounsfield units.
        intensities: of voxels of the targets, a sample.
    """

    shapes: Sequence[tuple[int, int, int]]
    spacings: Sequence[tuple[float, float, float]]
    ct: bool
    intensities: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All that an expert needs to train and to predict; spatial axes are (slice, row, column), or the latter two.

    Attributes:
        dimensions: of the network.
        plane: of the slices.
        targets: of its channels.
        spacing: mm of the voxels it sees, three axes; 2-D keeps the scan's own between slices.
        patch: voxels along each spatial axis.
        batch: patches of a step.
        strides: of every level, the finest first.
        kernels: likewise.
        filters: channels of every level.
        outputs: how many levels give an output in training, the finest first.
        hounsfield: whether grey values are clipped to ``low`` and ``high`` and scaled by ``mean`` and ``std`` of the
            targets' voxels in all training scans; else every scan is scaled by its own mean and deviation.
        low: 0.5th percentile of the targets' voxels.
        high: 99.5th.
        mean: of the targets' voxels.
        std: their deviation.
        original: whether it sees the original scans; else the dataset's 8-bit slices.
        mirrored: spatial axes along which patches may be mirrored.

    Raises:
        ConfigError: a value is of the wrong type, or they contradict each other.
    """

    dimensions: int
    plane: str
    targets: tuple[str, ...]
    spacing: tuple[float, ...]
    patch: tuple[int, ...]
    batch: int
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    filters: tuple[int, ...]
    outputs: int
    hounsfield: bool
    low: float
    high: float
    mean: float
    std: float
    original: bool
    mirrored: tuple[int, ...]

    def __post_init__(self) -> None:
        check_types(self)
        levels = len(self.strides)
        fits = (
            self.dimensions in (2, 3)
            and len(self.patch) == self.dimensions
            and len(self.spacing) == 3
            and levels == len(self.kernels) == len(self.filters) > _LEAST_POOLINGS
            and all(len(each) == self.dimensions for each in (*self.strides, *self.kernels))
            and all(1 <= number <= 2**14 for each in (*self.strides, *self.kernels, self.patch) for number in each)
            and all(1 <= number <= 2**14 for number in self.filters)
            and 1 <= self.outputs < levels
            and self.batch >= 1
            and self.std > 0
            and all(math.isfinite(number) and number > 0 for number in self.spacing)
            and len(set(self.targets)) == len(self.targets) > 0
            and set(self.mirrored) <= set(range(self.dimensions))
        )
        if not fits:
            raise ConfigError(f"the plan of this expert contradicts itself: {dataclasses.asdict(self)}"[:300])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, see :meth:`of`."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def of(cls, values: Mapping[str, Any], *, source: object) -> Plan:
        """The plan of :meth:`as_dict`.

        Raises:
            CheckpointError: it is none.
        """
        try:
            return cls(**{name: _frozen(value) for name, value in values.items()})
        except (TypeError, ConfigError) as error:
            raise CheckpointError(f"{source}: its plan cannot be used ({why(error)}); train it again") from None


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How often each axis is halved, and the kernels; ``divisor`` must divide the patch."""

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    divisor: tuple[int, ...]


def pooling(patch: Sequence[int] | np.ndarray, spacing: Sequence[float] | np.ndarray) -> Pooling:
    """The levels of a network for a patch.

    Args:
        patch: voxels along each axis.
        spacing: mm, likewise.
    """
    size, mm = np.asarray(patch, np.int64), np.asarray(spacing, np.float64)
    wide = np.zeros(len(size), bool)
    strides, kernels = [np.ones(len(size), np.int64)], []
    while True:
        large = size >= 2 * _LEAST_EDGE
        halved = large & (mm < 2 * mm[large].min()) if large.any() else large
        if not halved.any() or (halved.sum() == 1 and size[halved][0] < 3 * _LEAST_EDGE):
            break
        wide |= mm < 2 * mm.min()
        kernels.append(np.where(wide, 3, 1))
        strides.append(np.where(halved, 2, 1))
        size, mm = np.where(halved, -(-size // 2), size), np.where(halved, 2 * mm, mm)
    kernels.append(np.full(len(size), 3))
    return Pooling(_tuples(strides), _tuples(kernels), tuple(np.prod(strides, 0).tolist()))


def make_plan(
    fingerprint: Fingerprint, settings: ExpertSettings, *, targets: Sequence[str], plane: str, original: bool,
    lateral_axis: int,
) -> Plan:  # fmt: skip
    """Plan an expert.

    Args:
        fingerprint: of the training scans.
        settings: of the user.
        targets: of its channels.
        plane: of the slices.
        original: whether it sees the original scans.
        lateral_axis: which of (slice, row, column) runs from right to left.

    Raises:
        ConfigError: the scans are too small for two levels of pooling.
    """
    dimensions = settings.dimensions
    spacing = _target_spacing(fingerprint, dimensions)
    shapes = np.asarray(fingerprint.shapes) * np.asarray(fingerprint.spacings) / np.asarray(spacing)
    if dimensions == 2:
        shapes[:, 0] = np.asarray(fingerprint.shapes)[:, 0]
    median = np.maximum(np.round(np.median(shapes, axis=0)), 1)[-dimensions:]
    mm = np.asarray(spacing[-dimensions:])
    patch, levels = _patch(median, mm, settings.budget)
    if len(levels.strides) <= _LEAST_POOLINGS:
        shape = " x ".join(f"{each:.0f}" for each in median)
        msg = f"the scans are too small for an expert in {dimensions}-D ({shape} voxels in the median)"
        advice = "train with dimensions 2" if dimensions == 3 else "it needs 16 pixels along one axis"
        raise ConfigError(f"{msg}; {advice}")
    voxels = int(np.prod(patch))
    most = int(_SHARE_OF_DATA * shapes.prod(axis=1).sum() / voxels)
    count = len(levels.strides)
    named_by_side = any({"left", "right"} & set(target.lower().split()) for target in targets)
    mirrored = [axis for axis in range(dimensions) if not (named_by_side and axis + 3 - dimensions == lateral_axis)]
    sample = fingerprint.intensities if len(fingerprint.intensities) else np.zeros(1)
    return Plan(
        dimensions=dimensions,
        plane=plane,
        targets=tuple(targets),
        spacing=spacing,
        patch=tuple(patch.tolist()),
        batch=max(2, min(settings.budget // voxels, most)),
        strides=levels.strides,
        kernels=levels.kernels,
        filters=tuple(settings.filters * min(2**level, _MOST[dimensions]) for level in range(count)),
        outputs=max(1, count - 2) if settings.deep_supervision else 1,
        hounsfield=fingerprint.ct,
        low=float(np.percentile(sample, 0.5)),
        high=float(np.percentile(sample, 99.5)),
        mean=float(sample.mean()),
        std=max(float(sample.std()), 1e-6),
        original=original,
        mirrored=tuple(mirrored) if settings.mirror else (),
    )


def _target_spacing(fingerprint: Fingerprint, dimensions: int) -> tuple[float, float, float]:
    spacings, shapes = np.asarray(fingerprint.spacings), np.asarray(fingerprint.shapes)
    target, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    coarsest = int(target.argmax())
    others = [axis for axis in range(3) if axis != coarsest]
    apart = target[coarsest] > _ANISOTROPIC * target[others].max()
    if dimensions == 3 and apart and _ANISOTROPIC * shape[coarsest] < shape[others].min():
        target[coarsest] = max(np.percentile(spacings[:, coarsest], 10), target[others].max())
    return float(target[0]), float(target[1]), float(target[2])


def _patch(median: np.ndarray, mm: np.ndarray, budget: int) -> tuple[np.ndarray, Pooling]:
    """Patch and levels: two patches are within the budget, or the patch is as small as it can be."""
    dimensions = len(mm)
    edge = (_WHOLE_PATCH[dimensions] * mm.prod()) ** (1 / dimensions)
    patch = np.minimum(np.round(edge / mm), median).astype(np.int64)
    patch = _divisible(patch, pooling(patch, mm))
    while 2 * patch.prod() > budget:
        smaller = (_shrunk(patch, axis, mm) for axis in np.argsort(-patch / median, kind="stable"))
        if (found := next((each for each in smaller if each is not None), None)) is None:
            break
        patch = found
    return patch, pooling(patch, mm)


def _shrunk(patch: np.ndarray, axis: int, mm: np.ndarray) -> np.ndarray | None:
    """The next smaller patch along an axis; None if too few levels would be left."""
    step = pooling(patch, mm).divisor[axis]
    smaller, larger = patch.copy(), patch.copy()
    smaller[axis] -= step
    if smaller[axis] < 1:
        return None
    larger[axis] -= pooling(smaller, mm).divisor[axis]  # with fewer poolings a smaller step may do
    found = _divisible(larger, pooling(larger, mm))
    if found[axis] >= patch[axis]:
        found = _divisible(smaller, pooling(smaller, mm))
    return found if len(pooling(found, mm).strides) > _LEAST_POOLINGS and found.prod() < patch.prod() else None


def _divisible(patch: np.ndarray, levels: Pooling) -> np.ndarray:
    """The patch, enlarged to what its poolings divide."""
    divisor = np.asarray(levels.divisor)
    return -(-patch // divisor) * divisor


def _tuples(rows: Sequence[np.ndarray]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row.tolist()) for row in rows)


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple) else value
