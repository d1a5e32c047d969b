"""Which SNOMED CT code a prompt stands for, where its words leave no doubt."""

from __future__ import annotations

import re

from boltzformer_monai.data.prompts import find_target, normalise_prompt
from boltzformer_monai.io.dicom_seg_out import LESION, MASS, NEOPLASM, NODULE, TISSUE, SegmentCode

__all__ = ["segment_code"]

# What stands around the target in the prompts of data/prompts.py: "CT scan of the …", "… in abdominal CT".
_BEFORE = re.compile(r"^(ct|mri?) scan of (the )?")
_AFTER = re.compile(r" (in|on)( the)?( [\w-]+){0,4}$")
# A side after the target: "kidney on the left in CT", "kidney, left side"; not "vessel of the left kidney".
_SIDE = re.compile(
    r"^(?P<what>.+?),? (?:(?:on|at|in|to) (?:the )?)?(?P<side>left|right)(?:[ -]hand)?(?: side)?(?=,? in |,? on |$)"
)
_ABNORMAL = {
    **dict.fromkeys(
        ("tumor", "tumour", "neoplasm", "cancer", "carcinoma", "sarcoma", "glioma", "metastasis"), NEOPLASM
    ),
    **dict.fromkeys(("nodule",), NODULE),
    **dict.fromkeys(("mass",), MASS),
    **dict.fromkeys(("lesion", "cyst", "edema", "oedema", "hematoma", "haematoma", "abscess", "infarct"), LESION),
}


def segment_code(prompt: str) -> SegmentCode:
    """Return the code of the target that a prompt names.

    Only a prompt that is a target's name or synonym, with nothing but modality and site around it, gets the target's
    code: "vessel of the left kidney" is no kidney. Other prompts get the code of the kind of lesion they speak of, or
    that of tissue; the segment's label is the prompt in any case.
    """
    text = normalise_prompt(prompt)
    bare = _SIDE.sub(r"\g<side> \g<what>", _BEFORE.sub("", text))
    for candidate in dict.fromkeys((text, bare, _AFTER.sub("", bare))):
        known = find_target(candidate)
        if known is not None:
            if known.snomed is not None:
                return SegmentCode(*known.snomed, side=known.side)
            break
    for word in re.findall(r"[a-z]+", text):
        for form in (word, word.removesuffix("s"), word.removesuffix("es"), re.sub("es$", "is", word)):
            if form in _ABNORMAL:
                return _ABNORMAL[form]
    return TISSUE
