"""From scanner values to 8-bit grey: Hounsfield windows for CT, percentiles over the body for MR.

Slicing and inference share these objects, so a stored slice is bit for bit the network's input at inference.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from boltzformer_monai.errors import ConfigError, did_you_mean
from boltzformer_monai.modality import parse_modality

__all__ = [
    "NAMED_WINDOWS",
    "GreyScale",
    "MRPercentiles",
    "StoredGrey",
    "Window",
    "default_window",
    "parse_window",
    "window_from_dict",
]


@dataclass(frozen=True)
class Window:
    """A Hounsfield window: ``level - width / 2`` becomes 0, ``level + width / 2`` becomes 255.

    Attributes:
        level: centre in HU.
        width: extent in HU, greater than 0.

    Raises:
        ConfigError: a number is not finite or the width is not positive.
    """

    level: float
    width: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.level) and math.isfinite(self.width) and self.width > 0):
            msg = f"a window needs a finite level and a width above 0 (HU), got level {self.level} width {self.width}"
            raise ConfigError(msg)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Map HU of any shape to uint8 of the same shape; NaN becomes 0."""
        return _to_grey(array, self.level - self.width / 2, self.level + self.width / 2)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, see :func:`window_from_dict`."""
        return {"kind": "hu", "level": float(self.level), "width": float(self.width)}


@dataclass(frozen=True)
class MRPercentiles:
    """Grey scale for modalities without units: two percentiles of the body's voxels become 0 and 255.

    The body lies above the volume's 1st percentile by more than 5 % of the range up to its 99th. So the scale depends
    neither on the share of air in the field of view nor on a few bright voxels.

    Attributes:
        lower: percentile that becomes 0.
        upper: percentile that becomes 255; 0 <= lower < upper <= 100.

    Raises:
        ConfigError: the percentiles are out of range or out of order.
    """

    lower: float = 0.5
    upper: float = 99.5

    def __post_init__(self) -> None:
        if not 0 <= self.lower < self.upper <= 100:
            raise ConfigError(f"percentiles need 0 <= lower < upper <= 100, got {self.lower} and {self.upper}")

    def limits(self, array: np.ndarray) -> tuple[float, float] | None:
        """The values that become 0 and 255, or None for a volume without contrast."""
        values = array[np.isfinite(array)]
        if values.size == 0:
            return None
        low, high = np.percentile(values, (1, 99))
        threshold = float(low + 0.05 * (high - low))
        body = values[values > threshold]
        if body.size == 0:
            return None
        black, white = (float(value) for value in np.percentile(body, (self.lower, self.upper)))
        # A body of a single value still differs from its background.
        return (black, white) if white > black else (threshold, white)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Map a whole volume (single slices would each get their own scale) to uint8; NaN and no contrast become 0."""
        limits = self.limits(array)
        return np.zeros(array.shape, np.uint8) if limits is None else _to_grey(array, *limits)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, see :func:`window_from_dict`."""
        return {"kind": "percentiles", "lower": float(self.lower), "upper": float(self.upper)}


@dataclass(frozen=True)
class StoredGrey:
    """No window: the images are 8-bit grey already."""

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Round to uint8 of the same shape; values outside 0 to 255 are clipped, NaN becomes 0."""
        return _to_grey(array, 0.0, 255.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, see :func:`window_from_dict`."""
        return {"kind": "stored"}


GreyScale: TypeAlias = Window | MRPercentiles | StoredGrey
"""Any mapping of scanner values to 8-bit grey."""

NAMED_WINDOWS: Mapping[str, Window] = MappingProxyType(
    {
        "abdomen": Window(40, 400),
        "angiography": Window(300, 600),
        "bone": Window(400, 1800),
        "brain": Window(40, 80),
        "chest": Window(-160, 1500),
        "liver": Window(30, 150),
        "lung": Window(-600, 1500),
        "mediastinum": Window(50, 350),
        "pelvis": Window(40, 400),
        "spine": Window(50, 250),
    }
)
"""Level and width in HU. ``chest`` is one window for the whole chest, ``lung`` the radiologist's lung window."""

_WINDOW_OF_SITE_WORD = {
    **dict.fromkeys(("chest", "thorax", "thoracic", "lung", "lungs", "pulmonary"), "chest"),
    **dict.fromkeys(("brain", "head", "cerebral"), "brain"),
    **dict.fromkeys(("bone", "bones", "spine", "spinal", "skeleton"), "bone"),
}


def default_window(modality: str, site: str) -> Window | MRPercentiles:
    """Default window of a modality and body site.

    CT gets one window for all targets of the site, because a slice is stored once for all prompts:

    - sites with lungs: ``chest`` (-910 to 590 HU), since the usual lung window ends at 150 HU and leaves heart and
      vessels few grey values. (Choose ``abdomen`` for abdominal targets in a chest-and-abdomen scan.)
    - brain and head: ``brain``; spine and bones: ``bone``; any other or unknown site: ``abdomen`` (soft tissue).

    MR has no units and gets :class:`MRPercentiles`.

    Raises:
        ConfigError: the modality is neither CT nor MR.
    """
    name = parse_modality(modality)
    if name == "unknown":
        msg = "the scan does not say its modality, so no window can be chosen; give the modality (CT or MR) or a window"
        raise ConfigError(msg)
    if name == "MR":
        return MRPercentiles()
    words = re.findall(r"[a-z]+", site.lower())
    if "neck" in words and "head" in words:  # the brain window hides a neck
        words = [word for word in words if word != "head"]
    chosen = {_WINDOW_OF_SITE_WORD[word] for word in words if word in _WINDOW_OF_SITE_WORD}
    return NAMED_WINDOWS[next((name for name in ("chest", "brain", "bone") if name in chosen), "abdomen")]


def parse_window(value: str | Sequence[Any] | Mapping[str, Any] | GreyScale) -> GreyScale:
    """Read a window as users and configurations give it.

    Args:
        value: a name (``"lung"``), ``"percentiles"`` for MR, ``"stored"`` for 8-bit grey, level and width
            (``"40 400"``, ``"40/400"``, ``(40, 400)``, ``["40", "400"]``), the JSON form, or a window.

    Raises:
        ConfigError: it is none of these; the message suggests the nearest name.
    """
    if isinstance(value, (Window, MRPercentiles, StoredGrey)):
        return value
    if isinstance(value, Mapping):
        return window_from_dict(value)
    parts = re.split(r"[\s,/]+", value.strip()) if isinstance(value, str) else list(value)
    if len(parts) == 2:
        try:
            level, width = float(parts[0]), float(parts[1])
        except (TypeError, ValueError):
            msg = f"a window of two parts is LEVEL WIDTH in HU, for example 40 400; got {parts[0]!r} {parts[1]!r}"
            raise ConfigError(msg) from None
        return Window(level, width)
    name = "_".join(str(part) for part in parts).lower()[:60]
    if name == "percentiles":
        return MRPercentiles()
    if name == "stored":
        return StoredGrey()
    if name in NAMED_WINDOWS:
        return NAMED_WINDOWS[name]
    known = [*NAMED_WINDOWS, "percentiles", "stored"]
    listed = f"known are {', '.join(known)}, or LEVEL WIDTH in HU"
    raise ConfigError(f"unknown window {name!r}: {did_you_mean(name, known, otherwise=listed, cutoff=0.6)}")


def window_from_dict(data: Mapping[str, Any]) -> GreyScale:
    """Inverse of ``to_dict``.

    Raises:
        ConfigError: the kind is unknown, a field is missing or unknown, or a number is out of range.
    """
    fields = dict(data)
    kind = {"hu": Window, "percentiles": MRPercentiles, "stored": StoredGrey}.get(str(fields.pop("kind", "")))
    try:
        if kind is not None:
            window = kind(**{key: float(value) for key, value in fields.items()})
            if set(fields) == set(asdict(window)):
                return window
    except (TypeError, ValueError, OverflowError):
        pass
    msg = (
        'a window is {"kind": "hu", "level", "width"}, {"kind": "percentiles", "lower", "upper"} or '
        f'{{"kind": "stored"}}, not {reprlib.repr(dict(data))}'
    )
    raise ConfigError(msg)


def _to_grey(array: np.ndarray, black: float, white: float) -> np.ndarray:
    """Scale to 0…255, clip, round to nearest; slab by slab, so that temporaries fit into the cache."""
    grey = np.empty_like(array, dtype=np.uint8)
    whole = array.ndim < 2
    # The axis that is furthest apart in memory, so that a slab is contiguous.
    axis = 0 if whole else int(np.argmax(np.abs(array.strides)))
    slabs = [(array, grey)] if whole else zip(np.moveaxis(array, axis, 0), np.moveaxis(grey, axis, 0), strict=True)
    for values, out in slabs:
        scaled = values.astype(np.float32)
        scaled -= np.float32(black)
        scaled *= np.float32(255.0 / (white - black))
        # fmax and fmin, unlike clip, let NaN become the limit: 0.
        np.fmin(np.fmax(scaled, np.float32(0), out=scaled), np.float32(255), out=scaled)
        scaled += np.float32(0.5)
        out[...] = scaled.astype(np.uint8)
    return grey
