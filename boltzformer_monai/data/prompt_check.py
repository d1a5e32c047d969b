"""Match prompts with the trained targets, in any spelling.

A prompt is known if it consists of a target's name and fillers (modality, site, articles), as the training prompts do,
or if :mod:`~boltzformer_monai.data.understanding` reads it as such. Any other word makes it unknown: "no liver lesion"
contains a target's name and does not mean it.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from boltzformer_monai.data.prompt_words import fold, has_no_side, phrases
from boltzformer_monai.data.prompts import (
    SIDES,
    find_target,
    normalise_prompt,
    normalise_site,
    normalise_target,
    prompts_for,
    site_adjective,
    site_contains,
    site_names,
    tidy,
    vocabulary_names,
)
from boltzformer_monai.data.size_limits import SizeLimit, find_size_limit
from boltzformer_monai.data.understanding import PromptRules
from boltzformer_monai.errors import PromptError
from boltzformer_monai.modality import SPOKEN_MODALITY, parse_modality

__all__ = ["PromptReader", "Reading", "misunderstood", "named_target"]

_Frame: TypeAlias = tuple[tuple[str, ...], bool]  # its sites; whether it describes a scan

_MODALITY = rf"(?:{SPOKEN_MODALITY}(?: {SPOKEN_MODALITY})*)"  # "T1w MRI"
_PICTURE = r"(?:scans?|images?|slices?|volumes?|imaging)"
_ARTICLE = r"(?:the|an?)"
_IN = r"(?:in|on|of|from|within)"
_FILLER = re.compile(rf"\b(?:{_ARTICLE}|{_IN}|with|to|at|{_MODALITY}|{_PICTURE})\b")
_LONGEST_NAME = 8  # words
_NEAR = 3  # suggested names
_LISTED = 8  # names listed if none is near

_NEGATIONS = frozenset({
    "no", "not", "without", "absent", "absence", "none", "never", "neither", "nor", "except", "excluding", "excludes",
    "exclude", "minus", "lacking", "lacks", "negative", "cannot",
})  # fmt: skip
_SIZES = frozenset({
    "large", "larger", "largest", "small", "smaller", "smallest", "big", "bigger", "biggest", "tiny", "tiniest", "huge",
    "enormous", "sized", "size",
})  # fmt: skip
_COUNTS = frozenset({
    "all", "every", "each", "any", "some", "several", "many", "multiple", "numerous", "few", "both", "most", "count",
    "number",
})  # fmt: skip
_NUMBERS = frozenset({
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
})  # fmt: skip
_BEFORE_A_COUNT = re.compile(rf"the|a|and|of|with|showing|least|most|than|about|{_PICTURE}|{_MODALITY}")
_UNITS = r"(?:mm|cm|mm2|mm3|cm2|cm3|ml|cc|hu|millimet(?:er|re)s?|centimet(?:er|re)s?|millilit(?:er|re)s?)"
_MEASURE = re.compile(rf"[<>≤≥]=?\s*\d*[.,]?\d*\s*{_UNITS}?|\b\d+(?:[.,]\d+)?\s*{_UNITS}\b")
_PHRASES = re.compile(r"\bfree of\b|\b\w+-free\b|\bw/o\b|\w+n[’']t\b|\b(?:rather|other) than\b|\binstead of\b")

_IRREGULAR = {
    "metastases": "metastasis", "vertebrae": "vertebra", "hippocampi": "hippocampus", "atria": "atrium",
    "bronchi": "bronchus", "nuclei": "nucleus", "foci": "focus", "thrombi": "thrombus", "diverticula": "diverticulum",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """Interpretation of a prompt.

    Attributes:
        prompt: as given.
        target: the trained target, in the training's spelling; None for an unknown one, or without known targets.
        site: usual name of the prompt's site, or ``""``.
        shown: the network's input: the prompt, or its form in the training.
        misunderstood: negations, sizes and counts, which change a mask only by chance.
        near: known names that may be intended.
        changes: what of the prompt was not as it should be, such as "German" or "typing error in 'nodlues'".
        score: share of the letters of the target's name that are right, from 0 to 1.
        size_limit: of the lesions to list.
    """

    prompt: str
    target: str | None
    site: str
    shown: str
    misunderstood: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    score: float = 1.0
    size_limit: SizeLimit | None = None

    def understood(self) -> dict[str, Any] | None:
        """What was changed, as plain values for JSON; None if the network is shown the prompt as it is."""
        if not self.changes and self.size_limit is None:
            return None
        limit = None if self.size_limit is None else self.size_limit.as_dict()
        name = self.target or self.shown
        return {"as": name, "score": self.score, "changes": [*self.changes], "size_limit": limit}


class PromptReader:
    """Interprets prompts for a network with these trained targets.

    Args:
        targets: ``{"target", "site", "modality"}`` of each kind of training data, from a checkpoint; if empty, only
            the vocabulary is known.
    """

    def __init__(self, targets: Sequence[Mapping[str, Any]]) -> None:
        self.names = tuple(sorted({str(entry["target"]) for entry in targets}))
        # With and without the punctuation that is removed from prompts.
        self._of = {normalise_target(" ".join(_tokens(name))): name for name in self.names}
        self._of |= {normalise_target(name): name for name in self.names}
        self._trained: dict[str, dict[str, str]] = {name: {} for name in self.names}  # texts, by their lower case
        self._sites = {name: _organs(name) for name in self.names}
        for entry in targets:
            name, site = str(entry["target"]), str(entry.get("site", ""))
            texts = prompts_for(name, site=site, modality=str(entry.get("modality", "unknown")))
            self._trained[name].update((text.lower(), text) for text in texts)
            self._sites[name] |= {*normalise_site(site).split(" and ")} - {""}
        vocabulary = PromptRules()
        for name in self.names:
            meaning = None if find_target(name) is not None else vocabulary.understand(name)[0]
            if meaning is not None and meaning.score == 1:  # of a training in another language
                self._of.setdefault(meaning.target, name)
        self._rules = PromptRules(self.names)

    def read(self, prompt: str, *, literal: bool = False) -> Reading:
        """Interpret a prompt.

        Args:
            prompt: not empty.
            literal: pass the text to the network unchanged.

        Raises:
            PromptError: a negation, size or count is part of no name, or a target is named on both sides, and
                ``literal`` is false; or size limits exclude each other.
        """
        text = normalise_prompt(prompt)
        target, site, core = self._named(text)
        if target is not None:
            shown = prompt if literal else self._trained_text(text, target, site, core)
            same = shown.lower() in (text, prompt.lower())
            return Reading(
                prompt, target, site, prompt if shown == text else shown, changes=() if same else ("spelling",)
            )
        known = named_target(text) is not None
        reading, offered = (None, ()) if literal or (known and not self.names) else self._understood(prompt)
        if reading is not None:
            return reading
        words = () if known else misunderstood(text, self._of)
        meant = self._without(text, words) if words else None
        near = (meant,) if meant else (*offered, *self._near(text)) if words or self.names else ()
        near = tuple(dict.fromkeys(near))[:_NEAR]
        if words and not literal:
            raise PromptError(_refusal(prompt, words, near, meant))
        return Reading(prompt, None, site, prompt, words, near)

    def _understood(self, prompt: str) -> tuple[Reading | None, tuple[str, ...]]:
        """The prompt as :class:`PromptRules` reads it, or None; and targets that may be meant instead."""
        rest, limit = find_size_limit(prompt)
        meaning, offered = self._rules.understand(prompt if limit is None else rest)
        if meaning is None:
            return None, offered
        text = meaning.prompt.lower()
        target, site, core = self._named(text)
        if target is None and (self.names or " in the " in text):  # where an organ lies is not known without a training
            return None, offered
        shown = meaning.prompt if target is None else self._trained_text(text, target, site, core)
        changes = meaning.changes or (() if shown.lower() == " ".join(prompt.lower().split()) else ("spelling",))
        return Reading(prompt, target, site, shown, changes=changes, score=meaning.score, size_limit=limit), ()

    def complete(self, text: str, *, limit: int = 8) -> list[tuple[str, str]]:
        """See :meth:`PromptRules.complete`."""
        return self._rules.complete(text, limit=limit)

    def caveats(self, reading: Reading) -> list[tuple[str, str]]:
        """Kinds and texts of a prompt's caveats; none for one that is spelled as in the training."""
        found = []
        if reading.changes:
            how = "; ".join((*reading.changes, f"score {reading.score:.2f}"))
            name = reading.target or reading.shown
            found.append(("understood prompt", f"{reading.prompt!r} understood as {name!r} ({how})"))
        if reading.size_limit is not None:
            text = f"{reading.prompt!r}: lesions of a size {reading.size_limit} are listed; the mask holds all"
            found.append(("size limit", text))
        if reading.misunderstood:
            words = ", ".join(reading.misunderstood)
            text = f"{reading.prompt!r}: {words!r} is not understood by the network; its mask means little"
            return [*found, ("words not understood", text)]
        if reading.target is not None or not self.names:
            return found
        if reading.near:
            hint = f"did you mean {' or '.join(map(repr, reading.near))}?"
        else:
            more = ", …" if len(self.names) > _LISTED else ""
            hint = f"its targets are {', '.join(self.names[:_LISTED])}{more}"
        text = f"{reading.prompt!r} names no target of the training, so its mask means little; {hint}"
        return [*found, ("unknown prompt", text)]

    def _named(self, text: str) -> tuple[str | None, str, str]:
        """(target or None, site, prompt without fillers)."""
        core, site = tidy(text), ""
        if has_no_side(text) and text not in self.names:
            return None, "", text
        if (target := self._of.get(normalise_target(text))) is not None:
            return target, "", text
        for core, site, frames in _peeled(text):
            target = self._target(core)
            if target is not None and all(self._is_at(target, *frame) for frame in frames):
                return target, site, core
        # A site outside the vocabulary is a filler only in the training prompts.
        return next((name for name, texts in self._trained.items() if text in texts), None), site, core

    def _target(self, core: str) -> str | None:
        forms = list(dict.fromkeys(_forms(core)))
        for form in forms:
            if form in self._of:
                return self._of[form]
        for form in forms:
            for canonical, name in self._of.items():
                if _same_but_for_number(form, canonical):
                    return name
        return None

    def _is_at(self, target: str, places: Sequence[str], is_scan: bool) -> bool:
        """Whether the target lies in each of these places, or the prompt describes a scan of a region."""
        regions = [find_target(place) is None for place in places]
        own = self._sites[target]
        if not own:  # unknown site: any region is accepted, an organ is not
            return all(regions)
        holds = [any(site_contains(place, site) for site in own) for place in places]
        return all(map(max, holds, regions)) if is_scan else all(holds)

    def _trained_text(self, text: str, target: str, site: str, core: str) -> str:
        """The most similar training prompt."""
        trained = self._trained[target]
        if text in trained:
            return text
        name = normalise_target(target)
        forms = []
        named = {parse_modality(match[0]) for match in re.finditer(rf"\b{SPOKEN_MODALITY}\b", text)}
        for spoken in (word for word, modality in (("ct", "CT"), ("mri", "MR")) if modality in named):
            for where in (f"{site_adjective(site)} {spoken}", spoken):
                forms += [f"{core} in {where}", f"{name} in {where}"]
        return next((trained[form] for form in (*forms, core) if form in trained), name)

    def _without(self, text: str, words: Sequence[str]) -> str | None:
        """The name without these words at its ends; None if one stands between others."""
        either = "|".join(map(re.escape, words))
        left = re.sub(rf"^(?:(?:{_ARTICLE} )?(?:{either})\s+)+|(?:\s*(?:{either}))+$", "", text)
        if not left or misunderstood(left, self._of):
            return None
        return self._named(left)[0] if self.names else named_target(left)

    def _near(self, text: str) -> tuple[str, ...]:
        """Names that contain all words of the text or vice versa, or are spelled similarly; best first."""
        spellings = {name: name for name in self.names} or dict(vocabulary_names())
        for name in self.names:
            entry = find_target(name)
            spellings.update(dict.fromkeys(entry.synonyms if entry is not None else (), name))
        text = " ".join(_tokens(text))
        given = {*_singular(_FILLER.sub(" ", text)).split()} - _NO_NAMES
        words_of = {each: {*_singular(_FILLER.sub(" ", each)).split()} for each in spellings}
        words = {word for each in words_of.values() for word in each}
        close = (difflib.get_close_matches(word, words, n=1, cutoff=0.75) for word in sorted(given - words))
        meant = (given & words).union(*close)
        misspelled = difflib.get_close_matches(text, spellings, n=_NEAR, cutoff=0.75)
        score: dict[str, float] = {}
        for each, name in spellings.items():
            own, shared = words_of[each], words_of[each] & meant
            whole = shared and (shared == own or (shared == meant and len(meant) == len(given)))
            if whole or each in misspelled:
                score[name] = max(score.get(name, 0.0), 2 * len(shared) / (len(own) + len(given)))
        return tuple(sorted(score, key=lambda name: (-score[name], name)))[:_NEAR]


def named_target(text: str) -> str | None:
    """Canonical name of the vocabulary's target in a prompt of its name and fillers, else None."""
    for core, _, _ in [] if has_no_side(text) else _peeled(text):
        for form in _forms(core):
            known = find_target(form)
            if known is not None:
                return known.name
    return None


def misunderstood(text: str, names: Iterable[str] = ()) -> tuple[str, ...]:
    """Negations, sizes and counts in a text, except within names of the vocabulary or of ``names``."""
    lower = text.lower()
    found = [match[0].strip() for pattern in (_PHRASES, _MEASURE) for match in pattern.finditer(lower)]
    known = {*vocabulary_names(), *map(tidy, names)}
    words = _tokens(_MEASURE.sub(" ", lower))
    left = _without_names(words, known)
    for index, word in enumerate(left):
        counts = (word.isdecimal() or word in _NUMBERS) and index + 1 < len(left) and left[index + 1] != "of"
        begins = index == 0 or _BEFORE_A_COUNT.fullmatch(left[index - 1]) is not None
        if word in _NEGATIONS | _SIZES | _COUNTS or _is_refused(word) or (counts and begins):
            found.append(word)
    return tuple(dict.fromkeys(found))


_ENGLISH_TOO = frozenset({
    "gross", "mayor", "salvo", "gran", "gros", "nombre", "dos", "dix", "sept", "non", "ni", "six", "multiple",
    "peu",
})  # fmt: skip


def _is_refused(word: str) -> bool:
    """Whether it is a negation, a size or a count in another language."""
    return word not in _ENGLISH_TOO and any(each.role == "refused" for each in phrases().get((fold(word),), ()))


def _refusal(prompt: str, words: Sequence[str], near: Sequence[str], meant: str | None) -> str:
    said = " and ".join(map(repr, words))
    instead = f"ask for {meant!r}" if meant else "ask for a target alone"
    if near and not meant:
        instead += f" (names near it: {', '.join(map(repr, near))})"
    return (
        f"prompt {prompt[:80]!r}: {said} is not understood: no training teaches negations, sizes or counts; {instead}, "
        'or say that the text is meant as it is: --literal, in a request "literal": true'
    )


def _tokens(text: str) -> list[str]:
    return tidy(re.sub(r"[\"“”'’?!:]|\.(?!\d)", " ", unicodedata.normalize("NFC", text))).split()


def _without_names(words: Sequence[str], names: Iterable[str]) -> list[str]:
    """The words with a · for each name, longest first."""
    known = frozenset(names)
    left = list(words)
    for length in range(_LONGEST_NAME, 0, -1):
        index = 0
        while index + length <= len(left):
            span = " ".join(left[index : index + length])
            if span in known or (span not in _NO_NAMES and _singular(span) in known):
                left[index : index + length] = ["·"]
            index += 1
    return left


def _peeled(text: str) -> Iterator[tuple[str, str, tuple[_Frame, ...]]]:
    """Remove fillers one by one: (rest, site, removed frames)."""
    waiting: list[tuple[str, str, tuple[_Frame, ...]]] = [(" ".join(_tokens(text)), "", ())]
    seen = set()
    while waiting:
        rest, site, frames = waiting.pop(0)
        if (rest, frames) in seen or not rest:
            continue
        seen.add((rest, frames))
        yield rest, site, frames
        for pattern, is_scan in _frames():
            match = pattern.search(rest)
            if match is None or not (shorter := rest[: match.start()] + rest[match.end() :]).strip():
                continue
            places = _places(match[0])
            more = ((places, is_scan),) if places else ()
            waiting.append((shorter.strip(), site or " and ".join(places), (*frames, *more)))


@functools.cache
def _frames() -> tuple[tuple[re.Pattern[str], bool], ...]:
    """Patterns of fillers, and whether their sites describe the scan instead of the target."""
    place = "|".join(sorted(map(re.escape, site_names()), key=len, reverse=True))
    places = rf"(?:{place})(?: (?:and )?(?:{place}))*"
    picture = rf"(?:(?:{places} )?{_MODALITY}(?: {_PICTURE})?|(?:{places} )?{_PICTURE})(?: of (?:the )?{places})?"
    scan = rf"(?:{_ARTICLE} )?(?:{places} )?"
    patterns = {
        rf"^{_ARTICLE} ": True,
        rf"^{scan}{_MODALITY}(?: {_PICTURE})?(?: of| with| showing)?(?: {_ARTICLE})? ": True,
        rf"^{scan}{_PICTURE} (?:of|with|showing)(?: {_ARTICLE})? ": True,
        rf" {_IN} (?:{_ARTICLE} )?{picture}$": True,
        rf" {_MODALITY}(?: {_PICTURE})?$": True,
        rf" {places} {_MODALITY}(?: {_PICTURE})?$": True,  # "left lung CT" is not the left in a lung CT
        rf" (?:in|on|within)(?: {_ARTICLE})? {places}$": False,
    }
    return tuple((re.compile(pattern), is_scan) for pattern, is_scan in patterns.items())


def _places(words: str) -> tuple[str, ...]:
    """Usual names of the sites in a text."""
    names = site_names()
    place = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    return tuple(dict.fromkeys(names[match[0]] for match in re.finditer(rf"\b(?:{place})\b", words)))


def _organs(name: str) -> set[str]:
    """Sites in a target's name: the lung of "lung nodule", but not the head of "femoral head"."""
    return {place for place in _places(tidy(name)) if find_target(place) is not None}


_SIDE = re.compile(
    r"^(?P<what>.+?) (?:(?:on|at|in|to|of) (?:the )?)?(?P<side>left|right)(?: hand)?(?: side)?$"
)  # "kidney on the left", "kidney left side"; not "vessel of the left kidney"
_IN_ORGAN = re.compile(rf"^(?P<what>.+?) (?:in|of|within) (?:{_ARTICLE} )?(?P<place>\w+)$")
_BOTH = re.compile(r"^(?:both|left and right|right and left) (?P<what>.+)$")


def _forms(core: str) -> Iterator[str]:
    """Possible canonical names of a text without fillers."""
    texts = [core]
    if (match := _SIDE.match(core)) and not set(match["what"].split()) & set(SIDES):
        texts.append(f"{match['side']} {match['what']}")
    if match := _BOTH.match(core):
        base = find_target(_singular(match["what"]))
        if base is not None and base.side is None and {f"{side} {base.name}" for side in SIDES} <= {*base.composite_of}:
            texts.append(base.name)
    if (match := _IN_ORGAN.match(core)) and match["what"] not in SIDES:  # "tumor in the liver" is a liver tumor
        texts += [f"{organ} {match['what']}" for organ in _organs(match["place"])]
    for text in texts:
        for form in (text, _singular(text)):
            yield normalise_target(form)


def _singular(text: str) -> str:
    """Each word in the singular, roughly."""
    return " ".join(map(_singular_word, text.split()))


def _same_but_for_number(one: str, other: str) -> bool:
    """Whether two texts, in any language, differ at most in singular and plural."""
    pairs = list(zip(one.split(), other.split(), strict=False))
    same_length = len(pairs) == one.count(" ") + 1 == other.count(" ") + 1
    return same_length and all(a == b or a in _plurals(b) or b in _plurals(a) for a, b in pairs)


def _plurals(word: str) -> tuple[str, ...]:
    if len(word) < 3:
        return ()
    return f"{word}s", f"{word}es", *((f"{word[:-1]}ies",) if word.endswith("y") else ())


def _singular_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("shes", "ches", "xes", "sses")):
        return word[:-2]
    return word.removesuffix("s")


_NO_NAMES = _NEGATIONS | _SIZES | _COUNTS | _NUMBERS
