from __future__ import annotations

import pytest

from boltzformer_monai.inferers.prompt_codes import segment_code


@pytest.mark.parametrize(
    ("prompt", "meaning", "side"),
    [
        ("left kidney in abdominal CT", "Kidney", "left"),
        ("Kidney_Right", "Kidney", "right"),
        ("CT scan of the spleen", "Spleen", None),
        ("pancreas", "Pancreas", None),
        ("kidney on the left", "Kidney", "left"),
        ("CT scan of the kidney on the right side", "Kidney", "right"),
        ("kidney, left side, in abdominal CT", "Kidney", "left"),
        ("kidney in the left in CT", "Kidney", "left"),
        ("nodule in the left lung", "Nodule", None),
        ("left kidney on the right", "Tissue", None),  # both cannot be
        ("tumor in liver CT", "Neoplasm", None),
        ("lung nodules", "Nodule", None),
        ("lesion in the liver", "Lesion", None),
        ("metastases", "Metastasis", None),
        ("liver with cysts", "Cyst", None),
        ("vessel of the left kidney", "Tissue", None),  # not a kidney
        ("portal vein and splenic vein", "Tissue", None),  # known, but without a code
        ("printsipiaalselt midagi", "Tissue", None),
        ("no liver lesion", "Tissue", None),  # no lesion is meant
        ("liver without metastases", "Tissue", None),
        ("left kidney in a jar", "Tissue", None),
        ("left kidneys", "Kidney", "left"),
        ("linke Niere", "Kidney", "left"),
        ("riñón derecho", "Kidney", "right"),
        ("linke Niere rechts", "Tissue", None),
        ("Lymphknoten", "Lymph Node", None),
        ("adrenal mass", "Mass", None),
        ("left kidney cyst", "Cyst", None),
        ("left kidney stone", "Renal stone", "left"),
    ],
)
def test_only_what_is_sure_gets_a_code_of_its_own(prompt: str, meaning: str, side: str | None) -> None:
    code = segment_code(prompt)
    assert (code.meaning, code.side) == (meaning, side)


def test_what_the_network_does_not_know_has_no_code() -> None:
    assert segment_code("nodule in the left lung", known=False).meaning == "Tissue"


def test_findings_are_no_anatomy() -> None:
    assert segment_code("kidney stone").category == segment_code("liver lesion").category
    assert segment_code("kidney").category != segment_code("kidney stone").category


@pytest.mark.parametrize(
    ("prompt", "meaning", "side"),
    [
        ("left kidney cyst", "Kidney", "left"),
        ("hepatic lesions in CT", "Liver", None),
        ("linke Nierenzyste", "Kidney", "left"),
        ("right adrenal mass", "Adrenal gland", "right"),
        ("lung nodule", "Lung", None),
        ("brain metastases", "Brain", None),
    ],
)
def test_a_finding_named_after_an_organ_has_it_as_its_site(prompt: str, meaning: str, side: str | None) -> None:
    site = segment_code(prompt).site
    assert site is not None
    assert (site.meaning, site.side) == (meaning, side)


def test_other_prompts_have_no_site() -> None:
    for prompt in ("left kidney", "metastasis", "nodule in the left lung", "no liver lesion", "left pleural effusion"):
        assert segment_code(prompt).site is None
