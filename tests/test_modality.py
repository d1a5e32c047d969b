"""What texts and headers say of the modality: CT, MR, nothing, or another, which nobody may call CT."""

from __future__ import annotations

import pytest

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.modality import (
    modality_of_channel,
    modality_of_header,
    names_another_modality,
    parse_modality,
    stated_modality,
)

CT = (
    "CT", "ct ", "CTA", "CBCT", "CT scan", "computed tomography", "Computed_Tomography", "cone-beam CT",
    "CT angiography", "contrast-enhanced CT", "CECT", "NCCT", "HRCT", "CTPA", "low-dose CT", "X-ray CT",
    "CT (portal venous)", "cone beam CT", "photon-counting CT", "PCCT", "MDCT", "MSCT", "DECT", "dual-energy CT",
    "4DCT", "4D-CT", "CT, pathology proven",
)  # fmt: skip
MR = (
    "MR", "MRI", "mri", "T1", "T2w", "T1-weighted", "t1gd", "T1ce", "t2f", "FLAIR", "T2-FLAIR", "T2*", "ADC", "DWI",
    "MRA", "MRI-T1", "fMRI", "cineMRI", "magnetic resonance imaging", "MPRAGE", "bSSFP", "PD", "proton density",
    "MRI (pathology confirmed)",
)  # fmt: skip
ANOTHER = (
    "PET", "PT", "PET/CT", "PET-CT", "PET-MR", "FDG-PET", "positron emission tomography", "SPECT", "SPECT/CT", "NM",
    "single photon emission computed tomography", "US", "ultrasound", "IVUS", "X-ray", "Xray", "x ray", "CR", "DX",
    "MG", "mammography", "XA", "OCT", "optical coherence tomography", "fundus photography", "endoscopy",
    "histopathology",
)  # fmt: skip
UNCLEAR = ("CT and MR", "MR-CT", "image", "channel_0", "angiography", "T12", "contrast", "OT", "tomography")


@pytest.mark.parametrize(("texts", "modality"), [(CT, "CT"), (MR, "MR"), (("", " ", "unknown", "-"), "unknown")])
def test_words_for_ct_mr_and_nothing(texts: tuple[str, ...], modality: str) -> None:
    assert {text: parse_modality(text) for text in texts} == dict.fromkeys(texts, modality)
    assert not any(names_another_modality(text) for text in texts)


def test_another_modality_is_refused_by_name() -> None:
    for text in ANOTHER:
        assert names_another_modality(text), text
        with pytest.raises(ConfigError, match="another than CT and MR") as caught:
            parse_modality(text)
        assert text in str(caught.value)


@pytest.mark.parametrize("text", UNCLEAR)
def test_what_is_not_understood_is_no_modality(text: str) -> None:
    assert not names_another_modality(text)
    with pytest.raises(ConfigError, match="unknown modality"):
        parse_modality(text)


def test_a_channel_means_ct_or_mr_or_nothing_but_no_other_one() -> None:
    said = {"CTA": "CT", "T2": "MR", "zscore": "", "": "", "MR-CT": "", "unknown": ""}
    assert {name: modality_of_channel(name) for name in said} == said
    with pytest.raises(ConfigError, match="'PET' is another than CT and MR"):
        modality_of_channel("PET")


def test_an_option_says_one() -> None:
    assert stated_modality("cta") == "CT"
    with pytest.raises(ConfigError, match="use CT or MR"):
        stated_modality("")


@pytest.mark.parametrize(
    ("text", "sop_class", "stated"),
    [
        ("CT", "2", "CT"), ("CTA", "2", "CT"), ("ct", "7", "CT"), ("MR", "4", "MR"), ("pt", "128", "PT"),
        ("OT", "7", "OT"), ("", "2.1", "CT"), ("", "4.1", "MR"), ("", "128", "PT"), ("", "6.1", "US"),
        ("", "20", "NM"), ("", "7", ""),
    ],
)  # fmt: skip
def test_headers(text: str, sop_class: str, stated: str) -> None:
    assert modality_of_header(text, f"1.2.840.10008.5.1.4.1.1.{sop_class}") == stated


def test_another_modality_may_be_stated_of_stored_grey_values_alone() -> None:
    for text in ("PET", "US", "ultrasound", "other"):
        assert stated_modality(text, stored_grey=True) == "other"
        with pytest.raises(ConfigError, match="use CT or MR"):
            stated_modality(text)
    assert stated_modality("CTA", stored_grey=True) == "CT"
    with pytest.raises(ConfigError, match="use CT or MR"):
        stated_modality("nonsense", stored_grey=True)
