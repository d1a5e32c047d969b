"""The original scans of a slice dataset, found again by the ids that slicing gave them, and read as it read them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from boltzformer_monai.data.split import pseudonym
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.io.dicom.gantry_tilt import resample_tilt, tilt_degrees
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.slicing.cases import Case

__all__ = ["Reading", "find_originals", "read_original"]

Reading = Callable[[], tuple[Volume, Volume | None]]

_TOLERANCE = 0.5  # of a voxel: slicing may have been told any, and what was drawn is compared with what it stored


def find_originals(cases: Iterable[Case], scans: Collection[str], *, key: str = "") -> dict[str, Reading]:
    """What reads the original of every scan of a dataset that is among the cases.

    Args:
        cases: of a recipe.
        scans: ids of the dataset's scans.
        key: secret of its pseudonyms.

    Returns:
        Scan → what reads image and label map.

    Raises:
        DatasetError: two cases are one scan, or none of the cases is a scan of the dataset.
    """
    hashed = {scan.rpartition("-")[2]: scan for scan in scans}
    found: dict[str, Case] = {}
    for case in cases:
        digest = pseudonym(case.volume_id, key=key)
        candidates = [case.volume_id] if case.public else [f"scan-{digest}", hashed.get(digest[:6], "")]
        for scan in candidates:
            if scan in scans:
                if scan in found:
                    raise DatasetError(f"{found[scan].image} and {case.image} would both be {scan}; remove one")
                found[scan] = case
                break
    if not found:
        msg = "none of the scans given is a scan of the dataset"
        raise DatasetError(f"{msg}; give the recipe, folder and key with which it was sliced")
    return {scan: functools.partial(read_original, case) for scan, case in found.items()}


def read_original(case: Case) -> tuple[Volume, Volume | None]:
    """Image and label map of a case on one right-angled grid; a gantry tilt is resampled.

    Raises:
        BoltzFormerError: it cannot be read.
    """
    image = case.read_image(tilt="keep")
    drawn = None if case.annotation is None else case.annotation.draw_on(image, tolerance=_TOLERANCE)
    label = None if drawn is None else drawn.volume
    if tilt_degrees(image):
        label = None if label is None else resample_tilt(replace(label, affine=image.affine))
        image = resample_tilt(image)
    return image, label
