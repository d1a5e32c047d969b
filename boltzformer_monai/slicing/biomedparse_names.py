"""File names of the BiomedParse layout, which carry everything that is known of an image.

``NAME_MODALITY_SITE.png`` is an image, ``NAME_MODALITY_SITE_TARGET.png`` one of its masks; spaces are ``+``, NAME may
hold ``_``, the other parts may not. What a name cannot hold (``/``, ``_``, ``.``, …) is written ``%2F`` as in a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from boltzformer_monai.modality import names_another_modality, parse_modality

MARKER_FILE = "boltzformer-export.json"
"""Beside the folders of our exports: ``{"format", "version", "name", "patients": {NAME without number: patient}}``."""
MARKER_FORMAT = "boltzformer-biomedparse"

NO_SITE = "unknown"
# The part that is a modality, told from a site; sequences stand alone in some data sets ("T1"), after "MRI-" in most.
_MODALITY = re.compile(r"(?i)(CT|CTA|CBCT|MRI?|MRA)([-+ ].*)?|(T1|T2|FLAIR|ADC|DWI|PD)([-*]?[a-z]*)")
_UNSAFE = re.compile(r"[%+/\\_.:*?\"<>|\x00-\x1f\x7f]")
_SPOKEN = {"CT": "CT", "MR": "MRI"}


@dataclass(frozen=True)
class PictureName:
    """The parts of an image's name: its own, ``"CT"`` or ``"MR"``, and the body site, ``""`` when unknown."""

    name: str
    modality: str
    site: str

    @property
    def stem(self) -> str:
        """The name of its file without the suffix."""
        return f"{self.name}_{_SPOKEN[self.modality]}_{_safe_words(self.site or NO_SITE)}"


def parse_picture_name(stem: str) -> PictureName | None:
    """Read ``NAME_MODALITY_SITE``, or ``NAME_SITE_MODALITY`` as older data sets have it; None for neither CT nor MR."""
    parts = stem.rsplit("_", 2)
    if len(parts) != 3 or not parts[0]:
        return None
    for token, site in ((parts[1], parts[2]), (parts[2], parts[1])):
        if _MODALITY.fullmatch(token) and not names_another_modality(token):  # such as CT-PET
            place = parse_words(site)
            return PictureName(parts[0], parse_modality(token), "" if place == NO_SITE else place)
    return None


def mask_name(stem: str, target: str) -> str:
    """Return the file name of an image's mask."""
    return f"{stem}_{_safe_words(target)}.png"


def parse_words(text: str) -> str:
    """Undo what was done to the words of a site or target."""
    return unquote(text.replace("+", " ")).strip()


def safe_name(text: str) -> str:
    """Return text that can be the NAME of an image; other than in a target, ``_`` may stay."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] == "_" else f"%{ord(found[0]):02X}", text)


def _safe_words(text: str) -> str:
    words = " ".join(text.split())
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", words).replace(" ", "+")
