"""Findings of a check of slice data sets: their kinds with level and advice, and how often each occurs."""

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
        "missing-picture": Kind("error", "Images of the manifest are missing", _AGAIN),
        "damaged-picture": Kind("error", "Images cannot be opened", _AGAIN),
        "wrong-picture-size": Kind("error", "Images differ in size from their volume", _AGAIN),
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
            "Identical images in more than one split",
            "one scan has two ids or two patients: keep one, or give both the same --patient",
        ),
        "same-picture-of-two-patients": Kind(
            "warning",
            "Identical images of different patients",
            "one scan is counted as two patients: keep one, or give both the same --patient",
        ),
        "same-picture-in-two-data-sets": Kind(
            "warning", "Identical images in different data sets", "do not train on one and evaluate on the other"
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
        "shared-prompt": Kind("warning", "One prompt means different targets", "give the targets distinct names"),
        "no-target": Kind(
            "warning", "Labelled volumes without any target", "make sure that they are annotated, not just empty"
        ),
        "no-rows": Kind("warning", "Volumes without a row", "they are never used: keep some negatives, or remove them"),
        "no-contrast": Kind("warning", "Volumes of a single grey value", "choose another --window"),
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
            "warning", "Targets of val or test that never occur in train", "move patients that have them to train"
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
        "stray-picture": Kind("warning", "Images that belong to no volume", "remove them"),
        "target-not-validated": Kind(
            "note", "Targets of train that never occur in val", "their Dice is unknown during training"
        ),
        "no-negatives": Kind(
            "note", "Targets without negatives in train", "absent objects are not learnt; --negatives"
        ),
        "target-left-out": Kind(
            "note",
            "Targets that occur only in slices left out",
            "an effect of --every and --min-area; lower them, if the targets matter",
        ),
        "target-absent": Kind("note", "Volumes without some of their targets", "right if they were annotated so"),
        "no-label": Kind("note", "Volumes without a label", "they are not used in training and evaluation"),
        "repeated-picture": Kind("note", "Identical images within a volume", "was the scan resampled or padded?"),
        "flat-picture": Kind("note", "Images of a single grey value", "right if they contain only air"),
        "no-test": Kind("note", "No rows in the split test", "see --split of boltzformer slice"),
    }
)
"""All kinds; findings are listed by level, then in this order."""


@dataclass
class Finding:
    """One kind of finding in one data set.

    Attributes:
        code: key of :data:`KINDS`.
        data_set: its name; ``""`` for several.
        count: number of occurrences.
        examples: the first :data:`MAX_EXAMPLES` different ones.
        more: whether there are more examples.
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
        """The examples as one text."""
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
        """Count an occurrence; a repeated example is listed once."""
        finding = self._found.setdefault((code, data_set), Finding(code, data_set))
        finding.count += 1
        if example in finding.examples:
            return
        if len(finding.examples) < MAX_EXAMPLES:
            finding.examples.append(example)
        else:
            finding.more = True

    def sorted(self) -> list[Finding]:
        """Findings by level, then in the order of :data:`KINDS`, then of occurrence."""
        order = list(KINDS)
        return sorted(self._found.values(), key=lambda found: (LEVELS.index(found.kind.level), order.index(found.code)))
