"""Every file under the input has a place in the account: it is sliced, refused with its reason, or left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from boltzformer_monai.io.folder_tree import Tree, read_tree
from boltzformer_monai.io.scan_list import find_left_out
from boltzformer_monai.slicing.biomedparse_names import MARKER_FILE
from boltzformer_monai.slicing.cases import Case, used_files

# They say what the files beside and below them mean.
_DESCRIPTIONS = ("labels.json", "dataset.json", MARKER_FILE)


@dataclass(frozen=True)
class Account:
    """What became of a folder of scans.

    Attributes:
        cases: the scans, and the folders that cannot be opened as scans that are refused.
        top: the folder; None where the input is a file.
        left_out: kind, in words that name no file → files that belong to no scan.
    """

    cases: list[Case]
    top: Path | None = None
    left_out: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Return kind → number of files."""
        return {kind: len(paths) for kind, paths in self.left_out.items()}

    def summary(self) -> str:
        """Return the numbers as words: ``"3 files left out (image files: 2, other files: 1)"``; "" for none."""
        counts = self.counts()
        number = sum(counts.values())
        kinds = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
        return f"{number} file{'s' * (number != 1)} left out ({kinds})" if number else ""


def take_account(top: Path, cases: Sequence[Case], *, described: Iterable[Path] = ()) -> Account:
    """Compare what lies in a folder with the cases that a recipe lists of it, and further files that were read.

    Raises:
        VolumeError: the folder cannot be opened.
    """
    tree = read_tree(top)
    cases = [*cases, *(_closed(top, place, why) for place, why in tree.closed)]
    used = [*described, *(path for case in cases for path in used_files(case))]
    return Account(cases, top, find_left_out(tree, [*used, *_descriptions(tree, used)]))


def _closed(top: Path, place: Path, why: str) -> Case:
    name = str(place.relative_to(top))
    problem = f"{place}: cannot be opened ({why}); allow it, or move it elsewhere: scans may lie in it"
    return Case(name, name, place, None, "", problem=problem, reason="missing")


def _descriptions(tree: Tree, used: Iterable[Path]) -> list[Path]:
    """Return the descriptions in or above whose folder something was used."""
    above = {parent for place in {path.parent for path in used} for parent in (place, *place.parents)}
    return [place / name for place, names in tree.folders for name in names if name in _DESCRIPTIONS and place in above]
