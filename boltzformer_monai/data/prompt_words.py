"""The words of prompts in English, German, French and Spanish (``languages/*.json``), and how they are compared."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

__all__ = ["LANGUAGES", "Phrase", "digraphs", "fold", "has_no_side", "inflections", "language", "phrases", "words_of"]

LANGUAGES: Mapping[str, str] = {"en": "English", "de": "German", "fr": "French", "es": "Spanish"}

_LETTERS = str.maketrans({"œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "ð": "d", "’": "'", "‘": "'", "`": "'", "´": "'"})
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_DIGRAPHS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})


@functools.lru_cache(maxsize=20_000)
def fold(text: str) -> str:
    """A text in compatibility form (NFKC), lower case and without accents: ``"Läsion"`` → ``"lasion"``."""
    if text.isascii():
        return text.lower().replace("`", "'")
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text.translate(_LETTERS)).casefold().translate(_LETTERS))
    return "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))


def digraphs(text: str) -> str:
    """A folded text whose umlauts are written out: ``"Läsion"`` → ``"laesion"``."""
    return fold(unicodedata.normalize("NFC", text).casefold().translate(_DIGRAPHS))


def words_of(text: str) -> tuple[str, ...]:
    """The words of a folded text."""
    return tuple(re.findall(r"[^\W_]+", text))


@functools.cache
def language(code: str) -> Mapping[str, Any]:
    """The content of a language's file."""
    text = resources.files("boltzformer_monai.data").joinpath(f"languages/{code}.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


@dataclass(frozen=True, slots=True)
class Phrase:
    """One or several words with a role in a prompt.

    Attributes:
        role: ``"side"``, ``"both"``, ``"all"``, ``"of"`` (articles and prepositions), ``"and"``, ``"or"``,
            ``"request"``, ``"polite"``, ``"helper"``, ``"modality"``, ``"scan"``, ``"site"`` or ``"refused"``.
        meaning: the side, the modality or the site; else ``""``.
        language: its code.
    """

    role: str
    meaning: str
    language: str


_ROLES = {
    "both": "both", "all": "all", "of": "of", "and": "and", "or": "or", "requests": "request", "polite": "polite",
    "helpers": "helper", "scan": "scan", "negations": "refused", "sizes": "refused", "counts": "refused",
}  # fmt: skip


@functools.cache
def phrases() -> Mapping[tuple[str, ...], tuple[Phrase, ...]]:
    """Folded words → their roles, in any language."""
    found: dict[tuple[str, ...], list[Phrase]] = {}

    def add(text: str, phrase: Phrase) -> None:
        for form in {fold(text), digraphs(text)}:
            roles = found.setdefault(words_of(form), [])
            if phrase not in roles:
                roles.append(phrase)

    for code in LANGUAGES:
        content = language(code)
        for key, role in _ROLES.items():
            for text in content[key]:
                add(text, Phrase(role, "", code))
        for role, key in (("side", "sides"), ("modality", "modality"), ("site", "sites")):
            for meaning, texts in content[key].items():
                for text in texts:
                    add(text, Phrase(role, meaning, code))
                    if role == "side":
                        for wrong in _misspelled_side(fold(text)):
                            add(wrong, Phrase("side", meaning, code))
    return {words: tuple(roles) for words, roles in found.items()}


_SPELLED_OUT = frozenset({
    "left", "right", "linke", "linken", "links", "rechte", "rechten", "rechts", "gauche", "droit", "droite",
    "izquierdo", "izquierda", "derecho", "derecha",
})  # fmt: skip
_OTHER_WORDS = frozenset({
    "lef", "let", "eft", "elft", "link", "like", "line", "liken", "linken", "echte", "echten", "echt", "rite", "riht",
    "recte", "rechne", "ight", "doit", "roit", "dorit", "drot", "drecho", "drecha", "auche", "gache", "gauce", "lins",
    "inks", "lines", "liks", "roite", "linse", "reche", "rehte", "lnke", "likne", "linek",
})  # fmt: skip


def _misspelled_side(word: str) -> Iterator[str]:
    """A side's word with two letters exchanged, one doubled or one missing: no letter of it is another.

    The first and the last letter stay, or are exchanged with their neighbour; other words are left out.
    """
    if word not in _SPELLED_OUT:
        return
    wrong = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    wrong |= {word[:i] + word[i] + word[i:] for i in range(len(word))}
    wrong |= {word[:i] + word[i + 1 :] for i in range(1, len(word) - 1)}
    yield from sorted(wrong - _OTHER_WORDS - {word})


def inflections(word: str, code: str) -> Iterable[str]:
    """Forms of a folded word that may stand for it: plural, cases, gender."""
    if len(word) < 3 or not word.isalpha():
        return ()
    return _INFLECTIONS[code](word)


def _english(word: str) -> set[str]:
    ends = {"is": "es", "us": "i", "um": "a", "ix": "ices", "ex": "ices", "y": "ies", "a": "ae", "itis": "itides"}
    forms = {word[: -len(end)] + plural for end, plural in ends.items() if word.endswith(end) and len(word) > 4}
    if word.endswith(("s", "x", "z", "ch", "sh")):
        forms.add(f"{word}es")
    elif not word.endswith("y") or word[-2] in "aeou":
        forms.add(f"{word}s")
    return forms


def _german(word: str) -> set[str]:
    if word.endswith("e"):
        return {f"{word}{end}" for end in "nrsm"}
    forms = {f"{word}{end}" for end in ("e", "n", "en", "ens", "er", "ern", "s", "es")}
    ends = {"us": ("en", "i"), "is": ("en",), "um": ("en", "a"), "ma": ("men", "mata"), "ur": ("ora",)}
    forms |= {word[: -len(end)] + plural for end, plurals in ends.items() if word.endswith(end) for plural in plurals}
    return forms


def _french(word: str) -> set[str]:
    forms = {f"{word}s", f"{word}x"}
    if not word.endswith("e"):
        forms |= {f"{word}e", f"{word}es", f"{word}{word[-1]}e", f"{word}{word[-1]}es"}
    if word.endswith(("al", "ail")):
        forms.add(f"{word.removesuffix('al').removesuffix('ail')}aux")
    return forms


def _spanish(word: str) -> set[str]:
    forms = {f"{word}s", f"{word}es"}
    if word.endswith("o"):
        forms |= {f"{word[:-1]}{end}" for end in ("a", "as")}
    if word.endswith("z"):
        forms.add(f"{word[:-1]}ces")
    return forms


_INFLECTIONS = {"en": _english, "de": _german, "fr": _french, "es": _spanish}


_NO_SIDE = re.compile(r"""(?ix)
    ^\W*(?:
        re\s*: | re\s+(?:the|my|your)\b
        | all\s*right\s*[,;.!] | right\s*[,!.]\s*(?:show|find|segment|where|please|now|the\b)
        | right\s+(?:where|now|here|there|away)\b
        | (?:is|are)\b.*\b(?:right|left)\W*$ | (?:the\s+)?only\b.*\bleft\W*$
    )
    | ,\s*right\s*\?\W*$
""")  # fmt: skip
"""Words for a side that are none: "Re: kidney", "all right, show the kidney", "is this the kidney, right?"."""


def has_no_side(text: str) -> bool:
    """Whether a word in a text looks like a side and is probably none."""
    return _NO_SIDE.search(text) is not None
