"""Everything a user must know of a result, collected in one place before the work, and logged once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from boltzformer_monai.caveats import MILD, Caveat
from boltzformer_monai.data.plausibility import acquisition_plane, scan_caveats
from boltzformer_monai.data.prompt_check import Reading
from boltzformer_monai.data.windows import StoredGrey
from boltzformer_monai.inferers.windows import PromptWindows
from boltzformer_monai.io.volume import Volume

__all__ = ["SERIES", "SERIES_IN_DOUBT", "about", "collect_caveats", "in_doubt", "log_caveats", "remark", "seg_series"]

_log = logging.getLogger(__name__)

SERIES = "Segmentation by text prompts"
SERIES_IN_DOUBT = "Segmentation by text prompts, IN DOUBT: see its segments"
"""SeriesDescription of a DICOM SEG: at most 64 letters."""

_OF_THE_RUN = (MILD - {"gantry tilt"}) | {"unknown prompt", "words not understood", "another modality"}


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
    """All caveats of a result, those that put it in doubt first, without repetition.

    Args:
        volume: the scan, with what its reader repaired or warned of.
        stated: the modality that the scan or the user states, or ``"unknown"``.
        modality: what the scan is taken for.
        planes: that it is sliced along.
        windows: knows what the network was trained on.
        readings: of the prompts.
        known: what was known before any scan was read.
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
    return tuple(sorted(dict.fromkeys(found), key=lambda each: (each.repaired, not each.doubtful)))


def about(caveats: Iterable[Caveat], prompt: str) -> list[Caveat]:
    """Those of one prompt."""
    return [each for each in caveats if each.prompt == prompt]


def in_doubt(caveats: Iterable[Caveat]) -> bool:
    """Whether one of them puts the result in doubt."""
    return any(each.doubtful for each in caveats)


def seg_series(caveats: Iterable[Caveat]) -> str:
    """SeriesDescription of a DICOM SEG."""
    return SERIES_IN_DOUBT if in_doubt(caveats) else SERIES


def remark(caveats: Sequence[Caveat], prompt: str) -> str:
    """What to know of a prompt's mask: first of the prompt, then of the whole scan."""
    of_all = [each for each in caveats if each.prompt is None]
    return ". ".join(each.text for each in (*about(caveats, prompt), *of_all))


def log_caveats(caveats: Sequence[Caveat], volume: Volume, logged: set[Caveat]) -> None:
    """Log each caveat once a run; one of the scan itself once a scan, with its name.

    Args:
        caveats: of the result.
        volume: the scan.
        logged: what this run has logged already; is added to.
    """
    for each in caveats:
        level = logging.INFO if each.repaired else logging.WARNING
        if each.kind not in _OF_THE_RUN:
            _log.log(level, "%s: %s", volume.source or "the scan", each.text)
        elif each not in logged:
            logged.add(each)
            _log.log(level, "%s", each.text)
