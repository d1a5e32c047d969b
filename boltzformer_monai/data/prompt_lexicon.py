"""The names of targets by their words, in all languages, and the names in which a word may be a typing error."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from rapidfuzz import process
from rapidfuzz.distance import OSA

from boltzformer_monai.data.prompt_words import (
    LANGUAGES,
    Phrase,
    digraphs,
    fold,
    inflections,
    language,
    phrases,
    words_of,
)
from boltzformer_monai.data.prompts import SIDES, english_names, find_target

__all__ = [
    "SHORTEST", "Lexicon", "Name", "abbreviations", "false_friends", "longest_phrase", "own_names", "real_words",
    "roles_of", "side_words", "vocabulary",
]  # fmt: skip

SHORTEST = 4
"""Letters of a word that may have a typing error."""
_STRICT = frozenset({
    "upper", "lower", "middle", "superior", "inferior", "anterior", "posterior", "medius", "maximus", "minimus",
    "obere", "untere", "mittlere", "vordere", "hintere", "superieur", "inferieur", "moyen", "anterieur", "posterieur",
    "oberlappen", "unterlappen", "mittellappen", "mayor", "menor", "medio", "grand", "petit", "grosse", "kleine",
})  # fmt: skip
"""Words that only tell one target from another."""


@dataclass(frozen=True, slots=True)
class Name:
    """One way to name a target.

    Attributes:
        target: without side, unless it belongs to the name.
        text: as it is written.
        words: folded, in order, without articles and prepositions.
        language: its code.
    """

    target: str
    text: str
    words: tuple[str, ...]
    language: str


class Lexicon:
    """Names of targets by their words.

    Args:
        names: all of them.
    """

    def __init__(self, names: Sequence[Name]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.bags: dict[frozenset[str], list[Name]] = {}
        self.languages: dict[tuple[str, frozenset[str]], set[str]] = {}
        self.forms: dict[str, set[str]] = {}
        self._joined: dict[str, tuple[str, ...]] = {}
        inflected: dict[str, set[str]] = {}
        inflected_as: set[tuple[str, str]] = set()
        for name in self.names:
            self.languages.setdefault((name.target, frozenset(name.words)), set()).add(name.language)
            if name.language == "any":
                self.bags.setdefault(frozenset(name.words), []).append(name)
                continue
            same = self.bags.setdefault(frozenset(name.words), [])
            if all(each.target != name.target for each in same):
                same.append(name)
            written = [] if name.text.isascii() else [*words_of(digraphs(name.text))]
            for word, longer in zip(
                name.words, written if len(written) == len(name.words) else name.words, strict=True
            ):
                for form in {word, longer}:
                    self.forms.setdefault(form, set()).add(word)
                    if (form, name.language) not in inflected_as:
                        inflected_as.add((form, name.language))
                        for other in inflections(form, name.language):
                            inflected.setdefault(other, set()).add(word)
        for form, words in inflected.items():
            self.forms.setdefault(form, set()).update(words)
        for code in LANGUAGES:
            for short, meant in language(code)["short_words"].items():
                self.forms.setdefault(short, set()).update({*map(fold, meant.split("|"))} & self.forms.keys())
        for name in self.names:
            text = "".join(name.words)
            if len(name.words) > 1 and len(text) > 6 and text not in self.forms:
                self._joined.setdefault(text, name.words)
        self._choices = sorted(form for form in self.forms if len(form) >= SHORTEST and form.isalpha())
        self._others = frozenset(fold(word) for code in LANGUAGES for word in language(code)["other"]) - set(self.forms)

    def parted(self, word: str) -> tuple[str, ...]:
        """The words of a name, and its side, that were written as one; or none."""
        if word in self._joined:
            return self._joined[word]
        for side in side_words():
            if len(side) < SHORTEST:
                continue
            for rest, first in ((word.removeprefix(side), True), (word.removesuffix(side), False)):
                if rest != word and len(rest) >= SHORTEST and (parts := self._parts(rest)):
                    return (side, *parts) if first else (*parts, side)
        return ()

    def _holds_side(self, word: str) -> bool:
        """Whether it is a name with a side's letters at one end, as "kidneyl" is; a doubled letter is none."""
        for length in range(1, min(len(word) - 2, 12)):
            for rest, side, near in (
                (word[:-length], word[-length:], word[-length - 1]),
                (word[length:], word[:length], word[length]),
            ):
                if rest in self.forms and side in side_words() and side != near:
                    return True
        return False

    def _parts(self, text: str) -> tuple[str, ...]:
        return (text,) if text in self.forms else self._joined.get(text, ())

    def near(self, word: str) -> Mapping[str, int]:
        """Words of names in which this one may be a typing error → wrong letters; all that are about as near."""
        if self._holds_side(word):
            return {}
        most = 1 if len(word) < 8 else 2
        found: dict[str, int] = {}
        for form, distance, _ in process.extract(
            word, self._choices, scorer=OSA.distance, score_cutoff=most, limit=None, processor=None
        ):
            if _is_slip(word, form, int(distance)):
                for each in self.forms[form]:
                    found[each] = min(found.get(each, most), int(distance))
        if not found:
            return {}
        least = min(found.values())
        rivals = process.extract(word, sorted(self._others), scorer=OSA.distance, score_cutoff=least, limit=1)
        return {} if rivals else found


def _is_slip(word: str, form: str, distance: int) -> bool:
    """Whether a word may be this form with a typing error."""
    exchanged = sorted(word) == sorted(form)
    if word[0] != form[0] and not (exchanged and word[:2] == form[1::-1]):
        return False
    shorter = min(len(word), len(form))
    if distance == 2:
        return shorter >= 8 and form not in _STRICT
    if shorter > 5:
        return True
    if len(word) == len(form) and not exchanged:  # another letter makes another word of a short one
        return shorter == 5 and word[-1] == form[-1]
    doubled = len(word) > len(form) and any(a == b for a, b in itertools.pairwise(word))
    missing = len(word) < len(form)
    return exchanged or doubled or (word[-1] == form[-1] and (missing or shorter == 5))


@functools.cache
def vocabulary() -> Lexicon:
    """The vocabulary's targets in all languages."""
    told_apart = {*SIDES, "both", "all"}  # by the rules
    names = [_name(target, text, "en") for target, text in english_names() if not told_apart & {*text.split()}]
    for code in LANGUAGES:
        for target, texts in language(code)["names"].items():
            for text in texts:
                names += [_name(*each, code) for each in _spelled_out(target, text, code)]
    names += [Name(target, short, (short,), "any") for short, target in abbreviations().items() if target]
    return Lexicon([name for name in names if name.words])


def own_names(names: Sequence[str]) -> Iterator[Name]:
    """The names of a training's own targets, as they are."""
    for name in names:
        first, _, rest = fold(name).partition(" ")
        yield _name(rest if first in SIDES and rest else fold(name), rest if first in SIDES and rest else name, "en")


def _name(target: str, text: str, code: str) -> Name:
    meant = {"and": "&", "or": "|"}
    words = []
    for word in words_of(fold(text)):
        roles = [each for each in roles_of((word,)) if each.language == code and each.role in ("of", "and", "or")]
        words += [meant[each.role] for each in roles[:1] if each.role in meant] if roles else [word]
    return Name(target, text.replace("|", " "), tuple(dict.fromkeys(words)), code)


def _spelled_out(target: str, text: str, code: str) -> Iterator[tuple[str, str]]:
    """Names with each of their alternative words, and each number in place of #."""
    for words in itertools.product(*(word.split("|") for word in text.split())):
        name = " ".join(words)
        if "#" not in target:
            yield target, name
            continue
        for number in range(1, 13):
            if find_target(numbered := target.replace("#", str(number))) is None:
                continue
            yield numbered, name.replace("#", str(number))
            if " #" in name:
                yield numbered, name.replace("#", f"n{number}")
                for word in language(code)["ordinals"][number - 1].split("|"):
                    yield numbered, name.replace("#", word)


@functools.cache
def abbreviations() -> Mapping[str, str | None]:
    """Folded abbreviation → target; None for one that is too ambiguous to stand for a target."""
    return {short: target for code in LANGUAGES for short, target in language(code)["abbreviations"].items()}


@functools.cache
def false_friends() -> frozenset[str]:
    """Words that name another target in another language."""
    return frozenset(word for code in LANGUAGES for word in language(code)["false_friends"])


@functools.cache
def real_words() -> frozenset[str]:
    """Words that are no typing errors although a name is near."""
    text = resources.files("boltzformer_monai.data").joinpath("languages/real_words.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return frozenset(word for code in LANGUAGES for line in content[code] for word in line.split())


@functools.cache
def side_words(code: str | None = None) -> frozenset[str]:
    """Folded words for a side, of one language or of all."""
    codes = LANGUAGES if code is None else (code,)
    return frozenset(fold(word) for each in codes for words in language(each)["sides"].values() for word in words)


def roles_of(words: tuple[str, ...]) -> tuple[Phrase, ...]:
    """What these words are, as a whole, beside parts of a name."""
    return phrases().get(words, ())


@functools.cache
def _longest() -> int:
    return max(map(len, phrases()))


def longest_phrase(words: Sequence[str], index: int) -> tuple[int, tuple[Phrase, ...]]:
    """Number of words and roles of the longest known phrase at this place; one word without roles if there is none."""
    for length in range(min(_longest(), len(words) - index), 0, -1):
        if roles := roles_of(tuple(words[index : index + length])):
            return length, roles
    return 1, ()
