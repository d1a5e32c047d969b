"""Run a plan of ``boltzformer segment``: here, in several processes, or on a Dask cluster."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from boltzformer_monai import __version__
from boltzformer_monai.cli.command_line import IN_DOUBT
from boltzformer_monai.cli.report import SR
from boltzformer_monai.cli.segment_jobs import (
    Outcome,
    Work,
    WorkerInfo,
    load_run,
    segment_elsewhere,
    segment_job,
    segment_one,
    worker_info,
    worker_problem,
)
from boltzformer_monai.cli.segment_plan import Plan
from boltzformer_monai.cli.segment_targets import Job
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.findings.structured_report import shortened
from boltzformer_monai.findings.tables import write_lesions_csv
from boltzformer_monai.inferers.result_manifest import read_manifest
from boltzformer_monai.inferers.run_settings import RunSettings, beside, result_path
from boltzformer_monai.io.challenge_npz import is_challenge_file
from boltzformer_monai.io.folder_tree import read_tree
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.io.scan_list import files_of, find_left_out, tell_left_out
from boltzformer_monai.models.config import model_sha256
from boltzformer_monai.models.place import locate
from boltzformer_monai.parallel import ask_workers, run_jobs
from boltzformer_monai.precision import device_by_name, resolve_precision
from boltzformer_monai.storage import temporary_beside

__all__ = ["SOME_FAILED", "segment_scans"]

_log = logging.getLogger(__name__)

SOME_FAILED = 3


def segment_scans(arguments: argparse.Namespace, plan: Plan) -> int:
    """Segment the planned scans; returns the exit code.

    Raises:
        BoltzFormerError: the checkpoint, the prompts, the cluster or the only scan cannot be used, or a result cannot
            be written.
    """
    jobs, settings = plan.jobs, plan.settings
    work = Work(
        settings=settings,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
        image_files=all(job.scan.place.is_file() and is_image_file(job.scan.place) for job in jobs),
        case=jobs[0].scan.place if is_challenge_file(jobs[0].scan.place) else None,
    )
    outcomes: Iterable[Outcome]
    if arguments.scheduler is not None:
        outcomes = _on_cluster(jobs, work, arguments)
    elif min(arguments.workers, len(jobs)) > 1:
        outcomes = _in_processes(jobs, work, min(arguments.workers, len(jobs)))
    else:
        run = load_run(work, progress=sys.stderr.isatty())
        if not plan.many:
            code = _report_one(segment_one(jobs[0], run), jobs[0], settings)
            _write_lesions(arguments.lesions_csv, jobs)
            return code
        outcomes = (segment_job(job, run) for job in jobs)
    code = _report_many(outcomes, jobs, settings, left_out=_left_out(jobs, arguments.image))
    _write_lesions(arguments.lesions_csv, jobs)
    return code


def _write_lesions(path: Path | None, jobs: Sequence[Job]) -> None:
    """Write the table of all scans' lesions, of results that were complete already, too."""
    if path is None:
        return
    rows: list[Mapping[str, Any]] = []
    for job in jobs:
        for prompt in read_manifest(beside(job.stem, ".json")).get("prompts", []):
            target = {"scan": job.scan.name, "value": prompt["label"], "name": prompt["prompt"]}
            rows += [{**target, **lesion} for lesion in prompt.get("lesions", [])]
    write_lesions_csv(path, rows)


def _in_processes(jobs: Sequence[Job], work: Work, workers: int) -> Iterator[Outcome]:
    """Everything that decides a result is settled here, once for all processes."""
    place, device = locate(work.checkpoint), device_by_name(work.device)
    threads = work.threads or max(1, torch.get_num_threads() // workers)
    torch.set_num_threads(threads)  # here, too: which precision is faster depends on it
    work = replace(
        work,
        sha256=model_sha256(place),
        device="cuda" if device.type == "cuda" and work.device in ("auto", "cuda") else str(device),
        precision=resolve_precision(work.precision, device),
        threads=threads,
    )
    _log.info("%d processes of %d thread%s each", workers, threads, "s" * (threads > 1))
    return run_jobs(partial(segment_elsewhere, work=work), jobs, workers=workers, crashed=_crashed)


def _on_cluster(jobs: Sequence[Job], work: Work, arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Ask the workers first: what they compute with must be the same, and the files must be there."""
    place = locate(work.checkpoint)
    plugins = (str(Path(name).resolve()) if name.endswith(".py") else name for name in arguments.plugins)
    work = replace(
        work, checkpoint=place.path.absolute(), sha256=model_sha256(place), plugins=tuple(plugins)
    )  # absolute, because a worker has another current folder
    folders = [arguments.output, *([arguments.preview] if arguments.preview is not None else [])]
    with ExitStack() as stack:
        tokens = [temporary_beside(folder.absolute() / "workers") for folder in folders]
        for token in tokens:
            stack.callback(token.unlink, missing_ok=True)
            token.touch()
        inputs = [arguments.image.absolute(), *(path.absolute() for path in place.files)]
        workers = ask_workers(partial(worker_info, work, inputs, tokens, __version__), arguments.scheduler)
    work = _alike(work, workers)
    _log.info("%d workers of %d threads each, on %s in %s", len(workers), work.threads, work.kind, work.precision)
    return run_jobs(
        partial(segment_elsewhere, work=work),
        [_absolute(job) for job in jobs],
        scheduler=arguments.scheduler,
        crashed=_crashed,
        problem=partial(worker_problem, work, inputs, __version__),
    )


def _alike(work: Work, workers: Mapping[str, WorkerInfo]) -> Work:
    """The work with device, precision and threads that all workers have, since results depend on them.

    Raises:
        ConfigError: a worker cannot do the work, or two have devices of different kinds.
    """
    for worker, each in workers.items():
        if each.problem:
            raise ConfigError(f"{worker}: this worker {each.problem}")
    if not workers:
        raise ConfigError("every worker was lost while it was asked; start them again")
    first = next(iter(workers))
    kind = workers[first].device
    for worker, each in workers.items():
        if each.device != kind:
            msg = f"{worker} computes on {each.device}, {first} on {kind}, and results would depend on who had a scan"
            raise ConfigError(f"{msg}; give --device cpu, or stop one of both kinds")
    precisions = {each.precision for each in workers.values()}
    sharing = Counter(each.pool for each in workers.values())
    # Dask's nanny leaves a worker one thread, which is too few for a network.
    share = min(each.processors // sharing[each.pool] for each in workers.values())
    return replace(
        work,
        kind=kind,
        precision=precisions.pop() if len(precisions) == 1 else "fp32",  # some are not faster in bfloat16
        threads=work.threads or max(1, share),
    )


def _absolute(job: Job) -> Job:
    scan = replace(job.scan, place=job.scan.place.absolute(), files=tuple(path.absolute() for path in job.scan.files))
    preview, report = (None if path is None else path.absolute() for path in (job.preview, job.report))
    return Job(scan, job.stem.absolute(), preview, report)


def _crashed(job: Job) -> Outcome:
    problem = (
        f"{job.scan.place}: segmenting it ended its process again and again (out of memory, or a fault in a codec)"
    )
    return Outcome(job=job, problem=problem)


def _report_one(manifest: Mapping[str, Any], job: Job, settings: RunSettings) -> int:
    voxels = {each["prompt"]: each.get("label_voxels", each["voxels"]) for each in manifest["prompts"]}
    outcome = {"output": str(result_path(job.stem, settings)), "voxels": voxels, "found": _found(manifest)}
    if job.report is not None and job.report.name.lower().endswith(SR):
        lesions = sum(len(each["lesions"]) for each in manifest["prompts"])
        outcome |= {} if (note := shortened(lesions)) is None else {"report_note": note}
    sys.stdout.write(json.dumps(outcome | {"in_doubt": manifest["in_doubt"]}, ensure_ascii=False) + "\n")
    return IN_DOUBT if manifest["in_doubt"] else 0


def _report_many(outcomes: Iterable[Outcome], jobs: Sequence[Job], settings: RunSettings, *, left_out: str) -> int:
    """Log and print every outcome as it comes, then their numbers; returns the exit code."""
    stems = {job.scan.name: job.stem for job in jobs}  # as the user wrote them
    failed: list[str] = []
    told: set[tuple[str, int, str]] = set()
    done = skipped = doubtful = 0
    try:
        for number, outcome in enumerate(outcomes, 1):
            name = outcome.job.scan.name
            where = f"[{number}/{len(jobs)}] {name}"
            for message in outcome.messages:
                if message not in told:  # what each process says of its model and prompts
                    told.add(message)
                    logging.getLogger(message[0]).log(message[1], "%s", message[2])
            doubtful += outcome.doubtful
            if outcome.problem:
                failed.append(f"{name}: {outcome.problem}")
                _log.warning("%s: failed: %s", where, outcome.problem)
            elif outcome.manifest is None:
                skipped += 1
            else:
                done += 1
                found = _found(outcome.manifest)
                _log.info("%s: %d of %d prompts found", where, len(found), len(settings.prompts))
                line = {
                    "output": str(result_path(stems[name], settings)),
                    "found": found,
                    "in_doubt": outcome.doubtful,
                }
                sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    except KeyboardInterrupt:
        _log.warning("%d of %d scans are finished and kept; the same command does the rest", done + skipped, len(jobs))
        raise
    _log.info("%d segmented, %d were complete already, %d failed%s", done, skipped, len(failed), left_out)
    for failure in failed:
        _log.warning("failed: %s", failure)
    if doubtful:
        _log.warning("%d of the results are in doubt; the caveats in their JSON files say why", doubtful)
    return SOME_FAILED if failed else IN_DOUBT if doubtful else 0


def _left_out(jobs: Sequence[Job], folder: Path) -> str:
    """Log the files that are no scans, and return their counts by kind, "" for none."""
    used = [path for job in jobs for path in (job.scan.files or files_of(job.scan.place))]
    found = find_left_out(read_tree(folder, follow=False), used)
    for line in tell_left_out(found, folder):
        _log.info("%s", line)
    counts = ", ".join(f"{kind}: {len(paths)}" for kind, paths in found.items())
    return f"; left out: {counts}" if found else ""


def _found(manifest: Mapping[str, Any]) -> list[str]:
    return [each["prompt"] for each in manifest["prompts"] if each["found"]]
