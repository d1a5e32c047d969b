"""Spellings that people type, each of one target; and texts that mean none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from boltzformer_monai.data.prompt_check import PromptReader, Reading
from boltzformer_monai.data.prompt_words import LANGUAGES, fold, language
from boltzformer_monai.data.size_limits import SizeLimit, find_size_limit
from boltzformer_monai.errors import PromptError

HERE = Path(__file__).parent
SIDES = {"left": "right", "right": "left"}


def table(name: str) -> dict[str, list[str]]:
    """Target → spellings."""
    lines = [line for line in (HERE / name).read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    pairs = (line.split(": ", 1) for line in lines)
    return {target: [text.strip() for text in texts.split(" | ")] for target, texts in pairs}


SPELLINGS, HELD_OUT = table("spellings.txt"), table("held_out.txt")
UNRELATED = (HERE / "unrelated.txt").read_text(encoding="utf-8").splitlines()


def _both_sides(names: set[str]) -> set[str]:
    """With the other side of each: what a wrong side would be read as."""
    mirrored = {f"{SIDES[side]} {rest}" for side, _, rest in (name.partition(" ") for name in names) if side in SIDES}
    return names | mirrored


@pytest.fixture(scope="module")
def reader() -> PromptReader:
    names = sorted(_both_sides({*SPELLINGS, *HELD_OUT}))
    return PromptReader([{"target": name, "site": "", "modality": "CT"} for name in names])


def _read(reader: PromptReader, text: str) -> Reading | None:
    try:
        return reader.read(text)
    except PromptError:
        return None


def _wrong(reader: PromptReader, spellings: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Spellings that are not read as their target, and those that are read as another."""
    missed, mistaken = [], []
    for target, texts in spellings.items():
        for text in texts:
            reading = _read(reader, text)
            if reading is None or reading.target is None:
                missed.append(f"{text!r} is {target!r}, read as none")
            elif reading.target != target:
                mistaken.append(f"{text!r} is {target!r}, read as {reading.target!r}")
    return missed, mistaken


@pytest.mark.parametrize(
    ("spellings", "least", "share"), [(SPELLINGS, 600, 0.97), (HELD_OUT, 200, 0.95)], ids=["tuned", "held out"]
)
def test_spellings_are_read_as_their_target(
    reader: PromptReader, spellings: dict[str, list[str]], least: int, share: float
) -> None:
    count = sum(map(len, spellings.values()))
    missed, mistaken = _wrong(reader, spellings)
    assert count >= least
    assert mistaken == []
    assert len(missed) <= (1 - share) * count, "\n".join(missed)


def test_there_are_enough_of_them_in_five_languages() -> None:
    assert len(SPELLINGS) >= 60
    assert len(UNRELATED) >= 200
    assert len({*UNRELATED}) == len(UNRELATED)


def test_what_is_changed_is_said(reader: PromptReader) -> None:
    for target, texts in SPELLINGS.items():
        for text in texts:
            reading = _read(reader, text)
            if reading is not None and reading.target and reading.shown.lower() != text.lower():
                assert reading.changes, text
                kinds = dict(reader.caveats(reading))
                assert f"{text!r} understood as {target!r}" in kinds["understood prompt"]
                assert f"score {reading.score:.2f}" in kinds["understood prompt"]


def test_unrelated_texts_mean_no_target(reader: PromptReader) -> None:
    read = {text: reading.target for text in UNRELATED if (reading := _read(reader, text)) and reading.target}
    assert read == {}


def test_without_known_targets_the_network_is_shown_the_vocabularys_name() -> None:
    reader = PromptReader([])
    for text, shown in {"linke Niere": "left kidney", "lung nodlues": "lung nodule"}.items():
        assert (reader.read(text).target, reader.read(text).shown) == (None, shown)
    for text in ("both kidneys", "pancreas head", "a zebra"):
        assert (reader.read(text).target, reader.read(text).shown) == (None, text)


def test_a_training_in_another_language_is_asked_in_any() -> None:
    reader = PromptReader([{"target": name, "site": "", "modality": "CT"} for name in ("linke niere", "leber")])
    for text, target in (("left kidney", "linke niere"), ("Leber", "leber"), ("foie", "leber"), ("rein droit", None)):
        assert reader.read(text).target == target, text


def test_literal_texts_go_to_the_network_as_they_are(reader: PromptReader) -> None:
    for texts in SPELLINGS.values():
        for text in texts[:3]:
            assert reader.read(text, literal=True).shown == text


# --- sides

PATTERNS = {
    "en": ("{side} kidney", "kidney {side}", "kidney, {side}", "segment the {side} kidneys in CT"),
    "de": ("{side} Niere", "Niere {side}", "bitte die {side} Niere segmentieren"),
    "fr": ("rein {side}", "le rein {side}", "segmentez le rein {side}"),
    "es": ("riñón {side}", "el riñón {side}", "segmenta el riñón {side} en TC"),
}


def _sides() -> list[tuple[str, str, str]]:
    """(language, word, side)"""
    return [
        (code, word, side) for code in LANGUAGES for side, words in language(code)["sides"].items() for word in words
    ]


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_every_word_for_a_side_is_that_side(reader: PromptReader, code: str) -> None:
    for _, word, side in (each for each in _sides() if each[0] == code):
        target = reader.read(PATTERNS[code][1].format(side=word)).target
        assert target == f"{side} kidney", word


@pytest.mark.parametrize("seed", range(3))
def test_a_typing_error_in_a_side_is_never_the_other_side_and_never_no_side(reader: PromptReader, seed: int) -> None:
    rng = random.Random(seed)
    words = {fold(word) for _, word, _ in _sides()}
    read = 0
    for _ in range(400):
        code, word, side = rng.choice([each for each in _sides() if len(each[1]) > 3])
        wrong = _mistyped(rng, word)
        if fold(wrong) in words:
            continue
        reading = _read(reader, rng.choice(PATTERNS[code]).format(side=wrong))
        target = None if reading is None else reading.target
        assert target in (None, f"{side} kidney"), wrong
        read += target is not None
    assert read > 25


def _mistyped(rng: random.Random, word: str) -> str:
    for _ in range(rng.choice([1, 1, 1, 2])):
        at = rng.randrange(len(word))
        word = rng.choice([
            word[:at] + word[at + 1 :],
            word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
            word[:at] + word[at] + word[at:],
            word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at:],
            word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :],
        ])  # fmt: skip
        word = word or "x"
    return word


@pytest.mark.parametrize("seed", range(3))
def test_a_typing_error_in_a_name_never_makes_another_target(reader: PromptReader, seed: int) -> None:
    rng = random.Random(seed)
    read = tried = 0
    for _ in range(300):
        target = rng.choice(sorted(SPELLINGS))
        text = rng.choice(SPELLINGS[target])
        words = text.split()
        at = rng.randrange(len(words))
        if len(words[at]) < 5 or not words[at].isalpha():
            continue
        words[at] = _mistyped(rng, words[at])
        reading = _read(reader, " ".join(words))
        tried += 1
        read += reading is not None and reading.target == target
        if reading is not None and reading.target not in (None, target):
            # A word more or less of a name may be another name: "hepatic lesion", "cyst".
            first, _, rest = target.partition(" ")
            assert first not in SIDES or reading.target.split()[0] == first, (text, words)
            assert words[at] in reading.prompt
            assert reading.score == 1, (text, words, reading)
    assert read > 0.5 * tried


@pytest.mark.parametrize(
    "prompt",
    ["left kidney on the right", "left right kidney", "re./li. Niere", "L/R kidney",
     "linke Niere rechts", "rein gauche droit", "right kidney (left)",
     "riñón izquierdo derecho"],
)  # fmt: skip
def test_both_sides_at_once_are_refused(reader: PromptReader, prompt: str) -> None:
    with pytest.raises(PromptError, match="both sides"):
        reader.read(prompt)
    assert reader.read(prompt, literal=True).shown == prompt


@pytest.mark.parametrize(
    "prompt",
    ["left of the kidney", "right side of the kidney", "links von der Niere", "à gauche du rein",
     "a la derecha del riñón", "all right, show the kidney", "Re: kidney", "right, show the kidney", "kidneyl",
     "left over kidney", "I left the kidney", "left or right kidney", "contralateral kidney", "kidney 1",
     "lift kidney", "light kidney", "rift kidney", "kidney s", "the kidney, right?", "is this kidney right",
     "right, the kidney", "right where is the kidney", "re the kidney", "re kidney", "the only kidney left",
     "kidney g", "kidney d", "Niere i", "left/right kidney"],
)  # fmt: skip
def test_what_is_no_side_is_not_taken_for_one_and_not_left_out(reader: PromptReader, prompt: str) -> None:
    reading = _read(reader, prompt)
    assert reading is None or reading.target is None


def test_a_side_is_not_guessed() -> None:
    reader = PromptReader([{"target": f"{side} kidney", "site": "", "modality": "CT"} for side in SIDES])
    for text in ("kidney", "Niere", "kidneys", "rein", "the kidney in CT"):
        reading = reader.read(text)
        assert (reading.target, reading.shown, reading.near) == (None, text, ("left kidney", "right kidney"))


# --- size limits


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("please segment all lung nodules smaller than 5 mm", "< 5 mm"),
        ("lung nodules < 5 mm", "< 5 mm"),
        ("lung nodules (≥ 0,6 cm)", "≥ 6 mm"),
        ("lung nodules bigger than 1 cm", "> 10 mm"),
        ("lung nodules not larger than 5 mm", "≤ 5 mm"),
        ("lung nodules larger than 3 mm but smaller than 8 mm", "> 3 mm and < 8 mm"),
        ("lung nodules of 5 mm or more", "≥ 5 mm"),
        ("lung nodules with a diameter of less than 1 cm", "< 10 mm"),
        ("lung nodules from 3 mm to 1 cm", "≥ 3 mm and ≤ 10 mm"),
        ("lung nodules of at least 2 ml", "≥ 2 ml"),
        ("lung nodules under 500 mm³", "< 0.5 ml"),
        ("Lungenrundherde größer als 1,5 cm", "> 15 mm"),
        ("Lungenrundherde groesser als 1,5 cm", "> 15 mm"),
        ("Lungenrundherde, die kleiner als 5 Millimeter sind", "< 5 mm"),
        ("Lungenrundherde zwischen 3 und 8 mm", "≥ 3 mm and ≤ 8 mm"),
        ("nodules pulmonaires de moins de 5 mm de diamètre", "< 5 mm"),
        ("nodules pulmonaires supérieurs à 1 cm", "> 10 mm"),
        ("nodules pulmonaires de 3 à 8 mm", "≥ 3 mm and ≤ 8 mm"),
        ("nódulos pulmonares mayores de 1 cm", "> 10 mm"),
        ("nódulos pulmonares de al menos 5 mm", "≥ 5 mm"),
        ("nódulos pulmonares entre 3 y 8 milímetros", "≥ 3 mm and ≤ 8 mm"),
    ],
)
def test_size_limits_are_of_the_lesions_and_the_answer_says_so(reader: PromptReader, text: str, limit: str) -> None:
    reading = reader.read(text)
    assert (reading.target, str(reading.size_limit)) == ("lung nodule", limit)
    assert limit in dict(reader.caveats(reading))["size limit"]
    stored = (reading.understood() or {})["size_limit"]
    assert stored["text"] == limit
    assert SizeLimit.of(stored) == reading.size_limit


def test_what_a_size_limit_admits() -> None:
    _, limit = find_size_limit("nodules > 3 mm and ≤ 8 mm")
    assert limit is not None
    assert [limit.admits(long_axis_mm=size, volume_ml=0) for size in (3, 3.01, 8, 8.01)] == [False, True, True, False]
    _, limit = find_size_limit("nodules < 2 ml")
    assert limit is not None
    assert [limit.admits(long_axis_mm=50, volume_ml=size) for size in (1.9, 2)] == [True, False]


@pytest.mark.parametrize("text", ["lung nodules > 8 mm and < 5 mm", "lung nodules > 8 mm and < 5 ml"])
def test_limits_that_exclude_each_other_are_refused(reader: PromptReader, text: str) -> None:
    with pytest.raises(PromptError, match="limits"):
        reader.read(text)


@pytest.mark.parametrize(
    "text",
    ["no lung nodule", "keine Lungenrundherde", "pas de nodule pulmonaire", "sin nódulos pulmonares",
     "lungs without nodules > 5 mm", "Lunge ohne Rundherde", "größter Lungenrundherd", "zwei Lungenrundherde",
     "2 cm lung nodule"],
)  # fmt: skip
def test_negations_mere_sizes_and_counts_are_refused_in_every_language(reader: PromptReader, text: str) -> None:
    with pytest.raises(PromptError, match="not understood"):
        reader.read(text)


# --- while typing


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("left k", "left kidney"), ("lung n", "lung nodule"), ("Nier", "kidney"), ("linke ni", "left kidney"),
        ("riñ", "kidney"), ("kidn", "kidney"), ("bauchsp", "pancreas"), ("gallbl", "gallbladder"),
        ("rein g", "left kidney"), ("oesoph", "esophagus"), ("LK", "left kidney"),
    ],
)  # fmt: skip
def test_completions_begin_like_the_text_in_any_language(reader: PromptReader, typed: str, first: str) -> None:
    found = reader.complete(typed)
    assert found[0][0] == first
    assert len({target for target, _ in found}) == len(found) <= 8


def test_completions_are_of_the_training(reader: PromptReader) -> None:
    for typed in ("", "l", "left", "x", "Leb"):
        assert {target for target, _ in reader.complete(typed, limit=50)} <= set(reader.names)
    assert reader.complete("zebra") == []
    assert [target for target, _ in PromptReader([]).complete("spl")][:1] == ["spleen"]
