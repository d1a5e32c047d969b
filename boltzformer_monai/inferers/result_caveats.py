"""Caveats of a result: collected before the work, and logged once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from boltzformer_monai.caveats import MILD, Caveat
from boltzformer_monai.data.plausibility import acquisition_plane, scan_caveats
from boltzformer_monai.data.prompt_check import Reading
from boltzformer_monai.data.windows import StoredGrey
from boltzformer_monai.inferers.windows import PromptWindows
from boltzformer_monai.io.volume import Volume

__all__ = [
    "SERIES",
    "SERIES_IN_DOUBT",
    "about",
    "collect_caveats",
    "in_doubt",
    "in_order",
    "log_caveats",
    "remark",
    "seg_series",
]

_log = logging.getLogger(__name__)

SERIES = "Segmentation by text prompts"
SERIES_IN_DOUBT = "Segmentation by text prompts, IN DOUBT: see its segments"
"""SeriesDescription of a DICOM SEG: at most 64 letters."""

_OF_THE_RUN = (MILD - {"gantry tilt"}) | {
    "understood prompt",
    "unknown prompt",
    "words not understood",
    "another modality",
    "laterality",
}


def collect_caveats(
    volume: Volume,
    *,
    stated: str,
    modality: str,
    planes: Sequence[str],
    windows: PromptWindows,
    readings: Sequence[Reading],
    known: Sequence[Caveat] = (),
) -> tuple[Caveat, ...]:
    """All different caveats of a result, those that put it in doubt first.

    Args:
        volume: the scan, with its reader's caveats.
        stated: modality of the scan or user, or ``"unknown"``.
        modality: assumed for the scan.
        planes: to slice along.
        windows: of the trained targets.
        readings: of the prompts.
        known: caveats that do not depend on the scan.
    """
    found = [
        *known,
        *windows.prompt_caveats(readings),
        *windows.modality_caveats(stated, modality, readings),
        *volume.caveats,
        # Averaged with the acquired plane, others are what was asked for.
        *scan_caveats(
            volume,
            modality="" if isinstance(windows.fixed, StoredGrey) else modality,  # grey values are no HU
            planes=() if acquisition_plane(volume) in planes else planes,
        ),
    ]
    return in_order(found)


def in_order(caveats: Iterable[Caveat]) -> tuple[Caveat, ...]:
    """Those that put a result in doubt first, then notes, then repairs; without repetition."""
    return tuple(sorted(dict.fromkeys(caveats), key=lambda each: (each.repaired, not each.doubtful)))


def about(caveats: Iterable[Caveat], prompt: str) -> list[Caveat]:
    """Caveats of one prompt."""
    return [each for each in caveats if each.prompt == prompt]


def in_doubt(caveats: Iterable[Caveat]) -> bool:
    """Whether a caveat puts the result in doubt."""
    return any(each.doubtful for each in caveats)


def seg_series(caveats: Iterable[Caveat]) -> str:
    """SeriesDescription of a DICOM SEG."""
    return SERIES_IN_DOUBT if in_doubt(caveats) else SERIES


def remark(caveats: Sequence[Caveat], prompt: str) -> str:
    """Caveats of a prompt's mask as text: of the prompt, then of the scan."""
    of_all = [each for each in caveats if each.prompt is None]
    return ". ".join(each.text for each in (*about(caveats, prompt), *of_all))


def log_caveats(caveats: Sequence[Caveat], volume: Volume, logged: set[Caveat]) -> None:
    """Log each caveat once per run; one of the scan once per scan, with its name.

    Args:
        caveats: of the result.
        volume: the scan.
        logged: caveats that this run has logged; updated.
    """
    for each in caveats:
        level = logging.INFO if each.repaired else logging.WARNING
        if each.kind not in _OF_THE_RUN:
            _log.log(level, "%s: %s", volume.source or "the scan", each.text)
        elif each not in logged:
            logged.add(each)
            _log.log(level, "%s", each.text)
