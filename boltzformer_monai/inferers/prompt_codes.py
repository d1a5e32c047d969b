"""SNOMED CT codes of prompts."""

from __future__ import annotations

import re
from dataclasses import replace

from boltzformer_monai.data.prompt_check import misunderstood, named_target
from boltzformer_monai.data.prompts import TargetEntry, find_target, normalise_prompt
from boltzformer_monai.data.understanding import PromptRules
from boltzformer_monai.errors import PromptError
from boltzformer_monai.io.dicom.seg_writer import LESION, MASS, NEOPLASM, NODULE, TISSUE, SegmentCode

__all__ = ["segment_code"]

_FINDING = LESION.category
_ABNORMAL = {
    **dict.fromkeys(("tumor", "tumour", "neoplasm", "cancer", "carcinoma", "sarcoma", "glioma"), NEOPLASM),
    **dict.fromkeys(("nodule",), NODULE),
    **dict.fromkeys(("mass",), MASS),
    **dict.fromkeys(("lesion", "edema", "oedema", "infarct", "hyperintensity"), LESION),
}


def segment_code(prompt: str, *, known: bool = True) -> SegmentCode:
    """Code of a prompt's target.

    A target's name or synonym with only modality and site around it has the target's code; "vessel of the left kidney"
    is no kidney. Other prompts have the code of a kind of lesion that they mention, else that of tissue; "no liver
    lesion" mentions none. A finding of the vocabulary that is named after an organ has it as its site.

    Args:
        prompt: its text.
        known: False for a prompt unknown to the network: the code is tissue.
    """
    if not known:
        return TISSUE
    name = named_target(prompt) or _understood_target(prompt)
    target = None if name is None else find_target(name)
    code = _code(target) if target is not None and target.snomed is not None else _mentioned(prompt)
    return code if target is None or not target.finding else replace(code, site=_site(target))


def _mentioned(prompt: str) -> SegmentCode:
    """The code of a kind of lesion that a text mentions, else that of tissue."""
    text = normalise_prompt(prompt)
    for word in () if misunderstood(text) else re.findall(r"[a-z]+", text):
        for form in (word, word.removesuffix("s"), word.removesuffix("es"), re.sub("es$", "is", word)):
            if form in _ABNORMAL:
                return _ABNORMAL[form]
            kind = find_target(form)
            if kind is not None and kind.finding and kind.snomed is not None:
                return _code(kind)
    return TISSUE


def _understood_target(prompt: str) -> str | None:
    """The vocabulary's target of a name in another language or an abbreviation, without typing errors."""
    try:
        meaning, _ = PromptRules().understand(prompt)
    except PromptError:  # both sides
        return None
    return meaning.target if meaning is not None and meaning.score == 1 else None


def _site(target: TargetEntry) -> SegmentCode | None:
    """The organ that the name of a finding begins with: of "left kidney cyst" the left kidney."""
    words = target.name.split()
    for length in range(len(words) - 1, 0, -1):
        place = find_target(" ".join(words[:length]))
        if place is not None and place.snomed is not None and not place.finding:
            return _code(place)
    return None


def _code(target: TargetEntry) -> SegmentCode:
    """The vocabulary's code."""
    value, meaning = target.snomed or ("", "")
    if target.finding:
        return SegmentCode(value, meaning, side=target.side, category=_FINDING)
    return SegmentCode(value, meaning, side=target.side)
