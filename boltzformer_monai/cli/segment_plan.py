"""Plan ``boltzformer segment`` from names and headers, before PyTorch, checkpoint and pixels are loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from boltzformer_monai.cli.report import check_report
from boltzformer_monai.cli.segment_arguments import (
    check_inputs,
    check_output,
    check_sharing,
    model_files,
    run_settings,
)
from boltzformer_monai.cli.segment_targets import Job, check_targets, prepare_folders
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.run_settings import DICOM_ENDINGS, RunSettings, written_paths
from boltzformer_monai.io.dicom.rtstruct_writer import check_can_be_rtstruct
from boltzformer_monai.io.dicom.seg_writer import check_can_be_seg
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.io.scan_list import Scan, holds_only_image_files, list_scans

__all__ = ["Plan", "check_dicom_output", "plan_work"]


@dataclass(frozen=True)
class Plan:
    """The scans to segment.

    Attributes:
        jobs: scans with their outputs.
        many: whether they come from a folder, with one result each.
        settings: of all scans.
    """

    jobs: Sequence[Job]
    many: bool
    settings: RunSettings


def plan_work(arguments: argparse.Namespace) -> Plan:
    """Build the settings, list the scans, check the outputs, and create their folders.

    Raises:
        BoltzFormerError: an argument is invalid, there is no scan, a file would be overwritten, a folder cannot be
            written, or the only scan does not allow the DICOM object.
    """
    settings = run_settings(arguments)
    check_inputs(arguments)
    check_output(arguments, settings)
    check_sharing(arguments)
    jobs, many = _jobs(arguments, settings.ending)
    if not many and (arguments.workers > 1 or arguments.scheduler is not None):
        option = "--workers" if arguments.scheduler is None else "--scheduler"
        raise ConfigError(f"{option} shares out the scans of a folder, and {arguments.image} is one scan; leave it out")
    more = [*model_files(arguments), *([arguments.prompts_file] if arguments.prompts_file else [])]
    check_targets(jobs, settings, image=arguments.image, inputs=more)
    if many and settings.ending in DICOM_ENDINGS and all(_is_image(job.scan) for job in jobs):
        what = f"holds no DICOM series, which {DICOM_ENDINGS[settings.ending]} must refer to"
        raise ConfigError(f"{arguments.image}: {what}; leave --format {settings.ending[1:]} out")
    if not many:
        check_dicom_output(jobs[0].scan, settings)
    if arguments.report is not None:
        jobs = [_reported(jobs, arguments, settings, inputs=more)]
    prepare_folders(jobs, settings)
    return Plan(jobs, many, settings)


def _reported(
    jobs: Sequence[Job], arguments: argparse.Namespace, settings: RunSettings, *, inputs: Sequence[Path]
) -> Job:
    """The one job, with its report.

    Raises:
        BoltzFormerError: there are several scans, or it cannot be written.
    """
    report: Path = arguments.report
    if len(jobs) > 1:
        raise ConfigError(f"--report is of one scan, and {arguments.image} holds {len(jobs)}; measure their results")
    (job,) = jobs
    table = [] if arguments.lesions_csv is None else [arguments.lesions_csv]
    check_report(
        report,
        job.scan.place,
        series=job.scan.series,
        inputs=[arguments.image, *job.scan.files, *inputs],
        outputs=[*written_paths(job.stem, settings, job.preview), *table],
    )
    return replace(job, report=report)


def check_dicom_output(scan: Scan, settings: RunSettings) -> None:
    """For a DICOM SEG or RTSTRUCT, check that the scan's headers allow it.

    Raises:
        VolumeError: they do not.
    """
    check = {".dcm": check_can_be_seg, ".rtstruct.dcm": check_can_be_rtstruct}.get(settings.ending)
    if check is not None:
        check(scan.files or scan.place, series=scan.series, names=settings.prompts)


def _is_image(scan: Scan) -> bool:
    return scan.place.is_file() and is_image_file(scan.place)


def _jobs(arguments: argparse.Namespace, ending: str) -> tuple[list[Job], bool]:
    """The jobs, and whether they are the scans of a folder."""
    image, output, preview = arguments.image, arguments.output, arguments.preview
    named_file = output.name.lower().endswith(ending) and not arguments.masks
    stem = Path(str(output)[: -len(ending)]) if named_file else output
    single = [Job(Scan(stem.name, image, arguments.series), stem, preview)]
    if named_file and image.is_dir() and arguments.series is None and holds_only_image_files(image):
        msg = f"{image} is a folder of scans, each with a result of its own; give a folder instead of {output}"
        raise ConfigError(msg)
    if named_file or image.is_file() or arguments.series is not None:
        return single, False
    scans = list_scans(image)
    preview_is_png = preview is not None and preview.suffix.lower() == ".png"
    if arguments.masks and len(scans) == 1 and scans[0].series is not None:
        # The folder is one series, and its masks go straight into OUT.
        return [replace(single[0], preview=preview if preview_is_png else _preview_of(preview, single[0].scan))], False
    if preview_is_png:
        msg = f"{image} is a folder of scans, each with a preview of its own; give a folder instead of {preview}"
        raise ConfigError(msg)
    return [Job(scan, output / scan.name, _preview_of(preview, scan)) for scan in scans], True


def _preview_of(folder: Path | None, scan: Scan) -> Path | None:
    return None if folder is None else folder / f"{scan.name}.png"
