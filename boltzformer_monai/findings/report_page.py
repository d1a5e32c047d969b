"""Lesions as a page for people: one HTML file, for screens of any width and for paper."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boltzformer_monai.evaluation.html import write_html
from boltzformer_monai.findings.lesions import Lesion

__all__ = ["PageTarget", "write_report_page"]


@dataclass(frozen=True)
class PageTarget:
    """A target and its lesions.

    Attributes:
        name: of the target.
        volume_ml: of all its voxels.
        lesions: of it.
    """

    name: str
    volume_ml: float
    lesions: Sequence[Lesion]


def write_report_page(
    path: str | os.PathLike[str],
    *,
    targets: Sequence[PageTarget],
    facts: Mapping[str, str],
    remarks: Sequence[str] = (),
    image: bytes | None = None,
) -> Path:
    """Write the page atomically; returns the path.

    It names no patient: it says what it was given, and nothing of a scan's header.

    Args:
        path: the HTML file; its folder is made.
        targets: what was looked for, with lesions or without.
        facts: how it was made: name → text.
        remarks: what a reader must know, one text each.
        image: PNG of slices in which the lesions have their numbers.

    Raises:
        ConfigError: the image is no PNG.
        StorageError: the file cannot be written.
    """
    return write_html(
        path, "lesions.html", package=__package__, title="Lesions", targets=targets, facts=facts, remarks=remarks,
        image=image, at_edge=any(lesion.at_edge for each in targets for lesion in each.lesions),
    )  # fmt: skip
