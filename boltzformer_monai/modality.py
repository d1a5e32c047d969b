"""Which modality a text names: a DICOM header, the description of a data set, an option.

Three answers are different things: CT or MR; none stated, which a user may settle; and another one, which nobody may
call CT or MR, and which is read only where the grey values are stored already (``OTHER``).
"""

from __future__ import annotations

import re

from boltzformer_monai.errors import ConfigError, VolumeError

__all__ = [
    "OTHER",
    "SPOKEN_MODALITY",
    "modality_of_channel",
    "modality_of_header",
    "names_another_modality",
    "parse_modality",
    "settled_modality",
    "stated_modality",
    "stored_modality",
]

OTHER = "other"
"""Neither CT nor MR: such scans have no grey scale here and are read only where their grey values are 8-bit already."""

_WORD = re.compile(r"[a-z0-9]+")
_CT = frozenset(["ct", "cta", "cbct", "ctpa", "ctac", "cect", "ncct", "hrct", "ldct", "mdct", "msct", "dect", "3dct",
                 "4dct", "pcct", "pcdct", "computed", "computerized", "computerised"])  # fmt: skip
_MR = frozenset(["mr", "mra", "mrs", "magnetic", "flair", "dwi", "dti", "adc", "swi", "stir", "mprage", "tof", "pd",
                 "pdw", "ssfp", "bssfp", "dixon", "ciss", "fiesta", "lge", "proton"])  # fmt: skip
# Sequences such as T1, T1w, T2f and t1gd; kinds of MRI such as fMRI and cineMRI.
_MR_FORM = re.compile(r"t[12](?![0-9])[a-z0-9]*|[a-z]*mri")
# What is said of a scan, as a pattern of lower-case words; "t1" alone is a vertebra too, "computed" no name.
SPOKEN_MODALITY = (
    r"(?:comput(?:ed|eri[sz]ed) tomography|magnetic resonance(?: imaging)?|"
    r"t[12](?: weighted|(?= mri?\b)|[a-z][a-z0-9]*)|[a-z]*mri|"
    + "|".join(sorted((_CT | _MR) - {"computed", "computerized", "computerised", "magnetic", "proton"}))
    + ")"
)
_ANOTHER = frozenset(["pet", "pt", "fdg", "positron", "spect", "emission", "scintigraphy", "nm", "us",
                      "ivus", "ultrasound", "ultrasonography", "sonography", "echocardiography", "cr", "dx", "dr", "xr",
                      "rf", "xa", "mg", "mammography", "mammogram", "tomosynthesis", "fluoroscopy", "radiograph",
                      "radiography", "oct", "coherence", "optical", "fundus", "endoscopy", "colonoscopy", "dermoscopy",
                      "histology", "histopathology", "microscopy", "photography", "thermography",
                      "infrared"])  # fmt: skip
_XRAY = re.compile(r"(?i)\bx[ -]?rays?\b")
# SOP classes (after 1.2.840.10008.5.1.4.1.1.) that hold one modality only, for headers without Modality.
_OF_CLASS = {
    **dict.fromkeys(("2", "2.1", "2.2"), "CT"), **dict.fromkeys(("4", "4.1", "4.3", "4.4"), "MR"),
    **dict.fromkeys(("128", "128.1", "130"), "PT"), **dict.fromkeys(("3.1", "6.1", "6.2"), "US"), "20": "NM",
    **dict.fromkeys(("12.1", "12.1.1", "13.1.1"), "XA"), **dict.fromkeys(("12.2", "12.2.1"), "RF"), "1": "CR",
    "1.1": "DX", **dict.fromkeys(("1.2", "13.1.3"), "MG"),
}  # fmt: skip


def parse_modality(text: str) -> str:
    """Return ``"CT"`` (also for CTA, CBCT, …), ``"MR"`` (also for MRI, T1w, FLAIR, …), or ``"unknown"`` for no words.

    Raises:
        ConfigError: it names another modality, several, or none that is known.
    """
    found = _named(text)
    if found == "another":
        msg = (
            f"modality {text!r} is another than CT and MR, which this package has no grey scale for; use CT or MR scans"
        )
        raise ConfigError(msg)
    if not found:
        raise ConfigError(f"unknown modality {text[:60]!r}; use CT or MR")
    return found


def stated_modality(text: str, *, stored_grey: bool = False) -> str:
    """Return ``"CT"`` or ``"MR"`` for what a user states; ``"other"`` for another one of stored grey values.

    Raises:
        ConfigError: it is neither, or nothing.
    """
    if stored_grey and (text.strip().lower() == OTHER or names_another_modality(text)):
        return OTHER
    found = parse_modality(text)
    if found == "unknown":
        raise ConfigError(f"unknown modality {text[:60]!r}; use CT or MR")
    return found


def stored_modality(text: str) -> str:
    """Return what a data set or a model states: ``"CT"``, ``"MR"``, ``"other"`` or ``"unknown"``.

    Raises:
        ConfigError: as :func:`parse_modality`.
    """
    return OTHER if text == OTHER else parse_modality(text)


def names_another_modality(text: str) -> bool:
    """Tell whether a text names a modality that is neither CT nor MR, which no option may overrule."""
    return _named(text) == "another"


def modality_of_channel(name: str) -> str:
    """Return ``"CT"`` or ``"MR"`` for what a data set calls a channel, ``""`` for a name that means neither.

    Raises:
        ConfigError: it names another modality.
    """
    found = _named(name)
    return parse_modality(name) if found == "another" else found.replace("unknown", "")


def modality_of_header(text: str, sop_class: str) -> str:
    """Return what a DICOM header states: ``"CT"``, ``"MR"``, another code in capitals, or ``""`` for nothing.

    Args:
        text: Modality.
        sop_class: SOPClassUID, which says it where Modality is empty.
    """
    text = text.strip()
    if not text:
        return _OF_CLASS.get(sop_class.removeprefix("1.2.840.10008.5.1.4.1.1."), "")
    found = _named(text)
    return found if found in ("CT", "MR") else text.upper()


def settled_modality(stated: str, wanted: str | None, *, source: str) -> str:
    """Return the modality of a scan: what its file or data set states, else what the user says, else ``"unknown"``.

    Args:
        stated: what a header or a description states, see :func:`modality_of_header`; ``""`` for nothing.
        wanted: ``"CT"`` or ``"MR"`` from the user, or None.
        source: begins the messages: ``"scan.mha: its header says"``.

    Raises:
        VolumeError: what is stated is neither CT nor MR, or not what the user says.
    """
    if not stated:
        return wanted or "unknown"
    if stated not in ("CT", "MR"):
        raise VolumeError(f"{source} {stated}, which is neither CT nor MR; pass a scan that is", reason="modality")
    if wanted not in (None, stated):
        raise VolumeError(f"{source} {stated}, but {wanted} was asked for; leave the modality out", reason="modality")
    return stated


def _named(text: str) -> str:
    """Return CT, MR, unknown (nothing stated), another, or "" for what is not understood or names CT and MR."""
    words = _WORD.findall(text.lower())
    if not words or words == ["unknown"]:
        return "unknown"
    ct = any(word in _CT for word in words)
    mr = any(word in _MR or _MR_FORM.fullmatch(word) for word in words)
    if any(word in _ANOTHER for word in words) or (_XRAY.search(text) and not ct):  # X-ray CT is CT
        return "another"
    return "" if ct == mr else "CT" if ct else "MR"
