"""Size limits in prompts, in four languages: ``"lung nodules smaller than 5 mm"``."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from boltzformer_monai.data.prompt_words import LANGUAGES, digraphs, fold, language
from boltzformer_monai.errors import PromptError

__all__ = ["SizeLimit", "find_size_limit"]

_NUMBER = r"\d+(?:[.,]\d+)?"
_UNITS = {"mm": ("mm", 1.0), "cm": ("mm", 10.0), "ml": ("ml", 1.0), "cc": ("ml", 1.0), "ccm": ("ml", 1.0)}
_UNITS |= {"cm3": ("ml", 1.0), "cm^3": ("ml", 1.0), "mm3": ("ml", 1e-3), "mm^3": ("ml", 1e-3), "l": ("ml", 1e3)}
_FOUND = "§"


@dataclass(frozen=True)
class SizeLimit:
    """Limits of a lesion's long axis in millimetres, or of its volume in millilitres.

    Attributes:
        unit: ``"mm"`` or ``"ml"``.
        least: lower limit, or None.
        most: upper limit, or None.
        least_included: whether the lower limit itself is within (at least), or not (more than).
        most_included: likewise (at most, less than).
    """

    unit: str
    least: float | None = None
    most: float | None = None
    least_included: bool = True
    most_included: bool = True

    def admits(self, *, long_axis_mm: float, volume_ml: float) -> bool:
        """Whether a lesion of this size is within the limits."""
        size = long_axis_mm if self.unit == "mm" else volume_ml
        if self.least is not None and (size < self.least or (size == self.least and not self.least_included)):
            return False
        return self.most is None or size < self.most or (size == self.most and self.most_included)

    def __str__(self) -> str:
        least = "" if self.least is None else f"{'≥' if self.least_included else '>'} {self.least:g} {self.unit}"
        most = "" if self.most is None else f"{'≤' if self.most_included else '<'} {self.most:g} {self.unit}"
        return " and ".join(filter(None, (least, most)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "text": str(self), "unit": self.unit, "least": self.least, "most": self.most,
            "least_included": self.least_included, "most_included": self.most_included,
        }  # fmt: skip

    @staticmethod
    def of(content: Mapping[str, Any]) -> SizeLimit:
        """Undo :meth:`as_dict`."""
        return SizeLimit(**{name: value for name, value in content.items() if name != "text"})


def find_size_limit(text: str) -> tuple[str, SizeLimit | None]:
    """A text, folded and without its size limits, and these as one.

    Raises:
        PromptError: they exclude each other, or are of lengths and volumes.
    """
    rest, limits = fold(text), []
    for match in reversed([*_measure().finditer(rest)]):  # from the last: "from 3 mm to 1 cm" is one limit
        if match.end() > len(rest) or rest[match.start() : match.end()] != match[0]:
            continue  # part of the one after it
        found = _limit(rest[: match.start()], match, rest[match.end() :])
        if found is None:  # a size, but no limit
            continue
        limit, left, right = found
        limits.append(limit)
        rest = f"{left} {_FOUND} {_and_another().sub('', right)}"
    if not limits:
        return rest, None
    return " ".join(rest.replace(_FOUND, " ").split()), functools.reduce(_both, limits)


def _both(one: SizeLimit, other: SizeLimit) -> SizeLimit:
    if one.unit != other.unit:
        raise PromptError("the prompt limits lengths and volumes; give limits of one kind")
    for name, inner in (("least", max), ("most", min)):
        given = [(each, getattr(each, name)) for each in (one, other) if getattr(each, name) is not None]
        if not given:
            continue
        value = inner(limit for _, limit in given)
        included = all(getattr(each, f"{name}_included") for each, limit in given if limit == value)
        one = replace(one, **{name: value, f"{name}_included": included})
    return _checked(one)


def _checked(limit: SizeLimit) -> SizeLimit:
    if limit.least is not None and limit.most is not None and limit.least > limit.most:
        raise PromptError(f"no size is {limit}; correct the limits in the prompt")
    return limit


def _limit(left: str, match: re.Match[str], right: str) -> tuple[SizeLimit, str, str] | None:
    """The limit that a measure is, with the text before and after it; None for a mere size."""
    unit, factor = _units()[match["unit"]]
    value = round(_number(match["value"]) * factor, 9)
    right = _without_start(right, "size_nouns")
    if pair := _lower(left):
        lower, other_unit, before = pair
        least = round(lower * (_units()[other_unit][1] if other_unit else factor), 9)
        return _checked(SizeLimit(unit, least=least, most=value)), _without_end(before), right
    for text in (left, left := _without_end(left)):  # "moins de 5 mm", "de diametre 5 mm"
        forms = [(len(end), key) for key in _BEFORE for end in _phrases(key) if _ends(text, end)]
        if forms:
            length, key = max(forms)
            left = _without_end(text.rstrip(" (,.:")[:-length])
            break
    else:
        after = [(len(start), key) for key in _AFTER for start in _phrases(key) if _starts(right, start)]
        if not after:
            return None
        length, key = max(after)
        right, key = _without_start(right.lstrip(" ,(")[length:], "size_nouns"), _AFTER[key]
    included = key.startswith("at")
    if key in ("below", "at_most"):
        return SizeLimit(unit, most=value, most_included=included), left, right
    return SizeLimit(unit, least=value, least_included=included), left, right


_BEFORE = ("at_most", "at_least", "below", "above")
_AFTER = {"or_less": "at_most", "or_more": "at_least"}
_SYMBOLS = {
    "at_most": ("<=", "=<", "≤", "⩽"), "at_least": (">=", "=>", "≥", "⩾"), "below": ("<",), "above": (">",),
    "or_more": ("+",),
}  # fmt: skip


def _lower(left: str) -> tuple[float, str, str] | None:
    """The lower number of ``"between 3 and"`` or ``"3 -"``, its unit or ``""``, and what stands before."""
    for first, second in _pairs():
        match = _number_at_end().search(left.rstrip()[: -len(second)]) if _ends(left, second) else None
        if match and _ends(left[: match.start()], first):
            return _number(match["value"]), match["unit"] or "", left[: match.start()].rstrip(" (,")[: -len(first)]
    match = _number_at_end().search(re.sub(r"\s*(?:[-–—]|\b(?:to|bis|a))\s*$", "", left))
    if match and match.end() < len(left.rstrip()):
        return _number(match["value"]), match["unit"] or "", left[: match.start()]
    return None


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def _ends(text: str, phrase: str) -> bool:
    text = text.rstrip(" (,.:")
    return text.endswith(phrase) and not (phrase[0].isalnum() and text[-len(phrase) - 1 : -len(phrase)].isalnum())


def _starts(text: str, phrase: str) -> bool:
    text = text.lstrip(" ,(")
    return text.startswith(phrase) and not (phrase[-1].isalnum() and text[len(phrase) : len(phrase) + 1].isalnum())


def _without_end(text: str) -> str:
    """A text without the words for a size at its end, such as "with a diameter of"."""
    while longest := max((len(end) for end in _phrases("size_nouns") if _ends(text, end)), default=0):
        text = text.rstrip(" (,.:")[:-longest]
    return text.rstrip(" (,")


def _without_start(text: str, key: str) -> str:
    while longest := max((len(start) for start in _phrases(key) if _starts(text, start)), default=0):
        text = text.lstrip(" ,(")[longest:]
    return text.lstrip(" ),") if text.lstrip().startswith(")") else text


@functools.cache
def _units() -> Mapping[str, tuple[str, float]]:
    units = dict(_UNITS)
    for code in LANGUAGES:
        for unit, names in language(code)["units"].items():
            units.update(dict.fromkeys(map(fold, names), _UNITS[unit]))
    return units


@functools.cache
def _phrases(key: str) -> frozenset[str]:
    texts = [text for code in LANGUAGES for text in language(code).get(key, ())]
    return frozenset([form for text in texts for form in (fold(text), digraphs(text))]) | {*_SYMBOLS.get(key, ())}


@functools.cache
def _pairs() -> tuple[tuple[str, str], ...]:
    return tuple((fold(first), fold(second)) for code in LANGUAGES for first, second in language(code)["between"])


@functools.cache
def _and_another() -> re.Pattern[str]:
    words = "|".join(map(re.escape, sorted(_phrases("and") | _phrases("but"))))
    return re.compile(rf"^[\s,]*(?:(?:{words})\s+)?(?={_FOUND})")


@functools.cache
def _unit_pattern() -> str:
    return "|".join(re.escape(unit) for unit in sorted(_units(), key=len, reverse=True))


@functools.cache
def _measure() -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.,])(?P<value>{_NUMBER})[\s-]*(?P<unit>{_unit_pattern()})(?![\w^])")


@functools.cache
def _number_at_end() -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.,])(?P<value>{_NUMBER})\s*(?P<unit>{_unit_pattern()})?\s*$")
