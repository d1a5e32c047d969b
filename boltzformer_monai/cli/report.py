"""``--report FILE`` of ``measure`` and ``segment``: checked before the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.io.read import is_dicom
from boltzformer_monai.storage import require_writable

__all__ = ["HELP", "SR", "check_report"]

SR = ".sr.dcm"
_PAGE = ".html"
HELP = f"write the lesions as DICOM structured report of a DICOM scan ({SR}) or as a page ({_PAGE})"


def check_report(
    report: Path, image: Path, *, series: str | None, inputs: Sequence[Path], outputs: Sequence[Path] = ()
) -> None:
    """Refuse a report that cannot be written.

    Args:
        report: the file.
        image: the scan.
        series: of a folder with several.
        inputs: files that it must not replace.
        outputs: other files that are written.

    Raises:
        ConfigError: it has another ending, is a folder, an input or another output, its folder is missing, or a DICOM
            SR is of a scan that is no DICOM.
        VolumeError: no DICOM SR can refer to the scan.
        StorageError: its folder cannot be written.
    """
    name = report.name.lower()
    if not name.endswith((SR, _PAGE)) or name in (SR, _PAGE):
        raise ConfigError(f"cannot write {report}: the name of a report ends in {SR} or {_PAGE}")
    if report.is_dir():
        raise ConfigError(f"cannot write {report}: it is a folder")
    if not report.parent.is_dir():
        raise ConfigError(f"cannot write {report}: there is no folder {report.parent}; make it first")
    if any(report.resolve() == each.resolve() for each in inputs):
        raise ConfigError(f"cannot write {report}: it is an input, which would be lost; give another name")
    if any(report.resolve() == each.resolve() for each in outputs):
        raise ConfigError(f"cannot write {report}: another result has this name; give another name")
    if name.endswith(SR):
        if image.exists() and not is_dicom(image):
            raise ConfigError(f"{image}: is no DICOM, which a DICOM SR must refer to; write the report as {_PAGE}")
        from boltzformer_monai.findings.structured_report import check_can_be_report

        check_can_be_report(image, series=series)
    require_writable(report.parent)
