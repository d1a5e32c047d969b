"""What a check of slice data sets can find: kinds of findings with their level and advice, and where they add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["KINDS", "LEVELS", "MAX_EXAMPLES", "Finding", "Findings", "Kind"]

LEVELS = ("error", "warning", "note")
MAX_EXAMPLES = 5
_AGAIN = "slice these volumes again, with --redo"


class Kind(NamedTuple):
    """A kind of finding: how bad it is, what it is, and one line of advice."""

    level: str
    title: str
    advice: str


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "unreadable": Kind("error", "The data set cannot be read", "mend what the line names, or slice again"),
        "missing-picture": Kind("error", "Pictures in the manifest are missing", _AGAIN),
        "damaged-picture": Kind("error", "Pictures cannot be opened", _AGAIN),
        "wrong-picture-size": Kind("error", "Pictures have another size than the volume says", _AGAIN),
        "wrong-picture-type": Kind("error", "Images are not 8-bit grey", _AGAIN),
        "wrong-geometry": Kind("error", "Shape, affine, plane, spacing or slice index contradict each other", _AGAIN),
        "wrong-row": Kind("error", "Rows contradict their volume in dataset.json", _AGAIN),
        "repeated-row": Kind("error", "A slice and target occur in two rows", _AGAIN),
        "wrong-area": Kind(
            "error", "area_fraction differs from the recounted pixels", "labels were changed after slicing: slice again"
        ),
        "incomplete-volume": Kind("error", "Volumes lack slices", _AGAIN),
        "patient-in-two-splits": Kind(
            "error", "Patients are in more than one split", "pin each patient to one split (--split), or draw it again"
        ),
        "same-picture-in-two-splits": Kind(
            "error",
            "Identical pictures in more than one split",
            "one scan has two ids or two patients: keep one, or give both the same --patient",
        ),
        "same-picture-of-two-patients": Kind(
            "warning",
            "Identical pictures of different patients",
            "one scan is counted as two patients: keep one, or give both the same --patient",
        ),
        "same-picture-in-two-data-sets": Kind(
            "warning", "Identical pictures in different data sets", "do not train on one and evaluate on the other"
        ),
        "same-volume": Kind("warning", "Identical volumes under two ids", "keep one of them"),
        "patient-in-two-data-sets": Kind(
            "warning",
            "The same pseudonym in different splits of two data sets",
            "if it is the same person, pin it to one split in both; if not, slice with different keys",
        ),
        "unnamed-value": Kind(
            "warning",
            "Label values without a name",
            "their pixels count as background: name them, if they mean something",
        ),
        "value-never-occurs": Kind(
            "warning", "Named label values that occur nowhere", "compare the names with the label maps: wrong numbers?"
        ),
        "mixed-label-types": Kind("warning", "A volume's labels mix 8 and 16 bit", _AGAIN),
        "shared-prompt": Kind(
            "warning", "One prompt asks for different targets", "give the targets names that can be told apart"
        ),
        "no-target": Kind(
            "warning", "Labelled volumes without any target", "make sure that they are annotated, not just empty"
        ),
        "no-rows": Kind("warning", "Volumes without a row", "they are never used: keep some negatives, or remove them"),
        "no-contrast": Kind("warning", "Volumes of one single grey value", "choose a window that shows something"),
        "hidden-target": Kind(
            "warning",
            "Nearly all of a target is black or white",
            "the window clips it: choose another --window, or look whether the label lies on it",
        ),
        "empty-split": Kind(
            "warning",
            "No rows to train on, or none to validate on",
            "see --val-fraction and --split of boltzformer slice",
        ),
        "target-not-trained": Kind(
            "warning", "Targets of val or test that train never shows", "move patients that have them to train"
        ),
        "doubtful-values": Kind(
            "warning",
            "Scans whose values or geometry slicing warned of",
            "mend the scans and slice them again, or leave them out",
        ),
        "other-plane": Kind(
            "warning",
            "Volumes sliced across the plane that they were acquired in",
            "slice them along it: --plane",
        ),
        "stray-picture": Kind("warning", "Pictures that belong to no volume", "remove them"),
        "target-not-validated": Kind(
            "note", "Targets of train that val never shows", "their Dice is unknown during training"
        ),
        "no-negatives": Kind(
            "note", "Targets without negatives in train", "absent objects are not learnt; --negatives"
        ),
        "target-left-out": Kind(
            "note",
            "Targets that a volume shows only in slices left out",
            "an effect of --every and --min-area; lower them, if the targets matter",
        ),
        "target-absent": Kind("note", "Volumes without some of their targets", "right if they were annotated so"),
        "no-label": Kind("note", "Volumes without a label", "they are not used in training and evaluation"),
        "repeated-picture": Kind("note", "Identical pictures within a volume", "was the scan resampled or padded?"),
        "flat-picture": Kind("note", "Pictures of one single grey value", "right if they show nothing but air"),
        "no-test": Kind("note", "No rows in the split test", "see --split of boltzformer slice"),
    }
)
"""All kinds; findings are listed by level, then in this order."""


@dataclass
class Finding:
    """What was found, how often, and where.

    Attributes:
        code: key of :data:`KINDS`.
        data_set: name of the data set, ``""`` for what concerns several of them.
        count: how often it was found.
        examples: at most :data:`MAX_EXAMPLES` different ones, the first found.
        more: whether there are further examples.
    """

    code: str
    data_set: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    more: bool = False

    @property
    def kind(self) -> Kind:
        """Level, title and advice."""
        return KINDS[self.code]

    @property
    def line(self) -> str:
        """The finding as one line of text."""
        where = f"{self.data_set}: " if self.data_set else ""
        head = f"{self.kind.level} [{self.code}] {where}{self.kind.title}: {self.count}"
        return f"{head} ({self.listed}) - {self.kind.advice}"

    @property
    def listed(self) -> str:
        """The examples in one text."""
        return "; ".join([*self.examples, *(["…"] if self.more else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        kind = self.kind
        return {
            "level": kind.level,
            "code": self.code,
            "data_set": self.data_set,
            "title": kind.title,
            "count": self.count,
            "examples": list(self.examples),
            "advice": kind.advice,
        }


class Findings:
    """Collects findings, one for every code and data set."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def add(self, code: str, data_set: str, example: str) -> None:
        """Count one occurrence; an example that is already there is not repeated."""
        finding = self._found.setdefault((code, data_set), Finding(code, data_set))
        finding.count += 1
        if example in finding.examples:
            return
        if len(finding.examples) < MAX_EXAMPLES:
            finding.examples.append(example)
        else:
            finding.more = True

    def sorted(self) -> list[Finding]:
        """Return all findings: by level, then in the order of :data:`KINDS`, then in the order they were met."""
        order = list(KINDS)
        return sorted(self._found.values(), key=lambda found: (LEVELS.index(found.kind.level), order.index(found.code)))
