"""A segmentation's lesions as DICOM SR or page, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.findings.lesions import Lesion
from boltzformer_monai.findings.record import size_remarks
from boltzformer_monai.findings.report_page import PageTarget, write_report_page
from boltzformer_monai.findings.structured_report import ReportedTarget, write_structured_report
from boltzformer_monai.inferers.prompt_codes import segment_code
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.inferers.volume_result import VolumeResult
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.io.volume import Volume

__all__ = ["write_result_page", "write_result_report", "write_result_sr"]


def write_result_report(
    path: Path, manifest: Mapping[str, Any], result: VolumeResult, *, scan: Scan, seg: Path, settings: RunSettings
) -> None:
    """Write a DICOM SR (``.dcm``), or else a page with the preview.

    Args:
        path: of the report.
        manifest: of the result, whose files are written.
        result: open.
        scan: that was segmented.
        seg: the DICOM SEG, if the manifest is of one and anything was found.
        settings: of the run.

    Raises:
        VolumeError: the scan allows no DICOM SR, or the file cannot be written.
        StorageError: the page cannot be written.
    """
    if path.name.lower().endswith(".dcm"):
        written = any(each["name"] == ".dcm" for each in manifest["files"])
        write_result_sr(path, manifest, grid=result.grid, scan=scan, seg=seg if written else None)
        return
    from boltzformer_monai.inferers.preview import contact_sheet

    image = contact_sheet(
        result,
        plane=result.planes[0],
        window=settings.grey_scale,
        modality=settings.modality,
        lesions=[[Lesion.of(lesion) for lesion in each["lesions"]] for each in manifest["prompts"]],
    )
    write_result_page(path, manifest, scan=scan, image=image)


def write_result_sr(path: Path, manifest: Mapping[str, Any], *, grid: Volume, scan: Scan, seg: Path | None) -> None:
    """Write the DICOM SR, atomically.

    Args:
        path: of the SR; its folder must exist.
        manifest: of the result.
        grid: the scan as it was segmented.
        scan: the DICOM series.
        seg: the DICOM SEG that the manifest is of; None: the result is another file, and the SR refers to the images.

    Raises:
        VolumeError: the scan allows no DICOM SR, or the file cannot be written.
    """
    doubtful = {each.get("prompt") for each in manifest["caveats"] if each["in_doubt"]}
    targets = [
        ReportedTarget(
            each["prompt"],
            [Lesion.of(lesion) for lesion in each["lesions"]],
            segment_code(each["shown"], known=each["prompt"] not in doubtful),
            None if seg is None else each["label"],
        )
        for each in manifest["prompts"]
    ]
    write_structured_report(
        path, scan=scan.files or scan.place, series=scan.series, grid=grid, targets=targets, seg=seg,
        algorithm="BoltzFormer", version=manifest["package"], model=manifest["model"][:16],
        remarks=["Research use only", *_remarks(manifest)],
    )  # fmt: skip


def write_result_page(path: Path, manifest: Mapping[str, Any], *, scan: Scan, image: bytes | None = None) -> None:
    """Write the page, atomically.

    Args:
        path: of the HTML file.
        manifest: of the result.
        scan: that was segmented, for its name.
        image: PNG of the preview.

    Raises:
        StorageError: the file cannot be written.
    """
    targets = [
        PageTarget(each["prompt"], each["volume_ml"], [Lesion.of(lesion) for lesion in each["lesions"]])
        for each in manifest["prompts"]
    ]
    facts = {
        "scan": scan.name,
        "model": manifest["model"][:16],
        "planes": ", ".join(manifest["planes"]),
        "threshold": f"{manifest['threshold']:g}",
        "lesions": "voxels that touch by face, edge or corner",
        "package": f"boltzformer-monai {manifest['package']}",
    }
    write_report_page(path, targets=targets, facts=facts, remarks=_remarks(manifest), image=image)


def _remarks(manifest: Mapping[str, Any]) -> list[str]:
    limits = size_remarks(manifest["lesion_min_ml"], manifest["lesion_min_mm"])
    return [*limits, *(each["text"] for each in manifest["caveats"])]
