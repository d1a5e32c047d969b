"""Files among DICOM slices that are not DICOM, but by their names may be damaged slices.

Archives export slices without any suffix. There a broken first or last slice is just another unknown file; if it were
skipped, the scan would silently become shorter.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.sop_classes import DICOM_SUFFIXES

logger = logging.getLogger(__name__)

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,5}")


def lost_slices(others: Iterable[Path], slices: Iterable[Path]) -> list[Path]:
    """Return those of files that are neither DICOM nor another image, at which a slice may be lost; warn of the rest.

    These are, among slices without suffix, empty files and those named like a slice. Others without a suffix may be
    anything. A folder of slices with DICOM suffix has no suspects.
    """
    patterns: defaultdict[Path, set[str]] = defaultdict(set)
    for path in slices:
        if path.suffix.lower() not in DICOM_SUFFIXES:
            patterns[path.parent].add(_pattern(path.name))
    lost = []
    for path in others:
        if path.parent not in patterns:
            continue
        plain = not _SUFFIX.fullmatch(path.suffix)
        alike = _pattern(path.name) in patterns[path.parent] or (plain and _is_number(path.name))
        if alike or not path.stat().st_size:
            lost.append(path)
        elif plain:
            logger.warning("%s: is not DICOM and left out, though it lies among slices without suffix", path)
    return lost


def lost_slice(path: Path) -> VolumeError:
    """Return the error about a file that may be a damaged slice."""
    empty = not path.stat().st_size
    what = "is empty" if empty else "is not DICOM but named like the slices beside it"
    msg = f"{path}: {what}; if it is a slice, export it again, otherwise remove it"
    return VolumeError(msg, reason="truncated" if empty else "damaged")


def _pattern(name: str) -> str:
    """Return a name with every number in it as ``0``; numbers with dots, such as UIDs, count as one."""
    return re.sub(r"\d+(\.\d+)*", "0", name)


def _is_number(name: str) -> bool:
    """Tell whether a name is mostly digits and dots."""
    return 2 * sum(letter.isdigit() or letter == "." for letter in name) > len(name)
