"""One scan of ``boltzformer segment``: the unit of work, the same in this process, another, or on a cluster."""

from __future__ import annotations

import functools
import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from boltzformer_monai import __version__
from boltzformer_monai.cli.segment_plan import check_dicom_output
from boltzformer_monai.cli.segment_targets import Job
from boltzformer_monai.errors import BoltzFormerError, CheckpointError, ConfigError, VolumeError
from boltzformer_monai.inferers.protocols import volume_protocol
from boltzformer_monai.inferers.result_manifest import in_doubt, is_complete, source_digest
from boltzformer_monai.inferers.result_report import write_result_report
from boltzformer_monai.inferers.results import write_results
from boltzformer_monai.inferers.run_settings import ModelRecord, RunSettings, beside
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.inferers.sliding_volume import SlidingVolumeInferer
from boltzformer_monai.io.challenge_npz import is_challenge_file, read_case_volume
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks import BoltzFormer
from boltzformer_monai.parallel import collected_messages, processor_count, processor_pool
from boltzformer_monai.precision import device_by_name, resolve_precision
from boltzformer_monai.registry import use_plugins
from boltzformer_monai.storage import require_writable

__all__ = [
    "Outcome",
    "Run",
    "Work",
    "WorkerInfo",
    "load_run",
    "segment_elsewhere",
    "segment_job",
    "segment_one",
    "worker_info",
    "worker_problem",
]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all scans of a run have in common. Picklable.

    Attributes:
        settings: of the run.
        checkpoint: the model; absolute where another machine reads it.
        sha256: of the model; a worker that finds another one there does nothing. "": any.
        device: ``"auto"``, ``"cpu"``, ``"cuda:1"``, …; ``"cuda"`` gives each process of a machine its own GPU in turn.
        kind: of the device that every worker must have, ``"cpu"`` or ``"cuda"``; "" for any.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        plugins: to import on the workers.
        threads: of a process, the same everywhere: convolutions add in another order with another number, and round
            differently. ``None``: what PyTorch takes here.
        image_files: whether no scan states its modality.
        case: the first scan, where it is a case of the CVPR challenge.
    """

    settings: RunSettings
    checkpoint: Path
    sha256: str = ""
    device: str = "auto"
    kind: str = ""
    precision: str = "auto"
    plugins: tuple[str, ...] = ()
    threads: int | None = None
    image_files: bool = False
    case: Path | None = None


@dataclass(frozen=True)
class Run:
    """A loaded model, ready for scans."""

    settings: RunSettings
    model: ModelRecord
    network: BoltzFormer
    inferer: SlidingVolumeInferer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a scan.

    Attributes:
        job: the scan and its outputs.
        manifest: of a new result, else ``None``.
        problem: why the scan failed, "" if it did not.
        doubtful: whether the result, new or complete already, is in doubt.
        messages: logged in another process: logger, level, text.
    """

    job: Job
    manifest: Mapping[str, Any] | None = None
    problem: str = ""
    doubtful: bool = False
    messages: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True)
class WorkerInfo:
    """A worker of a cluster.

    Attributes:
        problem: what keeps it from the work, "" for nothing.
        pool: names what it shares processors and memory with.
        processors: of the pool.
        device: kind of its device.
        precision: that it computes in.
    """

    problem: str
    pool: str = ""
    processors: int = 1
    device: str = ""
    precision: str = ""


def load_run(work: Work, *, keep: bool = False, progress: bool = False) -> Run:
    """Load the model and check that it can do the work.

    Args:
        work: to be done.
        keep: the model for the next call in this process; needs the hash of the work's model.
        progress: show a progress bar for each scan.

    Raises:
        BoltzFormerError: the checkpoint or the prompts cannot be used, or the model is not that of the run.
    """
    settings = work.settings
    if work.threads is not None:
        torch.set_num_threads(work.threads)  # of this thread and those that it starts
    if settings.protocol is not None:
        volume_protocol(settings, {})  # before the checkpoint is loaded
    load = _kept_segmenter if keep else _segmenter
    segmenter = load(work.checkpoint, work.sha256, _device(work), work.precision)
    run = Run(
        settings=settings,
        model=segmenter.record(settings),
        network=segmenter.network,
        inferer=segmenter.inferer(settings, progress=progress),
    )
    if settings.modality is None and work.image_files:
        run.inferer.windows.modality("unknown")  # image files state none: fail before reading the first
    if run.inferer.protocol.needs_orientation and work.case is not None:
        msg = (
            f"{work.case}: does not say where the patient's left is, by which the protocol "
            f"{run.model.protocol} turns slices; use --protocol biomedparse, and no orientation=display"
        )
        raise ConfigError(msg)
    return run


def _segmenter(checkpoint: Path, sha256: str, device: torch.device, precision: str) -> VolumeSegmenter:
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint, device=device, precision=precision)
    if sha256 not in ("", segmenter.sha256):
        msg = f"{checkpoint}: is not the model that the run began with; every worker needs the same, until the end"
        raise CheckpointError(msg)
    return segmenter


_kept_segmenter = functools.lru_cache(maxsize=1)(_segmenter)


def _device(work: Work) -> torch.device:
    """The device of this process.

    Raises:
        ConfigError: there is none of this name or kind.
    """
    name = work.device
    if name == "cuda" and (gpus := torch.cuda.device_count()) > 1:
        # "SpawnProcess-3": processes are numbered as they are started.
        number = multiprocessing.current_process().name.rpartition("-")[2]
        name = f"cuda:{(int(number) - 1) % gpus if number.isdecimal() else 0}"
    device = device_by_name(name)
    if work.kind not in ("", device.type):
        raise ConfigError(f"this worker computes on {device.type}, and others on {work.kind}; say which with --device")
    return device


def segment_one(job: Job, run: Run) -> dict[str, Any]:
    """Segment a scan, write its files, and return the manifest.

    Raises:
        BoltzFormerError: the scan cannot be used, or a result cannot be written.
    """
    scan, settings = job.scan, run.settings
    if scan.problem:
        raise VolumeError(scan.problem, reason="missing")
    try:
        source = source_digest(scan)  # before reading: a scan that changes meanwhile is another one
        with run.inferer.segment(_read(job, settings), run.network) as result:
            manifest = write_results(
                result, job.stem, settings, model=run.model, scan=scan, preview=job.preview, source=source
            )
            if job.report is not None:
                write_result_report(
                    job.report, manifest, result, scan=scan, seg=beside(job.stem, ".dcm"), settings=settings
                )
            return manifest
    except MemoryError as error:
        msg = f"{scan.place}: does not fit into memory ({error or 'no more is left'}); crop it, or close other programs"
        raise ConfigError(msg) from error


def _read(job: Job, settings: RunSettings) -> Volume:
    scan = job.scan
    if is_challenge_file(scan.place):
        return read_case_volume(scan.place, modality=settings.modality)
    # A tilted stack keeps its grid: it is segmented slice by slice, and the mask must match it.
    return read_volume(scan.place, series=scan.series, files=scan.files, modality=settings.modality, tilt="keep")


def segment_job(job: Job, run: Run) -> Outcome:
    """Segment one of many scans, unless its result is complete; what is wrong with it must not stop the others.

    Raises:
        BoltzFormerError: a result cannot be written, which affects the next scans too.
    """
    try:
        if (
            not job.scan.problem
            and is_complete(job.stem, run.settings, run.model, job.scan)
            and (job.preview is None or job.preview.is_file())
            and job.report is None
        ):
            return Outcome(job=job, doubtful=in_doubt(job.stem))
        if not job.scan.problem:
            check_dicom_output(job.scan, run.settings)
        manifest = segment_one(job, run)
    except (BoltzFormerError, OSError) as error:
        if getattr(error, "reason", "") == "write":
            raise
        return Outcome(job=job, problem=str(error))
    return Outcome(job=job, manifest=manifest, doubtful=manifest["in_doubt"])


def segment_elsewhere(job: Job, work: Work) -> Outcome:
    """:func:`segment_job` in a process of its own, whose model is loaded for its first scan only.

    Raises:
        BoltzFormerError: as :func:`load_run` and :func:`segment_job`.
    """
    with collected_messages(logging.INFO) as records:
        use_plugins(work.plugins)
        outcome = segment_job(job, load_run(work, keep=True))
    return replace(outcome, messages=tuple((each.name, each.levelno, each.getMessage()) for each in records))


def worker_info(work: Work, inputs: Sequence[Path], tokens: Sequence[Path], package: str) -> WorkerInfo:
    """Check this worker of a cluster before the work.

    Args:
        work: to be done.
        inputs: files and folders that it must see.
        tokens: new files in the folders that it must write into.
        package: version that it must have.
    """
    if __version__ != package:
        return WorkerInfo(
            f"has version {__version__} of boltzformer-monai, and this command {package}; install the same"
        )
    for path in (*inputs, *tokens):
        if not path.exists():
            return WorkerInfo(f"does not see {path if path in inputs else path.parent}; all need the same file system")
    try:
        for token in tokens:
            require_writable(token.parent)
        use_plugins(work.plugins)
        device = _device(work)
        torch.set_num_threads(work.threads or processor_count())  # which precision is faster depends on it
        precision = resolve_precision(work.precision, device)
    except BoltzFormerError as error:
        return WorkerInfo(f"cannot do it: {error}")
    return WorkerInfo("", processor_pool(), processor_count(), device.type, precision)


def worker_problem(work: Work, inputs: Sequence[Path], package: str) -> str:
    """What keeps a worker that joined the cluster later from the work, "" for nothing; as :func:`worker_info`."""
    return worker_info(work, inputs, [], package).problem
