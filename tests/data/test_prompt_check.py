"""Known is what is nothing but a target's name and fillers; whatever stands beside them makes another prompt."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from importlib import resources
from typing import Any

import pytest

from boltzformer_monai.data.prompt_check import PromptReader, Reading, misunderstood, named_target
from boltzformer_monai.data.prompts import find_target, normalise_target, prompts_for
from boltzformer_monai.errors import PromptError

ENTRIES: dict[str, dict[str, Any]] = json.loads(
    resources.files("boltzformer_monai.data").joinpath("vocabulary.json").read_text(encoding="utf-8")
)["targets"]
SIDES = ("left", "right")
VOCABULARY = [
    name
    for base, entry in ENTRIES.items()
    for name in ([f"{side} {base}" for side in SIDES] if entry.get("sides") else []) + [base]
]


def _reader(*names: str, site: str = "abdomen", modality: str = "CT") -> PromptReader:
    return PromptReader([{"target": name, "site": site, "modality": modality} for name in names])


READER = _reader(
    "liver", "liver lesion", "liver tumor", "left kidney", "right kidney", "kidney", "lung nodule", "small bowel",
    "rib 1", "non enhancing tumor", "flux capacitor", "large hole",
)  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "target", "shown"),
    [
        ("liver", "liver", "liver"),
        ("Liver in abdominal CT", "liver", "Liver in abdominal CT"),  # trained as it is
        ("the LIVER in an abdominal CT scan", "liver", "liver in abdominal CT"),
        ("CT scan of the liver", "liver", "CT scan of the liver"),
        ("abdominal CT: liver", "liver", "liver in abdominal CT"),
        ("MRI of the liver", "liver", "liver"),  # no MR in the training
        ("kidney, left", "left kidney", "left kidney"),
        ("Kidney_Left", "left kidney", "left kidney"),
        ("left kidneys", "left kidney", "left kidney"),
        ("kidney on the left side in CT", "left kidney", "left kidney in CT"),
        ("both kidneys", "kidney", "kidney"),
        ("left and right kidneys in CT", "kidney", "kidney in CT"),
        ("lung nodules", "lung nodule", "lung nodule"),
        ("pulmonary nodules on chest CT", "lung nodule", "lung nodule in CT"),
        ("liver CT", "liver", "liver in CT"),
        ("tumor in liver CT", "liver tumor", "tumor in liver CT"),
        ("lesions of the liver.", "liver lesion", "liver lesion"),
        ("liver lesion in the abdomen", "liver lesion", "liver lesion"),
        ("small bowel", "small bowel", "small bowel"),
        ("first rib", "rib 1", "rib 1"),
        ("nonenhancing tumour core", "non enhancing tumor", "non enhancing tumor"),
        ("tumor in the liver CT", "liver tumor", "liver tumor in CT"),
        ("the tumour in a liver CT scan", "liver tumor", "liver tumor in CT"),
        ("tumor in liver", "liver tumor", "liver tumor"),
        ("neoplasms within the liver", "liver tumor", "liver tumor"),
        ("nodule in lung", "lung nodule", "lung nodule"),
        ("nodules in the lungs", "lung nodule", "lung nodule"),
        ("lung nodule in CBCT", "lung nodule", "lung nodule in CT"),
        ("HRCT: lung nodule", "lung nodule", "lung nodule in CT"),
        ("liver in T1-weighted MRI", "liver", "liver"),
        ("FLAIR MRI of the liver", "liver", "liver"),
        ("liver in T2 MRI", "liver", "liver"),
        ("liver in chest and abdomen CT", "liver", "liver in CT"),
        ("flux capacitors in CT images", "flux capacitor", "flux capacitor in CT"),
        ("Large holes", "large hole", "large hole"),
    ],
)
def test_any_spelling_of_a_name_is_known_and_shown_as_the_training_spells_it(
    prompt: str, target: str, shown: str
) -> None:
    reading = READER.read(prompt)
    assert (reading.target, reading.shown, reading.misunderstood) == (target, shown, ())
    assert [kind for kind, _ in READER.caveats(reading)] == ["understood prompt"] * (shown != prompt)
    assert READER.read(prompt, literal=True).shown == prompt


@pytest.mark.parametrize(
    ("prompt", "near"),
    [
        ("both lungs", "lung nodule"),
        ("liver head", "liver"),
        ("liver and lesion", "liver"),
        ("vessel of the left kidney", "left kidney"),
        ("left liver", "liver"),
        ("liver lesion in the lung", "liver lesion"),
        ("segment 4 of the liver", "liver"),
        ("hole", "large hole"),
        ("spleen", None),
        ("left kidney in a jar", "left kidney"),
        ("liver in the brain", "liver"),
        ("liver in lung CT", "liver"),
        ("lung nodule in ultrasound", "lung nodule"),
        ("t1 rib 1", "rib 1"),
        ("lung nodule in the liver and lung", "lung nodule"),
    ],
)
def test_one_word_more_or_less_is_unknown_and_what_is_near_is_offered(prompt: str, near: str | None) -> None:
    reading = READER.read(prompt)
    assert reading.target is None
    assert reading.shown == prompt
    [(kind, text)] = READER.caveats(reading)
    assert kind == "unknown prompt"
    assert f"did you mean '{near}'" in text or near in reading.near if near else "its targets are flux" in text


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("no liver lesion", ("no",)),
        ("liver without lesion", ("without",)),
        ("lesion-free liver", ("lesion-free",)),
        ("liver free of lesions", ("free of",)),
        ("3 lung nodules", ("3",)),
        ("two kidneys", ("two",)),
        ("biggest lung nodule in CT", ("biggest",)),
        ("2 cm liver lesion", ("2 cm",)),
        ("large small bowel", ("large",)),
        ("small large hole", ("small",)),
        ("no small bowel", ("no",)),
    ],
)
def test_negations_sizes_and_counts_are_refused_unless_meant_literally(prompt: str, words: tuple[str, ...]) -> None:
    for reader in (READER, PromptReader([{"target": "large hole", "site": "", "modality": "CT"}])):
        with pytest.raises(PromptError, match="is not understood.*--literal"):
            reader.read(prompt)
    reading = READER.read(prompt, literal=True)
    assert (reading.target, reading.shown, reading.misunderstood) == (None, prompt, words)
    [(kind, text)] = READER.caveats(reading)
    assert kind == "words not understood"
    assert repr(words[0])[1:-1] in text


@pytest.fixture
def two_organs() -> PromptReader:
    return PromptReader([
        {"target": "lesion", "site": "liver", "modality": "CT"},
        {"target": "prostate", "site": "prostate", "modality": "MR"},
        {"target": "liver", "site": "abdomen", "modality": "CT"},
    ])  # fmt: skip


@pytest.mark.parametrize(
    "prompt", ["lesion in the prostate", "lesion in prostate MRI", "liver in the brain", "prostate in the liver"]
)
def test_the_site_of_another_target_is_no_filler(two_organs: PromptReader, prompt: str) -> None:
    reading = two_organs.read(prompt)
    assert (reading.target, reading.shown) == (None, prompt)
    assert reading.near
    assert reading.near[0] in prompt


@pytest.mark.parametrize(
    ("prompt", "target", "shown"),
    [
        ("lesion in the liver", "lesion", "lesion"),
        ("lesion in abdominal CT", "lesion", "lesion in CT"),
        ("lesion in MRI", "lesion", "lesion"),  # the MR of another target
        ("prostate in CT", "prostate", "prostate"),
        ("prostate in pelvic MRI", "prostate", "prostate in MRI"),
        ("liver in whole-body CT", "liver", "liver in CT"),
    ],
)
def test_a_target_is_shown_in_texts_of_its_own_training(
    two_organs: PromptReader, prompt: str, target: str, shown: str
) -> None:
    reading = two_organs.read(prompt)
    assert (reading.target, reading.shown) == (target, shown)


TUMORS = _reader("brain tumor", "liver", "liver tumor", "vessel")


@pytest.mark.parametrize(
    ("reader", "prompt", "near"),
    [
        (_reader("brain tumor", "liver", "liver lesion"), "tumor in liver", ("liver",)),
        (TUMORS, "tumor wall in liver", ("liver tumor", "liver")),
        (TUMORS, "tumor", ("brain tumor", "liver tumor")),
    ],
)
def test_what_is_near_is_judged_by_the_whole_text(reader: PromptReader, prompt: str, near: tuple[str, ...]) -> None:
    assert reader.read(prompt).near == near


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("no tumor in liver", "ask for 'liver tumor',"),
        ("the biggest tumor in liver CT", "ask for 'liver tumor',"),
        ("liver minus tumor", "ask for a target alone (names near it: 'liver tumor', 'liver'),"),
        ("liver w/o tumor", "ask for a target alone (names near it: 'liver tumor', 'liver'),"),
        ("no zebra", "ask for a target alone,"),
    ],
)
def test_a_refusal_names_a_target_only_where_nothing_else_can_be_meant(prompt: str, said: str) -> None:
    with pytest.raises(PromptError) as error:
        TUMORS.read(prompt)
    assert said in str(error.value)


def test_where_the_targets_are_not_known_nothing_is_warned_of() -> None:
    reader = PromptReader([])
    for prompt in ("liver", "both kidneys", "first rib", "a zebra", "segment 4 of the liver"):
        reading = reader.read(prompt)
        assert (reading.target, reading.shown) == (None, prompt)
        assert reader.caveats(reading) == []
    with pytest.raises(PromptError, match="'no'.*ask for 'liver lesion'"):
        reader.read("no liver lesion")


def test_the_names_of_the_vocabulary_hold_no_word_that_is_refused() -> None:
    for name, entry in ENTRIES.items():
        for spelling in (name, *entry.get("synonyms", ()), *entry.get("spellings", ())):
            assert misunderstood(spelling) == (), spelling
            assert named_target(f"CT scan of the {spelling}") == normalise_target(spelling)


def test_every_text_of_the_training_is_known_and_shown_as_it_is() -> None:
    for name in (*VOCABULARY, "flux capacitor", "left my thing", "Large Hole (2)"):
        for site, modality in (
            ("abdomen", "CT"),
            ("thorax", "MR"),
            ("", "unknown"),
            ("chest and abdomen", "CT"),
            ("jaw", "CT"),
        ):
            reader = _reader(name, site=site, modality=modality)
            for text in prompts_for(name, site=site, modality=modality):
                reading = reader.read(text)
                assert (reading.target, reading.shown) == (name, text)


# --- The kind: any known name, any fillers, any spelling; and any of them with one thing more.

FRAMES = (
    "{}", "{} in CT", "{} in SITE CT", "CT scan of the {}", "the {}", "{} on CT", "{} in CBCT", "SITE CTA: {}",
    "{} in the CT scan", "{} in a SITE CT image", "SITE CT of the {}", "MRI of the {}", "{} in T2w MRI",
    "{} in whole-body CT", "a {} in the SITE", "CT: {}", "{}, in CT", "{} CT", "image of the {}",
    "{} in an MR image of the neck and SITE",
)  # fmt: skip
SITES = {  # site of the training → words for it and for what holds it
    "abdomen": ("abdomen", "abdominal", "whole body"), "liver": ("liver", "hepatic", "abdominal"),
    "lung": ("lung", "pulmonary", "chest", "thoracic"), "prostate": ("prostate", "pelvis", "pelvic"),
    "brain": ("brain", "cerebral", "head"), "knee": ("knee", "leg"),
}  # fmt: skip
REGIONS = ("abdomen", "abdominal", "whole body", "chest", "thoracic", "pelvis", "pelvic", "head", "knee", "leg")
INTRUDERS = {
    "negation": ("no", "not", "without", "absent"),
    "size": ("large", "small", "biggest", "tiny", "2 cm"),
    "count": ("multiple", "two", "3"),
}
OTHERS = ("wall", "vessel", "capsule", "apex", "duct", "pole", "cortex", "border", "calcified", "ruptured", "zebra")


def _invented(rng: random.Random) -> str:
    def word() -> str:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(4, 9)))

    words = [word() for _ in range(rng.randint(1, 3))]
    return " ".join([*([rng.choice(SIDES)] if rng.random() < 0.3 else []), *words])


def _spelled(name: str, rng: random.Random) -> str:
    """Another spelling of the same name."""
    known = find_target(name)
    text = rng.choice([name, *(known.synonyms if known is not None else ())])
    first, _, rest = text.partition(" ")
    if first in SIDES and rest and not {"of", "the"} & set(rest.split()):
        text = rng.choice([text, f"{rest}, {first}", f"{rest} {first}", f"{rest} ({first})", f"{rest} on the {first}"])
    if text == name and rng.random() < 0.3 and text[-1] in string.ascii_lowercase.replace("s", "").replace("y", ""):
        text += "s"
    if rng.random() < 0.2:
        text = text.replace(" ", rng.choice(["_", "  "]))
    return rng.choice([text, text.upper(), text.capitalize(), text.title()])


def _trained(rng: random.Random) -> list[str]:
    """The targets of a training: of the vocabulary, invented, or both."""
    kind = rng.randrange(3)
    names = rng.sample(VOCABULARY, rng.randint(1, 12)) if kind < 2 else []
    return list(dict.fromkeys([*names, *(_invented(rng) for _ in range(rng.randint(1, 6) if kind else 0))]))


@pytest.mark.parametrize("seed", range(4))
def test_known_name_times_fillers_times_spelling_is_known(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(250):
        names = _trained(rng)
        site = rng.choice([*SITES])
        name, reader = rng.choice(names), _reader(*names, site=site)
        prompt = rng.choice(FRAMES).replace("SITE", rng.choice(SITES[site])).format(_spelled(name, rng))
        reading = reader.read(prompt)
        assert reading.target == name, (prompt, names)
        texts = {text.lower() for text in prompts_for(name, site=site, modality="CT")}
        assert " ".join(reading.shown.lower().split()) in texts, prompt
        assert {kind for kind, _ in reader.caveats(reading)} <= {"understood prompt"}


def _not_known(reader: PromptReader, prompt: str, names: Sequence[str]) -> Reading:
    reading = reader.read(prompt, literal=True)
    assert reading.target is None, (prompt, names)
    assert reader.caveats(reading)
    return reading


@pytest.mark.parametrize("seed", range(4))
def test_a_known_name_with_a_negation_size_count_or_another_word_is_never_known(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(250):
        names = _trained(rng)
        name, reader = rng.choice(names), _reader(*names)
        frame = rng.choice(FRAMES).replace("SITE", "abdomen")
        kind = rng.choice([*INTRUDERS, "other"])
        intruder = rng.choice(INTRUDERS.get(kind, OTHERS))
        words = frame.format(f"{intruder} {name}").split()
        if kind in ("size", "other"):  # anywhere
            words = frame.format(name).split()
            words.insert(rng.randint(0, len(words)), intruder)
        prompt = " ".join(words)
        if named_target(prompt) in names or normalise_target(f"{intruder} {name}") in names:
            continue  # "small bowel" from "bowel": another known name was made
        reading = _not_known(reader, prompt, names)
        if kind != "other" and named_target(prompt) is None:
            assert reading.misunderstood, prompt
            with pytest.raises(PromptError, match="not understood"):
                reader.read(prompt)
        elif not reading.misunderstood:
            assert reader.read(prompt) == reading


@pytest.mark.parametrize("seed", range(4))
def test_a_name_at_the_site_of_another_target_is_known_only_in_a_scan_of_a_region(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(250):
        names = [_invented(rng) for _ in range(3)]
        sites = rng.sample([*SITES], 3)
        modalities = [rng.choice(["CT", "MR"]) for _ in names]
        kinds = zip(names, sites, modalities, strict=True)
        reader = PromptReader([{"target": name, "site": site, "modality": each} for name, site, each in kinds])
        frame = rng.choice([each for each in FRAMES if "SITE" in each and "neck" not in each])
        at = rng.randrange(3)
        own, word = rng.randrange(3), rng.choice(SITES[sites[at]])
        prompt = frame.replace("SITE", word).format(names[own])
        reading = reader.read(prompt)
        of_a_scan = word in REGIONS and frame != "a {} in the SITE"  # which says what the scan shows, not where to look
        holds = word == "whole body" or (word.startswith("abdom") and sites[own] == "liver")
        if word in SITES[sites[own]] or of_a_scan or holds:
            texts = prompts_for(names[own], site=sites[own], modality=modalities[own])
            assert (reading.target, reading.shown.lower() in {text.lower() for text in texts}) == (names[own], True)
        else:
            assert (reading.target, reading.shown) == (None, prompt), (prompt, names, sites)
            assert names[own] in reading.near


@pytest.mark.parametrize("seed", range(4))
def test_a_typing_error_is_read_as_the_name_or_as_none_and_mostly_it_is_read_or_offered(seed: int) -> None:
    rng = random.Random(seed)
    read = offered = tried = 0
    for _ in range(200):
        names = _trained(rng)
        name, reader = rng.choice(names), _reader(*names)
        long = [word for word in name.split() if len(word) > 4 and word not in SIDES]
        if not long:
            continue
        word = rng.choice(long)
        at = rng.randint(1, len(word) - 3)
        wrong = rng.choice([
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + rng.choice(string.ascii_lowercase) + word[at:],
        ])  # fmt: skip
        prompt = name.replace(word, wrong)
        if prompt == name or normalise_target(prompt) in {normalise_target(each) for each in names}:
            continue
        tried += 1
        reading = reader.read(prompt)
        assert reading.target in (name, None), (prompt, names)
        read += reading.target == name
        offered += name in reading.near
        assert reader.read(prompt, literal=True).shown == prompt
    assert tried > 100
    assert read > 0.8 * tried
    assert read + offered > 0.95 * tried
