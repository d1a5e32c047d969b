"""What a client may ask for: parsed, checked and whitelisted, once, for MONAI Label's own route and for ours."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boltzformer_monai.data.planes import PLANE_AXES
from boltzformer_monai.data.prompts import normalise_prompt, split_prompts
from boltzformer_monai.data.windows import GreyScale, parse_window
from boltzformer_monai.errors import ConfigError, PromptError
from boltzformer_monai.inferers.prompt_groups import checked_prompts
from boltzformer_monai.inferers.volume_result import ARBITRATIONS
from boltzformer_monai.modality import stated_modality

MOST_PROMPTS = 255
LONGEST_PROMPT = 500
UNCERTAINTY = (2, 20)
EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
DTYPES = ("uint8", "uint16")
KEYS = (
    "prompts", "threshold", "seed", "uncertainty", "presence", "planes", "window", "arbitration", "modality", "literal",
    "result_extension", "result_dtype",
)  # fmt: skip
HARMLESS = frozenset({
    "client_id", "device", "gpus", "label_info", "label_tag", "logging", "max_batch_size", "max_workers",
    "multi_gpu", "result_compress", "restore_label_idx", "save_label", "ts", "user",
})  # fmt: skip
"""What MONAI Label's clients send along and this model needs not; neither names a file."""


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """A sound request; the fields are those of the JSON.

    Raises:
        PromptError: the prompts cannot be used.
        ConfigError: another field is out of range.
    """

    prompts: tuple[str, ...]
    threshold: float = 0.5
    seed: int = 0
    uncertainty: int = 0
    presence: bool = True
    planes: tuple[str, ...] | None = None
    window: str | tuple[float, float] | None = None
    arbitration: str = "probability"
    modality: str | None = None
    literal: bool = False
    result_extension: str = ".nii.gz"
    result_dtype: str = "uint8"

    def __post_init__(self) -> None:
        checked_prompts(self.prompts)
        if len(self.prompts) > MOST_PROMPTS:
            msg = f"{len(self.prompts)} prompts; a label map of bytes holds at most {MOST_PROMPTS}"
            raise PromptError(msg)
        if long := next((prompt for prompt in self.prompts if len(prompt) > LONGEST_PROMPT), None):
            msg = f"a prompt of {len(long)} letters; at most {LONGEST_PROMPT} are read"
            raise PromptError(msg)
        for prompt in self.prompts:
            normalise_prompt(prompt)

    @property
    def repeats(self) -> int:
        """Decodings per slice."""
        return self.uncertainty or 1

    @property
    def shown(self) -> GreyScale | None:
        """The window for all prompts; ``None``: each target's own."""
        return None if self.window is None else parse_window(self.window)


def parse_request(
    params: Mapping[str, Any], *, default_prompts: Sequence[str], extra: Sequence[str] = ()
) -> SegmentRequest:
    """Check a client's JSON object.

    Args:
        params: as sent.
        default_prompts: asked where none are given.
        extra: further keys that the caller reads itself.

    Raises:
        PromptError: the prompts cannot be used.
        ConfigError: a key is unknown, or a value of another type or out of range.
    """
    for key in params:
        if key not in KEYS and key not in HARMLESS and key not in extra:
            near = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KEYS)}"
            msg = f"unknown parameter {str(key)[:60]!a}; {hint}"
            raise ConfigError(msg)
    given = {key: params[key] for key in KEYS if params.get(key) not in (None, "", [])}
    values: dict[str, Any] = {"prompts": _prompts(given.pop("prompts", None), default_prompts)}
    for key, value in given.items():
        values[key] = _CHECKS[key](key, value)
    return SegmentRequest(**values)


def with_ticked_labels(params: Mapping[str, Any], labels: Mapping[str, int]) -> dict[str, Any]:
    """A request with ``label_prompt``, the numbers of labels that OHIF's "Class Prompts" sends, in prompts.

    OHIF keeps the numbers in its options, so a later request may hold them beside prompts: then both are asked for.

    Args:
        params: as sent.
        labels: name → number, as /info shows them.

    Raises:
        PromptError: the prompts cannot be used.
        ConfigError: there are no such labels, or none is ticked.
    """
    found = {key: value for key, value in params.items() if key != "label_prompt"}
    ticked, names = params["label_prompt"], {number: name for name, number in labels.items()}
    if ticked == [] and found.get("prompts"):
        return found  # of an earlier run without any tick, which must not spoil the next ones
    if not isinstance(ticked, list) or not ticked or not all(type(n) is int and n in names for n in ticked):
        raise _bad("label_prompt", "a list of numbers of labels, see /info", ticked)
    asked = _prompts(found["prompts"], ()) if found.get("prompts") else ()
    prompts = {normalise_prompt(prompt): prompt for prompt in (*asked, *(names[number] for number in ticked))}
    return {**found, "prompts": list(prompts.values())}


def _prompts(value: Any, default: Sequence[str]) -> tuple[str, ...]:
    if value is None:
        if not default:
            msg = 'no prompts given, and the server has no default ones; add "prompts": ["left kidney"]'
            raise PromptError(msg)
        return tuple(default)
    if isinstance(value, str):
        value = split_prompts(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(prompt, str) for prompt in value):
        msg = "prompts must be a list of texts, or one text with ';' between prompts"
        raise PromptError(msg)
    return tuple(prompt.strip() for prompt in value)


def _bad(key: str, wanted: str, value: Any) -> ConfigError:
    return ConfigError(f"{key} must be {wanted}, got {str(value)[:60]!a}")


def _number(key: str, value: Any) -> float:
    if isinstance(value, str):  # Slicer's table of options holds texts
        try:
            value = float(value)
        except ValueError:
            raise _bad(key, "a number", value) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad(key, "a number", value)
    return value


def _threshold(key: str, value: Any) -> float:
    number = float(_number(key, value))
    if not 0 < number < 1:
        raise _bad(key, "between 0 and 1", value)
    return number


def _whole(key: str, value: Any, low: int, high: int) -> int:
    number = _number(key, value)
    if number != int(number) or not low <= number <= high:
        raise _bad(key, f"a whole number from {low} to {high}", value)
    return int(number)


def _uncertainty(key: str, value: Any) -> int:
    low, high = UNCERTAINTY
    number = _whole(key, value, 0, high)
    if 0 < number < low:
        raise _bad(key, f"0 or from {low} to {high}", value)
    return number


def _truth(key: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise _bad(key, "true or false", value)
    return value


def _planes(key: str, value: Any) -> tuple[str, ...]:
    planes = value.replace(";", ",").replace(",", " ").split() if isinstance(value, str) else value
    known = isinstance(planes, list | tuple) and all(isinstance(p, str) and p in PLANE_AXES for p in planes)
    if not known or not planes or len(set(planes)) < len(planes):
        raise _bad(key, f"different ones of {', '.join(PLANE_AXES)}", value)
    return tuple(planes)


def _window(key: str, value: Any) -> str | tuple[float, float]:
    window: str | tuple[float, float]
    if isinstance(value, list | tuple) and len(value) == 2:
        window = (float(_number(key, value[0])), float(_number(key, value[1])))
    elif isinstance(value, str):
        window = value
    else:
        raise _bad(key, "a name, or [level, width] in HU", value)
    parse_window(window)
    return window


def _modality(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _bad(key, "CT or MR", value)
    return stated_modality(value)


def _choice(*choices: str) -> Any:
    def check(key: str, value: Any) -> str:
        if value not in choices:
            raise _bad(key, f"one of {', '.join(choices)}", value)
        return str(value)

    return check


_CHECKS: dict[str, Any] = {
    "threshold": _threshold,
    "seed": lambda key, value: _whole(key, value, 0, 2**31 - 1),
    "uncertainty": _uncertainty,
    "presence": _truth,
    "planes": _planes,
    "window": _window,
    "arbitration": _choice(*ARBITRATIONS),
    "literal": _truth,
    "modality": _modality,
    "result_extension": _choice(*EXTENSIONS),
    "result_dtype": _choice(*DTYPES),
}
