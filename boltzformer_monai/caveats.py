"""What a user must know of a result that was made all the same: said once, and carried with the result.

A caveat is found where its cause is seen (a reader, the choice of windows, the check of prompts) and travels with the
scan and its result: log, manifest, preview, page, DICOM SEG, ``report.json``. What cannot be trusted at all is an
error instead; see :mod:`boltzformer_monai.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boltzformer_monai.errors import ConfigError

__all__ = ["MILD", "REPAIRS", "WARNINGS", "Caveat"]

WARNINGS: Mapping[str, str] = {
    "crossing contours": "contours that overlap in part may be two parts of a region or a hole drawn carelessly",
    "cancelling contours": "the standard combines them by exclusive or, so what is drawn twice is gone",
    "slices without contours": "a region counts as absent between them, which is right only where its parts lie apart",
    "padding value in tissue": "the header calls a value padding that lies among measured ones, away from the edge",
    "not HU": "a CT whose voxels are not in Hounsfield units is shown through the wrong window",
    "no size": "an image without a scale is measured in pixels, which are called millimetres in its results",
    "acquisition plane": "slices across the acquired ones have few, elongated pixels, unlike the training's",
    "unknown prompt": "the network was never shown this name; what it paints for it may be anything",
    "words not understood": "no training teaches negations, sizes or counts: they change the mask by chance",
    "looked closer": "the network was trained on whole slices; a region that is shown larger is new to it",
    "only at the point": "the other components of the masks were dropped: they are no complete findings",
    "size limit": "the network finds objects of any size: the limit is for the list of lesions, the mask holds all",
    "no vocabulary": "the model does not state what it was taught, so whether it understands a prompt is not known",
    "another modality": "the network was trained on other modalities, and its masks mean little on this one",
    "another protocol": "the network was trained on slices that are cut, scaled and stacked in another way",
    "another plane": "the network was trained on slices of another plane; these are new to it",
    "assumed modality": "the file does not state it, so it is taken for the only one that the network was trained on",
    "unstated patient": "lesions of two patients would be matched by chance; DICOM scans with a PatientID are checked",
    "unstated modality": "intensities are Hounsfield units in a CT alone, and the file does not say that it is one",
    "no thresholds": "the presence head was never calibrated, so masks are kept on slices without the object too",
    "not instances": "objects that should be told apart share one label value",
    "laterality": "the training mirrored slices without renaming left and right: the painted side may be wrong",
    "suppressed": "where masks overlap the protocol keeps the most certain alone: a lesion may give way to its organ",
    "gantry tilt": "slices stacked at an angle keep their place; some software opens no NIfTI file of a sheared grid",
}
"""Kinds of caveats about what is kept as it is → why it matters; in ``docs/reference/refusals.md``."""

REPAIRS: Mapping[str, str] = {
    "understood prompt": "every word is part of one target's name, its side or a request; a side is never guessed, and "
    "a typing error is mended only where no other name is about as near",
    "padding": "what was never measured becomes the darkest measured value; windows and interpolation do not meet it",
    "inverted display": "Hounsfield units do not depend on the display; values without units are taken as viewers show "
    "them",
    "repeated contours": "a contour that was stored twice means the same as one",
    "grid": "an annotation a small share of a voxel off its scan's grid was drawn on that scan; nothing is resampled",
    "right angles": "axes off right angles by no more than rounded directions are; no voxel's centre leaves its voxel",
}
"""Kinds of caveats about what was mended on reading → why that is safe; in ``docs/reference/refusals.md``."""

MILD = frozenset(
    {
        "looked closer",
        "only at the point",
        "size limit",
        "no vocabulary",
        "another plane",
        "another protocol",
        "assumed modality",
        "unstated modality",
        "unstated patient",
        "no thresholds",
        "no size",
        "gantry tilt",
    }
)
"""Warnings that say how a result was made and do not by themselves put it in doubt: no exit code of their own."""


@dataclass(frozen=True)
class Caveat:
    """One thing to know of a scan or its result.

    Attributes:
        kind: a key of :data:`WARNINGS` or :data:`REPAIRS`.
        text: one line: what, and what to do about it. It names no file, patient or UID, because it goes into results.
        prompt: the prompt that it is about; None where it is about the whole scan.

    Raises:
        ConfigError: the kind is not a known one.
    """

    kind: str
    text: str
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in WARNINGS and self.kind not in REPAIRS:
            raise ConfigError(f"unknown kind of caveat {self.kind!r}; add it to boltzformer_monai/caveats.py")

    @property
    def repaired(self) -> bool:
        """Whether the cause was mended, so that the result is not in doubt."""
        return self.kind in REPAIRS

    @property
    def doubtful(self) -> bool:
        """Whether the result is in doubt: no repair, and none of the :data:`MILD` warnings."""
        return not self.repaired and self.kind not in MILD

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: kind, text, whether it puts the result in doubt, and the prompt where there is one."""
        about = {} if self.prompt is None else {"prompt": self.prompt}
        return {"kind": self.kind, "text": self.text, "in_doubt": self.doubtful, **about}

    @staticmethod
    def of(content: Mapping[str, Any]) -> Caveat:
        """Undo :meth:`as_dict`."""
        return Caveat(content["kind"], content["text"], content.get("prompt"))
