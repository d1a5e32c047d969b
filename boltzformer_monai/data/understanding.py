"""What a prompt as people type it means: abbreviations, sides, other languages, typing errors, sentences.

Every word of a text must be explained: as part of one target's name, its side, the scan or its site, or as part of a
request around it. A word that is not makes the text another prompt, which is left as it is.

A side is never guessed: it is taken from a word for it, or one in which letters are exchanged, doubled or missing. A
typing error is mended only where the mended text means one target, and no other name or word is about as near.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rapidfuzz import fuzz

from boltzformer_monai.data.prompt_lexicon import (
    SHORTEST,
    Lexicon,
    Name,
    abbreviations,
    false_friends,
    longest_phrase,
    own_names,
    real_words,
    roles_of,
    side_words,
    vocabulary,
)
from boltzformer_monai.data.prompt_words import (
    LANGUAGES,
    Phrase,
    digraphs,
    fold,
    has_no_side,
    language,
    words_of,
)
from boltzformer_monai.data.prompts import SIDES, find_target, site_adjective
from boltzformer_monai.errors import PromptError

__all__ = ["MIN_SCORE", "Meaning", "PromptRules"]

MIN_SCORE = 0.75
"""Share of a name's letters that must be right."""
_MOST_READINGS = 300
_MOST_WORDS = 40


@dataclass(frozen=True)
class Meaning:
    """What a text means.

    Attributes:
        target: the vocabulary's or the training's name of it, side in front.
        prompt: the text in English: the target, and modality and site where the text names them.
        score: share of the name's letters that are as they should be, from 0 to 1.
        changes: what was not as it should be, one short text each.
    """

    target: str
    prompt: str
    score: float
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    """A word or a phrase of a text.

    Attributes:
        text: folded.
        given: as it was written.
        roles: other than part of a name.
        words: of names that it may stand for → wrong letters.
    """

    text: str
    given: str
    roles: tuple[Phrase, ...] = ()
    words: Mapping[str, int] = field(default_factory=dict)

    def is_a(self, *roles: str) -> bool:
        return any(each.role in roles for each in self.roles)


class PromptRules:
    """Understands prompts for these targets.

    Args:
        names: targets of a training, beside those of the vocabulary.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        names = [*names]
        own = [name for name in names if find_target(name) is None]
        if own:
            known_names = PromptRules()
            own = [name for name in own if (known := known_names.understand(name)[0]) is None or known.score < 1]
        self._lexicon = vocabulary() if not own else Lexicon([*vocabulary().names, *own_names(own)])
        self._names = frozenset(names)

    def understand(self, text: str) -> tuple[Meaning | None, tuple[str, ...]]:
        """The one meaning of a text, or None; and targets that may be meant instead.

        Raises:
            PromptError: it names a target on both sides at once.
        """
        if twice := re.fullmatch(r"([^()]+)\(([^()]{2,})\)\W*", text):  # "inferior vena cava (IVC)"
            (outer, _), (inner, _) = self.understand(twice[1]), self.understand(twice[2])
            if outer is not None and inner is not None and outer.target == inner.target:
                return outer, ()
        if len(text.split()) > _MOST_WORDS or has_no_side(text):
            return None, ()
        tokens = self._tokens(text)
        if not tokens or len(tokens) > _MOST_WORDS or any(each.is_a("refused") and not each.words for each in tokens):
            return None, ()
        readings = [*self._readings(tokens)]
        if not readings:
            readings = [*self._readings(self._joined(tokens))]
        if not readings:
            return None, ()
        return self._best(text, readings)

    def complete(self, text: str, *, limit: int = 8) -> list[tuple[str, str]]:
        """Targets whose name in any language begins like this text: (target, the name that does), best first.

        Args:
            text: the beginning of a prompt.
            limit: at most so many.
        """
        words = words_of(fold(text))
        found: dict[str, tuple[tuple[float, int, str], str]] = {}
        for target, name in self._spoken():
            rank = _begins(words, words_of(fold(name)), words_of(digraphs(name)))
            if rank is None and len(words) == 1 and len(words[0]) > SHORTEST:
                score = fuzz.ratio(words[0], fold(name)[: len(words[0])], score_cutoff=75)
                rank = 4 - score / 100 if score else None
            if rank is not None:
                order = rank, len(name), name
                found[target] = min(found.get(target, (order, name)), (order, name))
        best = sorted(found.items(), key=lambda item: (item[1][0], item[0]))
        return [(target, name) for target, (_, name) in best[:limit]]

    def _spoken(self) -> Iterator[tuple[str, str]]:
        """Each target with each of its names, sides in the name's language."""
        for name in self._lexicon.names:
            for side in ("", *SIDES):
                target = f"{side} {name.target}".strip()
                if target in self._names or (not self._names and _exists(target)):
                    for text in _with_side(name, side):
                        yield target, text
        for short, meant in abbreviations().items():
            if meant and (meant in self._names or not self._names):
                yield meant, short.upper()

    # --- words

    def _tokens(self, text: str) -> list[_Token]:
        """The text's words and phrases with all that they may be."""
        given = list(re.findall(r"[^\W_]+|[+&/]", _spaced(text)))
        folded = [fold(word) for word in given]
        tokens: list[_Token] = []
        index = 0
        while index < len(folded):
            length, roles = longest_phrase(folded, index)
            short = [n for n in (2, 1) if " ".join(folded[index : index + n]) in abbreviations()]
            if short and short[0] >= length and self._may_be_short(given, folded, index, short[0]):
                length, roles = short[0], ()
            together = " ".join(folded[index : index + length])
            written = " ".join(given[index : index + length])
            words = self._words(together, roles) if length == 1 else {}
            if together in abbreviations() and not roles:
                words = {together: 0}
            if not words and not roles and length == 1 and (parts := self._lexicon.parted(together)):
                tokens += [
                    _Token(part, written if first else "", roles_of((part,)), self._words(part, roles_of((part,))))
                    for first, part in zip((True, *[False] * len(parts)), parts, strict=False)
                ]
            else:
                tokens.append(_Token(together, written, roles, words))
            index += length
        return tokens

    def _may_be_short(self, given: Sequence[str], folded: Sequence[str], index: int, length: int) -> bool:
        """Whether an abbreviation may be meant, where it is also an article ("LA", "la vena cava")."""
        if not roles_of(tuple(folded[index : index + length])):
            return True
        return all(word.isupper() for word in given[index : index + length]) and not any(
            word.isupper() and len(word) > 3 for word in given
        )

    def _words(self, word: str, roles: Sequence[Phrase]) -> Mapping[str, int]:
        """Words of names that a word may stand for → wrong letters."""
        known = self._lexicon.forms.get(word) if word.isalnum() else set()
        if known is not None:
            return dict.fromkeys(known, 0)
        if roles or word in real_words() or len(word) < SHORTEST or not word.isalpha():
            return {}
        return self._lexicon.near(word)

    def _joined(self, tokens: Sequence[_Token]) -> list[_Token]:
        """Neighbours that are one word of a name: "Leber Tumor", "gall bladder"."""
        joined: list[_Token] = []
        for token in tokens:
            if joined and token.given and joined[-1].given and not {"+", "&", "/"} & {token.text, joined[-1].text}:
                both = joined[-1].text + token.text
                if min(len(joined[-1].text), len(token.text)) > 2 and both in self._lexicon.forms:
                    words = dict.fromkeys(self._lexicon.forms[both], 0)
                    joined[-1] = _Token(both, f"{joined[-1].given} {token.given}", (), words)
                    continue
            joined.append(token)
        return joined

    # --- meanings

    def _readings(self, tokens: Sequence[_Token]) -> Iterator[_Reading]:
        """All ways to read the tokens as one target with everything else explained."""
        tokens = [*_resolved(tokens)]
        content = [index for index, token in enumerate(tokens) if token.words]
        optional = [
            index
            for index in content
            if tokens[index].is_a("site", "modality", "scan", "of", "and", "or", "side", "all")
        ]
        optional += [index for index, token in enumerate(tokens) if token.is_a("and", "or") and not token.words]
        needed = [index for index in content if index not in optional]
        for size in range(len(optional), -1, -1) if len(optional) < 7 else ():
            for chosen in itertools.combinations(optional, size):
                part = sorted({*needed, *chosen})
                rest = [token for index, token in enumerate(tokens) if index not in part]
                frame = _frame(rest)
                if not part or frame is None:
                    continue
                yield from self._named([tokens[index] for index in part], frame, tuple(tokens))

    def _named(self, tokens: Sequence[_Token], frame: _Frame, of_all: tuple[_Token, ...]) -> Iterator[_Reading]:
        choices = [sorted(each.words.items()) or [("&" if each.is_a("and") else "|", 0)] for each in tokens]
        for choice in itertools.islice(itertools.product(*choices), _MOST_READINGS):
            wrong = sum(count for _, count in choice)
            for name in self._lexicon.bags.get(frozenset(word for word, _ in choice), ()):
                if frame.languages and name.language != "any" and not _same_language(tokens, name, frame):
                    continue
                if not _sides_fit(of_all, self._lexicon.languages[name.target, frozenset(name.words)]):
                    continue
                yield _Reading(name, frame, tuple(tokens), of_all, wrong, tuple(word for word, _ in choice))

    def _best(self, text: str, readings: Sequence[_Reading]) -> tuple[Meaning | None, tuple[str, ...]]:
        largest = max(len(each.tokens) for each in readings)
        least = min(each.wrong for each in readings if len(each.tokens) == largest)
        best = [each for each in readings if len(each.tokens) == largest and each.wrong == least]
        targets = {each.name.target for each in best}
        beside = {each.name.target for each in readings if each.wrong <= least + 1} if least else targets
        offered = tuple(dict.fromkeys(each for name in sorted(beside) for each in self._offered(name)))
        if len(targets) > 1 or len(beside) > 1:
            return None, offered
        reading = best[0]
        frame, name = reading.frame, reading.name
        if frame.side and _is_beside(reading.all_tokens, reading.tokens):
            return None, offered
        if frame.contradiction and (_has_sides(name.target) or self._has_sides(name.target)):
            raise PromptError(f"prompt {text[:80]!r} names both sides; ask for one of them, or for each with a prompt")
        target = f"{frame.side} {name.target}" if frame.side else name.target
        if frame.contradiction or (frame.both and not _has_sides(name.target)):
            return None, offered
        if frame.side and not (_exists(target) or target in self._names):
            return None, offered
        letters = sum(len(word) for word in reading.words)
        score = 1.0 - reading.wrong / max(letters, 1)
        if score < MIN_SCORE:
            return None, (target,)
        return Meaning(target, frame.around(target), round(score, 2), reading.changes()), offered

    def _has_sides(self, target: str) -> bool:
        return any(f"{side} {target}" in self._names for side in SIDES)

    def _offered(self, target: str) -> Iterator[str]:
        """The target, and with its sides, as far as it is there."""
        for name in (target, *(f"{side} {target}" for side in SIDES)):
            if name in self._names or (not self._names and name == target):
                yield name


@dataclass(frozen=True)
class _Frame:
    """All of a text but the name."""

    side: str | None
    both: bool
    contradiction: bool
    modality: str
    sites: tuple[str, ...]
    is_scan: bool
    languages: frozenset[str]
    changes: tuple[str, ...]

    def around(self, target: str) -> str:
        """The target with modality and site as the training's prompts have them."""
        place = " and ".join(self.sites)
        if self.modality:
            return f"{target} in {site_adjective(place)} {self.modality}" if place else f"{target} in {self.modality}"
        if self.is_scan and place:
            return f"{target} in {site_adjective(place)} scan"
        return f"{target} in the {place}" if place else target


@dataclass(frozen=True)
class _Reading:
    name: Name
    frame: _Frame
    tokens: tuple[_Token, ...]
    all_tokens: tuple[_Token, ...]
    wrong: int
    words: tuple[str, ...]

    def changes(self) -> tuple[str, ...]:
        found = []
        code = self.name.language
        if code in LANGUAGES and code != "en":
            found.append(LANGUAGES[code])
        if code == "any":
            found.append("abbreviation")
        wrong = [token.given for token, word in zip(self.tokens, self.words, strict=True) if token.words.get(word)]
        if wrong:
            found.append(f"typing error in {', '.join(map(repr, wrong))}")
        return (*found, *self.frame.changes)


def _frame(rest: Sequence[_Token]) -> _Frame | None:
    """What the tokens beside a name say; None if one of them is not explained."""
    sides: list[tuple[int, str]] = []
    joined, modalities, sites, changes = False, set[str](), dict[str, None](), []
    requested = any(token.is_a("request") for token in rest)
    languages: list[frozenset[str]] = []
    both = False
    for index, token in enumerate(rest):
        if token.text in ("+", "&", "/") or token.is_a("and"):
            around = rest[max(index - 1, 0) : index + 2]
            if not (len(around) == 3 and around[0].is_a("side") and around[2].is_a("side")):
                return None
            joined = joined or token.text != "/"  # "left/right" may mean either
        elif token.is_a("side"):
            sides.append((index, next(each.meaning for each in token.roles if each.role == "side")))
            if token.text not in side_words():
                changes.append(f"typing error in {token.given!r}")
            elif len(token.text) < 4:
                changes.append("abbreviation")
        elif token.is_a("both"):
            both = True
        elif token.is_a("modality"):
            modalities |= {each.meaning for each in token.roles if each.role == "modality"}
        elif token.is_a("site"):
            sites[next(each.meaning for each in token.roles if each.role == "site")] = None
        elif not token.is_a("all", "of", "polite", "request", "scan") and not (requested and token.is_a("helper")):
            return None
        if token.roles and not token.is_a("modality", "site"):
            languages.append(frozenset(each.language for each in token.roles))
    is_scan = any(token.is_a("scan", "modality") for token in rest)
    placed = all(rest[index - 1].is_a("of") for index, token in enumerate(rest) if token.is_a("site") and index)
    if len(modalities) > 1 or (sites and not is_scan and not (placed and rest[0].is_a("of"))):
        return None  # "liver head" is no liver in the head
    meant = {side for _, side in sides}
    if joined and meant == set(SIDES):
        meant, both = set(), True
    return _Frame(
        side=next(iter(meant)) if len(meant) == 1 else None,
        both=both,
        contradiction=len(meant) > 1 or (both and len(meant) == 1),
        modality=next(iter(modalities), ""),
        sites=tuple(sites),
        is_scan=any(token.is_a("scan") for token in rest),
        languages=frozenset.intersection(*languages) if languages else frozenset(LANGUAGES),
        changes=tuple(dict.fromkeys(changes)),
    )


_ARTICLES = frozenset({
    "the", "a", "an", "der", "die", "das", "den", "dem", "ein", "eine", "einen", "einem", "einer", "le", "la", "les",
    "un", "une", "el", "los", "las", "unos", "unas", "l",
})  # fmt: skip
_LETTERS = ("d", "g", "i")
_OF_A_SIDE = frozenset({"hand", "sided", "seitig"})


def _is_beside(tokens: Sequence[_Token], name: Sequence[_Token]) -> bool:
    """Whether a side is of a place and no part of the name: "left of the kidney", "links neben der Niere"."""
    for index, token in enumerate(tokens):
        if token in name:
            return False
        if not token.is_a("side"):
            continue
        between = list(itertools.takewhile(lambda each: each.is_a("of") and not each.words, tokens[index + 1 :]))
        after = tokens[index + 1 + len(between) :]
        if after and after[0] in name and any(each.text not in _ARTICLES | _OF_A_SIDE for each in between):
            return True
    return False


def _same_language(tokens: Sequence[_Token], name: Name, frame: _Frame) -> bool:
    """Whether a name whose words mean something else in another language stands among words of its own."""
    return name.language in frame.languages or not any(word in false_friends() for word in name.words)


def _sides_fit(tokens: Sequence[_Token], languages: Collection[str]) -> bool:
    """Whether short sides that have other meanings are of a language of the name: "rein G", but no "kidney G"."""
    short = [token for token in tokens if token.text in ("re", *_LETTERS) and token.is_a("side")]
    return "any" in languages or all(any(role.language in languages for role in token.roles) for token in short)


def _resolved(tokens: Sequence[_Token]) -> Iterator[_Token]:
    """Settle words that are a side's abbreviation and something else by their neighbours."""
    for index, token in enumerate(tokens):
        if not token.is_a("side") or len(token.roles) < 2 or len(token.text) > 3:
            if token.text in _LETTERS and token.is_a("side"):
                token = _short_side(tokens, index)
            yield token
            continue
        yield _short_side(tokens, index)


def _short_side(tokens: Sequence[_Token], index: int) -> _Token:
    """ "der", "i", "d" and "g" are sides only behind a name of French or Spanish."""
    token = tokens[index]
    if token.text not in ("der", *_LETTERS):
        return token
    last = index + 1 == len(tokens) or tokens[index + 1].is_a("of", "modality") and not tokens[index + 1].words
    behind = index > 0 and bool(tokens[index - 1].words)
    as_side = last and behind
    roles = tuple(each for each in token.roles if (each.role == "side") == as_side)
    return _Token(token.text, token.given, roles, {} if as_side else token.words)


_ELISION = re.compile(r"\b(?:qu|[ldsnjmct])'(?=\w)")
_CONTRACTION = re.compile(r"(?<=\w)'(?:s|d|ll|ve|re|m)\b")
_HUMPS = re.compile(r"(?<=[a-zà-ÿ]{3})(?=[A-Z][a-zà-ÿ]{2}|[LR]\b)")
_PLURAL = re.compile(r"(?i)(?<=\w)\((?:s|e?n|es|e)\)")
_DOTTED = re.compile(r"\b(?:[^\W\d_]\.)+[^\W\d_]\b\.?")
_ORDINAL = re.compile(r"\b(\d{1,2})(?:\.(?=\s*[^\W\d])|(?:st|nd|rd|th|te|ten|ter|er|ere|re|eme|ieme|e|a|o|ª|º)\b)")
_LEVEL = re.compile(r"\b([clts]|th|bwk|lwk|hwk|d)[\s.-]+(?=\d{1,2}\b)")


def _spaced(text: str) -> str:
    """The text with spaces where words end: "LeftKidney", "l'aorte", "3. Rippe"; and none within "I.V.C."."""
    text = _DOTTED.sub(lambda match: match[0].replace(".", ""), _PLURAL.sub("", text))
    text = _HUMPS.sub(" ", re.sub(r"['’‘`´]", "'", text))
    text = re.sub(r"(?i)n°\s*", "", text)
    for pattern in (_ELISION, _CONTRACTION):
        text = re.sub(pattern.pattern, " ", text, flags=re.IGNORECASE)
    text = re.sub(_ORDINAL.pattern, r"n\1 ", text, flags=re.IGNORECASE)
    return re.sub(_LEVEL.pattern, r"\1", text, flags=re.IGNORECASE)


def _exists(target: str) -> bool:
    """Whether the vocabulary knows this target with this side."""
    known = find_target(target)
    return known is not None and known.name == target


def _has_sides(target: str) -> bool:
    return find_target(f"left {target}") is not None and _exists(f"left {target}")


def _with_side(name: Name, side: str) -> Iterator[str]:
    if not side:
        yield name.text
    elif name.language in LANGUAGES:
        words = language(name.language)["sides"][side]
        spoken = words[:1] if name.language == "en" else words[:4]
        for word in spoken:
            if len(word) > 3:
                yield f"{word} {name.text}" if name.language in ("en", "de") else f"{name.text} {word}"


def _begins(typed: Sequence[str], *names: Sequence[str]) -> float | None:
    """How well the typed words begin these names: 0 best; None if they do not."""
    if not typed:
        return 3.0
    for words in names:
        if " ".join(words).startswith(" ".join(typed)):
            return 0.0
        if all(any(word.startswith(each) for word in words) for each in typed):
            return 1.0
    return None
