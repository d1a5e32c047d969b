"""Settings of an inference run, validated once where they enter, and the files that a run writes."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from boltzformer_monai import __version__
from boltzformer_monai.data.planes import checked_planes
from boltzformer_monai.data.prompts import checked_prompts
from boltzformer_monai.data.windows import GreyScale, StoredGrey, parse_window
from boltzformer_monai.errors import ConfigError, reject_unknown
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.point import checked_point
from boltzformer_monai.inferers.volume_result import ARBITRATIONS
from boltzformer_monai.modality import OTHER, stated_modality

__all__ = [
    "DICOM_ENDINGS", "ENDINGS", "ModelRecord", "RunSettings", "beside", "mask_names", "result_path",
    "uncertainty_names", "written_paths",
]  # fmt: skip

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".rtstruct.dcm", ".dcm", ".npz")
DICOM_ENDINGS = {".dcm": "DICOM SEG", ".rtstruct.dcm": "RTSTRUCT"}
"""Of objects that refer to a DICOM scan and hold all prompts, and their names."""
IN_PLANE = ("fit", "tiles")
KEEP_LESIONS = ("all", "at_point")
ALL_PLANES = "all"
"""Instead of planes: all that the model was trained on."""
MOST_POSES = 5
"""That are averaged, see :mod:`boltzformer_monai.transforms.poses`."""
_UNCERTAINTY = "-uncertainty"


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What a result depends on beside the scan and the settings.

    Attributes:
        sha256: of the model: of the checkpoint file, or of a model folder's weights and description.
        plane: of the slices, or several that are averaged; ``None`` where the scan decides.
        presence: thresholds of the presence head, ``None`` where there are none or they are not used.
        precision: of the arithmetic, ``"fp32"`` or ``"bf16"``.
        device: its kind, e.g. ``"cpu"``; devices round differently.
        protocol: how slices are shown and merged.
        protocol_settings: all of its own.
        licence: of the weights, ``None`` where none is stated; no part of the record of a result.
    """

    sha256: str
    plane: str | tuple[str, ...] | None = "axial"
    presence: PresenceRule | None = None
    precision: str = "fp32"
    device: str = "cpu"
    protocol: str = "boltzformer"
    protocol_settings: Mapping[str, Any] = field(default_factory=dict)
    licence: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a run, built once by command line, bundle or server, and immutable.

    Values are normalised: sequences become tuples, ``planes`` and ``window`` also take a single text.

    Attributes:
        prompts: exact texts, in the order of their label values.
        seed: of the attention sampling.
        threshold: probability from which a voxel belongs to an object, between 0 and 1.
        planes: planes to slice along, whose probabilities are averaged; ``None`` or ``"all"``: all of the training's.
        in_plane: ``"fit"`` scales whole slices into the network's square, ``"tiles"`` covers large ones by overlapping
            squares at their own resolution.
        presence: drop the slices in which the presence head does not find the object.
        repeats: draws of the attention sampling, whose probabilities are averaged; with 2 or more there is an entropy.
        tta: poses of each slice, slightly turned, scaled and shifted, whose probabilities are averaged (test-time
            averaging); 1: the slice as it is.
        arbitration: which prompt gets a voxel that several claim: the most ``"probability"``, or the ``"first"``.
        masks: write one file per prompt instead of a label map.
        ending: of the segmentation files, one of :data:`ENDINGS`.
        preview: write a contact sheet.
        window: for all prompts, anything that :func:`~boltzformer_monai.data.windows.parse_window` takes; ``None``: the
            window each target was trained with.
        modality: ``"CT"`` or ``"MR"`` of scans that do not state theirs; ``None``: the only one of the training. With
            stored grey values any other name, which becomes ``"other"``.
        literal: pass prompts to the network unchanged, including negations, sizes and counts, which it does not know.
        protocol: how slices are shown to the network and its answers merged; ``None``: as the checkpoint says, else as
            this package's training does. See :mod:`boltzformer_monai.inferers.protocols`.
        protocol_settings: the protocol's own, by name: plain values.
        lesion_min_ml: volume from which a component of a mask is listed as a lesion; masks keep all.
        lesion_min_mm: largest diameter from which it is listed.
        point: a place in the patient, millimetres in RAS+, that the request is about; ``None``: the whole scan.
        keep_lesions: which components of a mask are kept: ``"all"``, or the one ``"at_point"``.
        look_closer: decode the region around the point again, at full resolution.
        closer_point: the place whose region is decoded again, like ``point``, where the lesion at another place of it
            is meant; ``None``: ``point``.
        label_values: of the prompts in the label map, from 1 to 65535; ``None``: 1, 2, …
        batch_size: slices (or tiles) per pass on a GPU; halved, with a warning, where its memory is too small. No part
            of the record of a result.

    Raises:
        PromptError: there are no prompts, or one is empty, no valid text or given twice.
        ConfigError: another value is unknown or out of range.
    """

    prompts: Sequence[str]
    seed: int = 0
    threshold: float = 0.5
    planes: str | Sequence[str] | None = None
    in_plane: str = "fit"
    presence: bool = True
    repeats: int = 1
    tta: int = 1
    arbitration: str = "probability"
    masks: bool = False
    ending: str = ".nii.gz"
    preview: bool = False
    window: str | Sequence[Any] | Mapping[str, Any] | GreyScale | None = None
    modality: str | None = None
    literal: bool = False
    protocol: str | None = None
    protocol_settings: Mapping[str, Any] = field(default_factory=dict)
    lesion_min_ml: float = 0.0
    lesion_min_mm: float = 0.0
    point: Sequence[float] | None = None
    keep_lesions: str = "all"
    look_closer: bool = False
    closer_point: Sequence[float] | None = None
    label_values: Sequence[int] | None = None
    batch_size: int = 4

    def __post_init__(self) -> None:
        self._set("prompts", tuple(checked_prompts(self.prompts)))
        for name in ("presence", "masks", "preview", "literal", "look_closer"):
            self._set(name, _boolean(name, getattr(self, name)))
        for name, least in (("seed", 0), ("repeats", 1), ("batch_size", 1)):
            self._set(name, _integer(name, getattr(self, name), least))
        self._set("tta", _integer("tta", self.tta, 1))
        if self.tta > MOST_POSES:
            raise ConfigError(f"tta averages 1 to {MOST_POSES} poses of a slice, got {self.tta}")
        if self.tta > 1 and self.in_plane == "tiles":
            raise ConfigError("tta averages poses of whole slices; leave it or in_plane tiles out")
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, Real) or not 0 < self.threshold < 1:
            raise ConfigError(f"the threshold must be between 0 and 1, got {_short(self.threshold)}")
        choices = {"in_plane": IN_PLANE, "arbitration": ARBITRATIONS, "ending": ENDINGS, "keep_lesions": KEEP_LESIONS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name} {_short(getattr(self, name))}; use {' or '.join(known)}")
        if self.masks and self.ending in DICOM_ENDINGS:
            kind = f"{'an' if self.ending == '.rtstruct.dcm' else 'a'} {DICOM_ENDINGS[self.ending]}"
            msg = f"{kind} holds a mask for each prompt anyway; leave --masks out, or use .nii.gz, .nii or .nrrd"
            raise ConfigError(msg)
        if self.ending == ".npz" and (self.masks or self.repeats > 1):
            msg = "an .npz holds a label map alone; leave --masks and --uncertainty out, or write another format"
            raise ConfigError(msg)
        if self.protocol is not None and not (isinstance(self.protocol, str) and self.protocol):
            raise ConfigError(f"the protocol must be a name, got {_short(self.protocol)}")
        self._set("protocol_settings", _plain_settings(self.protocol_settings))
        for name in ("lesion_min_ml", "lesion_min_mm"):
            self._set(name, _size(name, getattr(self, name)))
        if self.point is not None:
            self._set("point", checked_point(self.point))
        elif self.look_closer or self.keep_lesions == "at_point":
            what = "look_closer" if self.look_closer else "keep_lesions at_point"
            raise ConfigError(f"{what} needs a point; give one in millimetres, towards Right, Anterior and Superior")
        if self.closer_point is not None:
            if not self.look_closer:
                raise ConfigError("closer_point says where to look closer; give it with look_closer alone")
            self._set("closer_point", checked_point(self.closer_point))
        if self.label_values is not None:
            self._set("label_values", _label_values(self.label_values, len(self.prompts)))
        if self.planes is not None:
            self._set("planes", _planes(self.planes))
        self._set("window", _window(self.window))
        if self.modality is not None:
            is_grey = isinstance(self.grey_scale, StoredGrey) or self.modality == OTHER
            self._set("modality", stated_modality(str(self.modality), stored_grey=is_grey))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> RunSettings:
        """Settings by name, as a configuration file gives them.

        Raises:
            ConfigError: a name is unknown, with the nearest known one; or as the constructor.
            PromptError: as the constructor.
        """
        reject_unknown(settings, (field.name for field in dataclasses.fields(cls)), what="setting")
        return cls(**settings)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def grey_scale(self) -> GreyScale | None:
        """The window for all prompts; ``None``: each target's own."""
        return None if self.window is None else _parsed(self.window)

    @property
    def image_ending(self) -> str:
        """Of files that are images even where the segmentation is a DICOM object."""
        return ".nii.gz" if self.ending in DICOM_ENDINGS else self.ending

    def record(self, model: ModelRecord) -> dict[str, Any]:
        """Plain values that decide a result; equal records of equal scans make equal files."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["batch_size"]
        if self.planes not in (None, (ALL_PLANES,)):
            model = dataclasses.replace(model, plane=tuple(self.planes or ()))
        record = {
            "prompts": values.pop("prompts"),
            "model": model.sha256,
            **values,
            "planes": (model.plane,) if isinstance(model.plane, str) else model.plane,
            "protocol": model.protocol,
            "protocol_settings": dict(model.protocol_settings),
            "presence": None if model.presence is None else model.presence.as_dict(),
            "window": self.window.to_dict() if isinstance(self.window, GreyScale) else self.window,
            "precision": model.precision,
            "device": model.device,
            "package": __version__,
        }
        return json.loads(json.dumps(record))  # type: ignore[no-any-return]


def mask_names(settings: RunSettings) -> list[str]:
    """What follows the output's name in the files of the segmentation: one, or one for each prompt."""
    if not settings.masks:
        return [settings.ending]
    return [f"/{_prompt_name(index, prompt)}{settings.ending}" for index, prompt in enumerate(settings.prompts)]


def uncertainty_names(settings: RunSettings) -> list[str]:
    """What follows the output's name in the files of the uncertainty; none without repeats."""
    if settings.repeats < 2:
        return []
    if not settings.masks:
        return [f"{_UNCERTAINTY}{settings.image_ending}"]
    ends = [name.removesuffix(settings.ending) for name in mask_names(settings)]
    return [f"{end}{_UNCERTAINTY}{settings.ending}" for end in ends]


def written_paths(stem: Path, settings: RunSettings, preview: Path | None = None) -> list[Path]:
    """Every file that is written for a scan, the manifest last; ``stem`` is the output's name without its ending."""
    paths = [beside(stem, name) for name in (*mask_names(settings), *uncertainty_names(settings))]
    if settings.preview:
        paths.append(preview or beside(stem, ".png"))
    return [*paths, beside(stem, ".json")]


def result_path(stem: Path, settings: RunSettings) -> Path:
    """The segmentation itself: a file, or the folder of masks."""
    return stem if settings.masks else beside(stem, settings.ending)


def beside(stem: Path, ending: str) -> Path:
    """The file of this ending."""
    return Path(f"{stem}{ending}")


def _prompt_name(index: int, prompt: str) -> str:
    words = re.sub(r"\W+", "_", prompt.lower()).strip("_")[:40].rstrip("_")
    return f"{index + 1:02d}_{words}" if words else f"{index + 1:02d}"


def _short(value: Any) -> str:
    return ascii(value[:60] if isinstance(value, str) else value)[:80]


def _boolean(name: str, value: Any) -> bool:
    found = {"true": True, "false": False}.get(str(value).lower())  # a configuration may give text
    if found is None:
        raise ConfigError(f"{name} must be true or false, got {_short(value)}")
    return found


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {_short(value)}")
    return int(value)


def _size(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ConfigError(f"{name} must be a number of at least 0, got {_short(value)}")
    return float(value)


def _plain_settings(settings: Any) -> dict[str, Any]:
    named = isinstance(settings, Mapping) and all(isinstance(name, str) for name in settings)
    if not named or not all(value is None or isinstance(value, str | int | float) for value in settings.values()):
        raise ConfigError(f"protocol_settings must map names to texts, numbers, true or false, got {_short(settings)}")
    return dict(settings)


def _label_values(values: Any, count: int) -> tuple[int, ...]:
    chosen = tuple(values) if isinstance(values, list | tuple) else ()
    whole = all(isinstance(each, Integral) and not isinstance(each, bool) and 0 < int(each) < 2**16 for each in chosen)
    if len(chosen) != count or not whole or len(set(chosen)) < count:
        raise ConfigError(f"label_values must be {count} different whole numbers from 1 to 65535, got {_short(values)}")
    return tuple(int(each) for each in chosen)


def _planes(planes: str | Sequence[str]) -> tuple[str, ...]:
    return (ALL_PLANES,) if planes in (ALL_PLANES, (ALL_PLANES,), [ALL_PLANES]) else checked_planes(planes)


def _window(window: str | Sequence[Any] | Mapping[str, Any] | GreyScale | None) -> tuple[str, ...] | GreyScale | None:
    """Texts stay as they were given, for the record; all else becomes a window."""
    if window is None:
        return None
    if isinstance(window, str):
        window = (window,)
    if isinstance(window, Sequence):
        words = tuple(str(part) for part in window)
        _parsed(words)
        return words
    if not isinstance(window, Mapping | GreyScale):
        raise ConfigError(f"the window must be a name, level/width or a mapping, got {_short(window)}")
    return parse_window(window)


def _parsed(window: Any) -> GreyScale:
    """The window of texts: ``("lung",)``, ``("40/400",)``, ``("40", "400")``; or of a mapping or window."""
    return parse_window(window[0] if isinstance(window, tuple) and len(window) == 1 else window)
