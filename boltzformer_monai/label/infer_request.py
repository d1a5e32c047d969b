"""Requests for a segmentation: one checked model for MONAI Label's infer route, for ours and for scoring."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from boltzformer_monai.data.prompts import normalise_prompt, split_prompts
from boltzformer_monai.errors import ConfigError, PromptError, did_you_mean
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.label.validation import Integer, Number, Truth, validated

MAX_PROMPTS = 255
MAX_PROMPT_LENGTH = 500
UNCERTAINTY = (2, 20)


def _check_lengths(prompts: tuple[str, ...]) -> tuple[str, ...]:
    if len(prompts) > MAX_PROMPTS:
        raise PromptError(f"{len(prompts)} prompts; an 8-bit label map holds at most {MAX_PROMPTS}")
    if long := next((prompt for prompt in prompts if len(prompt) > MAX_PROMPT_LENGTH), None):
        raise PromptError(f"a prompt of {len(long)} characters; at most {MAX_PROMPT_LENGTH} are allowed")
    return prompts


def _check_uncertainty(repeats: int) -> int:
    low, high = UNCERTAINTY
    if repeats != 0 and not low <= repeats <= high:
        raise ValueError(f"should be 0 or from {low} to {high}")
    return repeats


def _split_planes(planes: Any) -> Any:
    return planes.replace(";", ",").replace(",", " ").split() if isinstance(planes, str) else planes


def _split_point(point: Any) -> Any:
    return point.replace(",", " ").split() if isinstance(point, str) else point


_Point = Annotated[tuple[Number, Number, Number] | None, BeforeValidator(_split_point)]


def _check_window(window: Any) -> Any:
    if not isinstance(window, str | list | tuple | None):
        raise ValueError("should be a name, or [level, width] in HU")
    return window


class SegmentRequest(BaseModel):
    """A request; the fields are the keys of its JSON. Types are checked here, values by :class:`RunSettings`.

    Raises:
        PromptError: a prompt is empty, repeated, too long or cannot be tokenised; or there are too many.
        ConfigError: another value is unknown or out of range.
        pydantic.ValidationError: a field is of another type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: Annotated[tuple[str, ...], AfterValidator(_check_lengths)]
    threshold: Number = 0.5
    seed: Annotated[Integer, Field(lt=2**31)] = 0
    uncertainty: Annotated[Integer, AfterValidator(_check_uncertainty)] = 0
    presence: Truth = True
    planes: Annotated[tuple[str, ...] | None, BeforeValidator(_split_planes)] = None
    window: Annotated[Any, AfterValidator(_check_window)] = None
    arbitration: str = "probability"
    modality: str | None = None
    literal: Truth = False
    lesion_min_ml: Number = 0.0
    lesion_min_mm: Number = 0.0
    point: _Point = None
    keep_lesions: str = "all"
    look_closer: Truth = False
    closer_point: _Point = None
    protocol: Annotated[str, Field(max_length=60)] | None = None
    protocol_settings: Annotated[dict[str, bool | int | float | str], Field(max_length=20)] = {}
    result_extension: Literal[".nii.gz", ".nii", ".nrrd"] = ".nii.gz"
    result_dtype: Literal["uint8", "uint16"] = "uint8"

    @model_validator(mode="after")
    def _check_values(self) -> SegmentRequest:
        self.run_settings(batch_size=1, modality=None)
        return self

    @property
    def repeats(self) -> int:
        """Draws of the attention sampling."""
        return self.uncertainty or 1

    def run_settings(self, *, batch_size: int, modality: str | None) -> RunSettings:
        """Settings of the run; modality and batch size are the server's, the former where the request has none."""
        values = self.model_dump(exclude={"uncertainty", "result_extension", "result_dtype"})
        values["modality"] = self.modality or modality
        return RunSettings(**values, repeats=self.repeats, batch_size=batch_size)


def _check_gpus(gpus: Any) -> Any:
    if not re.fullmatch(r"all|[0-9,]*", str(gpus or "all")):
        raise ValueError("should be all, or numbers with commas between them")
    return gpus


_Plain = str | int | float | None


class ClientParams(BaseModel):
    """What MONAI Label's clients send along and this model does not use; no key of these names a file.

    MONAI Label's own code takes the values for texts and numbers.
    """

    client_id: _Plain = None
    device: _Plain = None
    gpus: Annotated[_Plain, AfterValidator(_check_gpus)] = None
    label_info: Any = None
    label_tag: _Plain = None
    logging: _Plain = None
    max_batch_size: _Plain = None
    max_workers: _Plain = None
    multi_gpu: _Plain = None
    result_compress: _Plain = None
    restore_label_idx: _Plain = None
    save_label: _Plain = None
    ts: _Plain = None
    user: _Plain = None


KEYS = tuple(SegmentRequest.model_fields)


def parse_request(
    params: Mapping[str, Any], *, default_prompts: Sequence[str], extra: Sequence[str] = ()
) -> SegmentRequest:
    """Check a client's JSON object.

    Args:
        params: as sent; ``None``, ``""`` and ``[]`` mean the default.
        default_prompts: used where none are given.
        extra: further keys that the caller reads itself.

    Raises:
        PromptError: the prompts cannot be used.
        ConfigError: a key is unknown, or a value of another type or out of range.
    """
    for key in params:
        if key not in KEYS and key not in ClientParams.model_fields and key not in extra:
            hint = did_you_mean(str(key), KEYS, show=str, cutoff=0.6)
            raise ConfigError(f"unknown parameter {str(key)[:60]!a}; {hint}")
    given = {key: params[key] for key in KEYS if params.get(key) not in (None, "", [])}
    return validated(SegmentRequest, {**given, "prompts": _prompts(given.get("prompts"), default_prompts)})


def with_ticked_labels(params: Mapping[str, Any], labels: Mapping[str, int]) -> dict[str, Any]:
    """Turn ``label_prompt``, the label numbers that OHIF's "Class Prompts" sends, into prompts.

    OHIF keeps the numbers in its options, so a later request may hold them beside prompts; then both are segmented.
    The numbers of labels are those of /info.

    Raises:
        PromptError: the prompts cannot be used.
        ConfigError: there are no such labels, or none is ticked.
    """
    found = {key: value for key, value in params.items() if key != "label_prompt"}
    ticked, names = params["label_prompt"], {number: name for name, number in labels.items()}
    if ticked == [] and found.get("prompts"):
        return found  # left over from a run without ticks
    if not isinstance(ticked, list) or not ticked or not all(type(n) is int and n in names for n in ticked):
        raise ConfigError(f"label_prompt must be a list of label numbers, see /info, got {str(ticked)[:60]!a}")
    typed = _prompts(found["prompts"], ()) if found.get("prompts") else ()
    prompts = {normalise_prompt(prompt): prompt for prompt in (*typed, *(names[number] for number in ticked))}
    return {**found, "prompts": list(prompts.values())}


def _prompts(value: Any, default: Sequence[str]) -> tuple[str, ...]:
    if value is None:
        if not default:
            raise PromptError('no prompts given, and the server has no default ones; add "prompts": ["left kidney"]')
        return tuple(default)
    if isinstance(value, str):
        value = split_prompts(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(prompt, str) for prompt in value):
        raise PromptError("prompts must be a list of texts, or one text with ';' between prompts")
    return tuple(prompt.strip() for prompt in value)
