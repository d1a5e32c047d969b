"""Run a plan of ``boltzformer segment``, scan by scan."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.segment_plan import Plan, check_seg
from boltzformer_monai.cli.segment_targets import Job
from boltzformer_monai.errors import BoltzFormerError, ConfigError, VolumeError
from boltzformer_monai.inferers.protocols import volume_protocol
from boltzformer_monai.inferers.result_manifest import in_doubt, is_complete, source_digest
from boltzformer_monai.inferers.results import write_results
from boltzformer_monai.inferers.run_settings import ModelRecord, RunSettings, result_path
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.inferers.sliding_volume import SlidingVolumeInferer
from boltzformer_monai.io.challenge_npz import is_challenge_file, read_case_volume
from boltzformer_monai.io.folder_tree import read_tree
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.scan_list import Scan, files_of, find_left_out, tell_left_out
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks import BoltzFormer
from boltzformer_monai.precision import device_by_name

__all__ = ["IN_DOUBT", "SOME_FAILED", "segment_scans"]

_log = logging.getLogger(__name__)

SOME_FAILED = 3
IN_DOUBT = 4
"""Exit code for success with a caveat that puts a result in doubt."""


@dataclass(frozen=True)
class _Run:
    """Shared by all scans."""

    settings: RunSettings
    model: ModelRecord
    network: BoltzFormer
    inferer: SlidingVolumeInferer


def segment_scans(arguments: argparse.Namespace, plan: Plan) -> int:
    """Segment the planned scans; returns the exit code.

    Raises:
        BoltzFormerError: the checkpoint, the prompts or the only scan cannot be used, or a result cannot be written.
    """
    jobs = plan.jobs
    if plan.settings.protocol is not None:
        volume_protocol(plan.settings, {})  # before the checkpoint is loaded
    segmenter = VolumeSegmenter.from_checkpoint(
        arguments.checkpoint, device=device_by_name(arguments.device), precision=arguments.precision
    )
    settings = plan.settings
    run = _Run(
        settings=settings,
        model=segmenter.record(settings),
        network=segmenter.network,
        inferer=segmenter.inferer(settings, progress=sys.stderr.isatty()),
    )
    if settings.modality is None and all(job.scan.place.is_file() and is_image_file(job.scan.place) for job in jobs):
        run.inferer.windows.modality("unknown")  # image files state none: fail before reading the first
    if run.inferer.protocol.needs_orientation and is_challenge_file(jobs[0].scan.place):
        msg = (
            f"{jobs[0].scan.place}: does not say where the patient's left is, by which the protocol "
            f"{run.model.protocol} turns slices; use --protocol biomedparse, and no orientation=display"
        )
        raise ConfigError(msg)
    if plan.many:
        return _segment_many(jobs, run, left_out=_left_out(jobs, arguments.image))
    manifest = _segment_one(jobs[0], run)
    voxels = {each["prompt"]: each.get("label_voxels", each["voxels"]) for each in manifest["prompts"]}
    outcome = {"output": str(result_path(jobs[0].stem, settings)), "voxels": voxels, "found": _found(manifest)}
    sys.stdout.write(json.dumps(outcome | {"in_doubt": manifest["in_doubt"]}, ensure_ascii=False) + "\n")
    return IN_DOUBT if manifest["in_doubt"] else 0


def _left_out(jobs: Sequence[Job], folder: Path) -> str:
    """Log the files that are no scans, and return their counts by kind, "" for none."""
    used = [path for job in jobs for path in (job.scan.files or files_of(job.scan.place))]
    found = find_left_out(read_tree(folder, follow=False), used)
    for line in tell_left_out(found, folder):
        _log.info("%s", line)
    counts = ", ".join(f"{kind}: {len(paths)}" for kind, paths in found.items())
    return f"; left out: {counts}" if found else ""


def _segment_one(job: Job, run: _Run) -> dict[str, Any]:
    scan, settings = job.scan, run.settings
    if scan.problem:
        raise VolumeError(scan.problem, reason="missing")
    try:
        source = source_digest(scan)  # before reading: a scan that changes meanwhile is another one
        # A tilted stack keeps its grid: it is segmented slice by slice, and the mask must match it.
        volume = _read(scan, settings)
        with run.inferer.segment(volume, run.network) as result:
            return write_results(
                result, job.stem, settings, model=run.model, scan=scan, preview=job.preview, source=source
            )
    except MemoryError as error:
        msg = f"{scan.place}: does not fit into memory ({error or 'no more is left'}); crop it, or close other programs"
        raise ConfigError(msg) from error


def _read(scan: Scan, settings: RunSettings) -> Volume:
    if is_challenge_file(scan.place):
        return read_case_volume(scan.place, modality=settings.modality)
    return read_volume(scan.place, series=scan.series, files=scan.files, modality=settings.modality, tilt="keep")


def _segment_many(jobs: Sequence[Job], run: _Run, *, left_out: str) -> int:
    failed: list[str] = []
    done = skipped = doubtful = 0
    try:
        for number, job in enumerate(jobs, 1):
            where = f"[{number}/{len(jobs)}] {job.scan.name}"
            try:
                if (
                    not job.scan.problem
                    and is_complete(job.stem, run.settings, run.model, job.scan)
                    and (job.preview is None or job.preview.is_file())
                ):
                    skipped += 1
                    doubtful += in_doubt(job.stem)
                    continue
                if not job.scan.problem:
                    check_seg(job.scan, run.settings)
                manifest = _segment_one(job, run)
            except (BoltzFormerError, OSError) as error:
                if getattr(error, "reason", "") == "write":
                    raise  # a full disk affects the next scans too
                failed.append(f"{job.scan.name}: {error}")
                _log.warning("%s: failed: %s", where, error)
                continue
            done += 1
            doubtful += manifest["in_doubt"]
            _log.info("%s: %d of %d prompts found", where, len(_found(manifest)), len(run.settings.prompts))
            outcome = {
                "output": str(result_path(job.stem, run.settings)),
                "found": _found(manifest),
                "in_doubt": manifest["in_doubt"],
            }
            sys.stdout.write(json.dumps(outcome, ensure_ascii=False) + "\n")
    except KeyboardInterrupt:
        _log.warning("%d of %d scans are finished and kept; the same command does the rest", done + skipped, len(jobs))
        raise
    _log.info("%d segmented, %d were complete already, %d failed%s", done, skipped, len(failed), left_out)
    for line in failed:
        _log.warning("failed: %s", line)
    if doubtful:
        _log.warning("%d of the results are in doubt; the caveats in their JSON files say why", doubtful)
    return SOME_FAILED if failed else IN_DOUBT if doubtful else 0


def _found(manifest: dict[str, Any]) -> list[str]:
    return [each["prompt"] for each in manifest["prompts"] if each["found"]]
