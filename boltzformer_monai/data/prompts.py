"""Canonical names of targets, and their prompts.

A target that the vocabulary (``vocabulary.json``) does not know keeps its name and gets the same templates.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from boltzformer_monai.errors import PromptError
from boltzformer_monai.modality import stored_modality

__all__ = [
    "TargetEntry",
    "checked_prompts",
    "composite_targets",
    "control_character",
    "english_names",
    "find_target",
    "normalise_prompt",
    "normalise_site",
    "normalise_target",
    "prompts_for",
    "site_adjective",
    "site_contains",
    "site_names",
    "split_prompts",
    "tidy",
    "vocabulary_names",
]

MAX_PROMPTS = 8
SIDES = ("left", "right")
_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
_SPOKEN_MODALITY = {"CT": "CT", "MR": "MRI"}


@dataclass(frozen=True)
class TargetEntry:
    """A target's entry in the vocabulary.

    Attributes:
        name: canonical name, e.g. ``"left kidney"``.
        base: the name without its side, e.g. ``"kidney"``.
        side: ``"left"``, ``"right"`` or None.
        synonyms: other common names, with the side.
        phrases: complete prompts; ``{modality}`` is a placeholder.
        composite_of: canonical names of its parts; empty if it has none.
        snomed: SNOMED CT (code, meaning) of the base in DICOM PS3.16, or None; the side is a modifier.
        finding: whether it is an abnormality, such as a tumor, and no anatomy.
    """

    name: str
    base: str
    side: str | None
    synonyms: tuple[str, ...]
    phrases: tuple[str, ...]
    composite_of: tuple[str, ...]
    snomed: tuple[str, str] | None
    finding: bool = False


def normalise_prompt(text: str) -> str:
    """A prompt in lower case with single spaces.

    Raises:
        PromptError: it is empty.
    """
    prompt = " ".join(text.split()).lower()
    if not prompt:
        raise PromptError('the prompt is empty; write what to look for, for example "right kidney in abdominal CT"')
    return prompt


def control_character(text: str) -> str | None:
    """The first control character (line break, NUL, bidirectional mark, …), or None.

    The joiners U+200C and U+200D are allowed: some scripts need them.
    """
    return next((each for each in text if unicodedata.category(each) in _CONTROLS and each not in _JOINERS), None)


def checked_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts unchanged, if they are valid.

    Raises:
        PromptError: there are none, one is empty, no valid text or has control characters, or two are equal.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise PromptError("give at least one prompt, as a list of texts, e.g. ['left kidney', 'lung nodule']")
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise PromptError(f"prompt {prompt[:60]!a} holds bytes that are no letters; write it in UTF-8")
        if control := control_character(prompt):
            raise PromptError(f"prompt {prompt[:60]!a} holds the control character U+{ord(control):04X}; leave it out")
    texts = [normalise_prompt(prompt) for prompt in prompts]
    if repeated := [text for index, text in enumerate(texts) if text in texts[:index]]:
        raise PromptError(f"prompt {repeated[0]!r} is given twice; leave one out")
    return list(prompts)


def normalise_target(name: str) -> str:
    """Canonical name of a target: lower case, usual synonym, side in front; idempotent.

    ``"Kidney_Right"``, ``"kidney, right"`` and ``"right kidneys"`` become ``"right kidney"``; unknown names are only
    tidied.
    """
    vocabulary = _vocabulary()
    text = _tidy(name, vocabulary.words)
    if text in vocabulary.aliases:
        return vocabulary.aliases[text]
    parts = [word for word in text.split() if word != "sided"]
    sides = [word for word in parts if word in SIDES]
    if len(sides) != 1:
        return text
    rest = " ".join(word for word in parts if word not in SIDES)
    base = vocabulary.aliases.get(rest)
    if base is not None and vocabulary.targets[base].get("sides"):
        return f"{sides[0]} {base}"
    # Inside an unknown name the side may belong to a part of it ("tumor of the left lung"): only a trailing one moves.
    return f"{sides[0]} {rest}" if rest and parts[-1] in SIDES else text


def normalise_site(site: str) -> str:
    """Usual name of a body site (``"Thorax"`` → ``"chest"``); several are joined by "and"."""
    sites = _vocabulary().sites
    parts = (" ".join(part.split()) for part in re.split(r"\band\b|[,&+/_]", site.lower()))
    return " and ".join(sites.get(part, (part, part))[0] for part in parts if part)


def find_target(name: str) -> TargetEntry | None:
    """The vocabulary's entry of a target in any spelling, or None."""
    canonical = normalise_target(name)
    targets = _vocabulary().targets
    first, _, rest = canonical.partition(" ")
    sided = first in SIDES and targets.get(rest, {}).get("sides", False)
    side, base = (first, rest) if sided else (None, canonical)
    if base not in targets:
        return None
    entry = targets[base]
    prefix = f"{side} " if side else ""
    parts = entry.get("composite_of", [f"{each} {base}" for each in SIDES] if entry.get("sides") else [])
    snomed = entry.get("snomed")
    return TargetEntry(
        name=canonical,
        base=base,
        side=side,
        synonyms=tuple(prefix + synonym for synonym in entry.get("synonyms", ())),
        phrases=() if side else tuple(entry.get("phrases", ())),
        composite_of=() if side else tuple(parts),
        snomed=None if snomed is None else (snomed[0], snomed[1]),
        finding=entry.get("finding", False),
    )


def prompts_for(target: str, *, site: str, modality: str) -> tuple[str, ...]:
    """At most eight different prompts for a target, reproducible.

    First the canonical one, ``"right kidney in abdominal CT"``, then shorter forms, a sentence, and synonyms of the
    vocabulary. An unknown site or modality is left out, and so is the modality ``"other"``.

    Raises:
        PromptError: the target is empty.
        ConfigError: the modality is neither CT nor MR, other nor unknown.
    """
    name = normalise_target(target)
    if not name:
        raise PromptError("a target without a name has no prompts; name it in the labels")
    spoken = _SPOKEN_MODALITY.get(stored_modality(modality), "")
    place = normalise_site(site)
    adjective = site_adjective(place)
    where = f" in {adjective} {spoken}" if place and spoken else f" in {spoken}" if spoken else ""
    texts = [f"{name}{where}"]
    if spoken:
        texts += [f"{name} in {place} {spoken}"] if place else []
        texts += [f"{name} in {spoken}", name, f"{spoken} scan of the {name}"]
    elif place:
        texts += [f"{name} in the {place}", name]
    entry = find_target(name)
    if entry is not None:
        texts += [phrase.format(modality=spoken) for phrase in entry.phrases if spoken]
        texts += [f"{synonym}{where}" for synonym in entry.synonyms]
        texts += entry.synonyms
    return tuple(dict.fromkeys(texts))[:MAX_PROMPTS]


@dataclass(frozen=True)
class _Vocabulary:
    words: Mapping[str, str]  # spelling of a word → the usual one
    sites: Mapping[str, tuple[str, str]]  # any name of a site → (usual name, adjective)
    within: Mapping[str, str]  # usual name of a site → of the larger one that it lies in
    targets: Mapping[str, Mapping[str, Any]]  # canonical name without side → entry
    aliases: Mapping[str, str]  # any tidied name → canonical name


@functools.cache
def _vocabulary() -> _Vocabulary:
    text = resources.files("boltzformer_monai.data").joinpath("vocabulary.json").read_text(encoding="utf-8")
    content = json.loads(text)
    words: dict[str, str] = content["words"]
    sites = {
        alias: (name, entry["adjective"])
        for name, entry in content["sites"].items()
        for alias in (name, *entry["synonyms"])
    }
    targets: dict[str, dict[str, Any]] = content["targets"]
    aliases = {
        _tidy(alias, words): name
        for name, entry in targets.items()
        for alias in (name, *entry.get("synonyms", ()), *entry.get("spellings", ()))
    }
    within = {name: entry["within"] for name, entry in content["sites"].items() if "within" in entry}
    return _Vocabulary(words, sites, within, targets, aliases)


def _tidy(name: str, words: Mapping[str, str]) -> str:
    plain = re.sub(r"[_\-,;()\[\]]", " ", name.lower()).split()
    if len(plain) > 1 and plain[0] in ("the", "a", "an"):
        plain = plain[1:]
    return " ".join(words.get(word, word) for word in plain)


def site_adjective(site: str) -> str:
    sites = _vocabulary().sites
    return " and ".join(sites.get(part, (part, part))[1] for part in site.split(" and "))


def site_contains(outer: str, inner: str) -> bool:
    """Whether a site equals the other or contains it, as the abdomen contains the liver; both by usual names."""
    return outer in (inner, "whole body", _vocabulary().within.get(inner))


def vocabulary_names() -> Mapping[str, str]:
    """Every spelling of the vocabulary, tidied and without side → canonical name."""
    return _vocabulary().aliases


def english_names() -> Iterator[tuple[str, str]]:
    """Each target of the vocabulary, without side, with each of its names."""
    for target, entry in _vocabulary().targets.items():
        for name in (target, *entry.get("synonyms", ()), *entry.get("spellings", ())):
            yield target, name


def site_names() -> Mapping[str, str]:
    """Every word for a site, adjectives included, without hyphens → usual name."""
    sites = _vocabulary().sites
    adjectives = {adjective.replace("-", " "): name for name, adjective in sites.values()}
    return {**adjectives, **{alias: name for alias, (name, _) in sites.items()}}


def tidy(text: str) -> str:
    """A text in lower case, without punctuation and leading article, in usual spelling."""
    return _tidy(text, _vocabulary().words)


def composite_targets(targets: Mapping[str, str]) -> dict[str, str]:
    """Composites of given targets, such as kidney = left + right.

    Args:
        targets: canonical target → value text (``"2"``, ``"2+3"``).

    Returns:
        Canonical composite → value text, for composites that are not given and whose parts all are.
    """
    found = {}
    for name in _vocabulary().targets:
        entry = find_target(name)
        parts = () if entry is None else entry.composite_of
        if len(parts) > 1 and name not in targets and all(part in targets for part in parts):
            values = {int(value) for part in parts for value in targets[part].split("+")}
            found[name] = "+".join(map(str, sorted(values)))
    return found


def split_prompts(prompts: str | Sequence[str]) -> Sequence[str]:
    """Split ``"liver; left kidney"`` into prompts; a list is returned unchanged."""
    if not isinstance(prompts, str):
        return prompts
    return tuple(part.strip() for part in prompts.split(";") if part.strip())
