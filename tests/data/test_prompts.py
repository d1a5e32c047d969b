from __future__ import annotations

import json
from collections import Counter
from importlib import resources

import pytest

from boltzformer_monai.data.prompts import (
    checked_prompts,
    find_target,
    normalise_prompt,
    normalise_site,
    normalise_target,
    prompts_for,
)
from boltzformer_monai.errors import ConfigError, PromptError
from tests.needs import need_module

VOCABULARY = json.loads(
    resources.files("boltzformer_monai.data").joinpath("vocabulary.json").read_text(encoding="utf-8")
)

AMOS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "postcava",
    "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip
PHANTOM = (
    "liver", "spleen", "left kidney", "right kidney", "aorta", "liver lesion", "left lung", "right lung", "heart",
    "lung nodule", "spine",
)  # fmt: skip
DECATHLON = (
    "left atrium", "liver tumor", "anterior hippocampus", "posterior hippocampus", "prostate peripheral zone",
    "lung cancer", "pancreas cancer", "hepatic vessel", "colon cancer primaries", "edema",
)  # fmt: skip
TOTAL = (
    "kidney_right", "adrenal_gland_left", "lung_upper_lobe_left", "lung_middle_lobe_right", "small_bowel",
    "vertebrae_L2", "vertebrae_T12", "rib_left_7", "inferior_vena_cava", "portal_vein_and_splenic_vein",
    "autochthon_left", "iliopsoas_right", "costal_cartilages", "urinary_bladder", "gluteus_maximus_left",
    "clavicula_right",
    "iliac_vena_left", "heart_atrium_left", "spinal_cord", "femur_left", "hip_right", "brachiocephalic_vein_left",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("kidney right", "right kidney"),
        ("Kidney_Right", "right kidney"),
        ("kidney, right", "right kidney"),
        ("Kidney (left)", "left kidney"),
        ("left-sided kidney", "left kidney"),
        ("the  Left   Kidney ", "left kidney"),
        ("both kidneys", "kidney"),
        ("postcava", "inferior vena cava"),
        ("IVC", "inferior vena cava"),
        ("oesophagus", "esophagus"),
        ("lung tumour", "lung tumor"),
        ("Lung cancer", "lung tumor"),
        ("lung_upper_lobe_left", "left upper lung lobe"),
        ("vertebrae L2", "l2 vertebra"),
        ("rib left 7", "left rib 7"),
        ("left 7th rib", "left rib 7"),
        ("suprarenal gland right", "right adrenal gland"),
        ("Anterior", "anterior"),
        ("my structure left", "left my structure"),
        ("tumor of the left lung", "tumor of the left lung"),
        ("left and right thing", "left and right thing"),
        ("left", "left"),
        ("", ""),
    ],
)
def test_normalise_target(name: str, canonical: str):
    assert normalise_target(name) == canonical


@pytest.mark.parametrize("name", [*AMOS, *PHANTOM, *DECATHLON, *TOTAL])
def test_common_targets_are_known_and_normalising_twice_changes_nothing(name: str):
    canonical = normalise_target(name)
    assert find_target(name) is not None
    assert normalise_target(canonical) == canonical


def test_left_and_right_never_meet():
    for base, entry in VOCABULARY["targets"].items():
        if entry.get("sides"):
            names = [base, *entry.get("synonyms", []), *entry.get("spellings", [])]
            for side in ("left", "right"):
                for name in names:
                    if not {"left", "right", "both", "all"} & set(name.split()):
                        assert normalise_target(f"{name} {side}") == f"{side} {base}"
                        assert normalise_target(f"{side} {name}") == f"{side} {base}"


def test_every_name_in_the_vocabulary_leads_to_one_target():
    owners = Counter(
        name
        for base, entry in VOCABULARY["targets"].items()
        for name in {base, *entry.get("synonyms", []), *entry.get("spellings", [])}
    )
    assert [name for name, count in owners.items() if count > 1] == []
    for base, entry in VOCABULARY["targets"].items():
        for name in (base, *entry.get("synonyms", []), *entry.get("spellings", [])):
            assert normalise_target(name) == base
        for part in entry.get("composite_of", []):
            assert find_target(part) is not None


def test_codes_are_those_of_dicom():
    pytest.importorskip("pydicom", minversion="3.0", reason="the tables of an older pydicom lack newer codes")
    concepts = need_module("pydicom.sr._concepts_dict").concepts["SCT"]
    codes = {code for meanings in concepts.values() for code in meanings}
    used = [entry["snomed"] for entry in VOCABULARY["targets"].values() if entry["snomed"]]
    assert len(used) > 60
    assert [pair for pair in used if pair[0] not in codes] == []
    assert find_target("right kidney").snomed == ("64033007", "Kidney")


def test_composites_and_sides():
    kidney = find_target("kidneys")
    assert kidney.composite_of == ("left kidney", "right kidney")
    left = find_target("kidney left")
    assert (left.name, left.base, left.side, left.composite_of) == ("left kidney", "kidney", "left", ())
    assert find_target("flux capacitor") is None


def test_prompts_of_the_right_kidney():
    assert prompts_for("kidney_right", site="abdomen", modality="CT") == (
        "right kidney in abdominal CT",
        "right kidney in abdomen CT",
        "right kidney in CT",
        "right kidney",
        "CT scan of the right kidney",
    )


@pytest.mark.parametrize("target", [*AMOS, *PHANTOM, *DECATHLON, *TOTAL, "flux capacitor"])
@pytest.mark.parametrize(("site", "modality"), [("abdomen", "CT"), ("chest", "MRI")])
def test_prompts_are_several_distinct_and_about_their_target(target: str, site: str, modality: str):
    prompts = prompts_for(target, site=site, modality=modality)
    assert 4 <= len(prompts) <= 8
    assert len({normalise_prompt(prompt) for prompt in prompts}) == len(prompts)
    assert prompts[0].startswith(normalise_target(target) + " in ")
    assert "{" not in "".join(prompts)
    side = set(normalise_target(target).split()) & {"left", "right"}
    for prompt in prompts:
        assert side <= set(prompt.split())
        assert ("MRI" if modality == "MRI" else "CT") in prompt or " in " not in prompt or "in the" in prompt


def test_the_papers_prompts_are_among_them():
    assert "right kidney in abdominal MRI" in prompts_for("right kidney", site="abdomen", modality="MR")
    assert "neoplasm in lung CT" in prompts_for("lung tumor", site="chest", modality="CT")
    assert "postcava in abdominal CT" in prompts_for("postcava", site="abdomen", modality="CT")


def test_unknown_site_or_modality_is_left_out():
    assert prompts_for("liver", site="", modality="CT") == ("liver in CT", "liver", "CT scan of the liver")
    assert prompts_for("liver", site="abdomen", modality="unknown") == ("liver", "liver in the abdomen")
    assert prompts_for("liver", site="chest and abdomen", modality="CT")[0] == "liver in chest and abdominal CT"


def test_mistakes_in_prompts():
    with pytest.raises(PromptError, match="without a name"):
        prompts_for(" ", site="abdomen", modality="CT")
    with pytest.raises(ConfigError, match="modality"):
        prompts_for("liver", site="abdomen", modality="photograph")


@pytest.mark.parametrize(
    ("site", "usual"),
    [("Thorax", "chest"), ("abdominal", "abdomen"), (" Chest  And Abdomen ", "chest and abdomen"), ("chest/abdomen",
     "chest and abdomen"), ("left toe", "left toe"), ("", "")],
)  # fmt: skip
def test_normalise_site(site: str, usual: str):
    assert normalise_site(site) == usual


def test_normalise_prompt():
    assert normalise_prompt("  Right\tKidney \n in  CT ") == "right kidney in ct"
    with pytest.raises(PromptError, match="empty"):
        normalise_prompt(" \n")


def test_prompts_are_checked_and_stay_as_they_are() -> None:
    assert checked_prompts([" Left  kidney", "liver"]) == [" Left  kidney", "liver"]
    for wrong in ([], "liver", ["liver", " LIVER "], [" "], ["liv\udcffer"], [3]):
        with pytest.raises(PromptError):
            checked_prompts(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "letter", ["\n", "\t", "\0", "\x1b", "\x7f", "\x85", "\u202e", "\u2066", "\u200b", "\u2028", "\ufeff"]
)
def test_control_characters_are_refused(letter: str) -> None:
    for prompt in (f"left{letter}kidney", f"{letter}left kidney", f"left kidney{letter}"):
        with pytest.raises(PromptError, match=f"control character U\\+{ord(letter):04X}"):
            checked_prompts(["liver", prompt])


def test_letters_of_all_scripts_are_prompts() -> None:
    prompts = ["foie (lésion)", "肝臓", "יהלום", "كبد", "می\u200cخواهم", "क्\u200dष", "10 µm ± 2 – „Leber“"]
    assert checked_prompts(prompts) == prompts
