"""Slice scans into a dataset for training and evaluation.

One scan, a public dataset, or all scans of a folder::

    boltzformer slice --image CT --label L.nii.gz --labels-json labels.json --output DIR
    boltzformer slice --recipe msd --input Task04_Hippocampus --output DIR --workers 4
    boltzformer slice --recipe folder --input ARCHIVE --output DIR --mapping private.csv

Unchanged scans in DIR are skipped, so a stopped run resumes. Exit codes: 0 all scans are in, 2 a wrong call or
(--strict, one scan) a refused scan, 3 some scans were refused (see report.json). Files that belong to no scan are
counted in the last line and in report.json, and named in warnings and by --mapping.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm

from boltzformer_monai.cli.command_line import CommandParser, run_command
from boltzformer_monai.cli.slice_options import add_options, check_options, job_settings, listed_cases, volume_id_of
from boltzformer_monai.data.slices.record import VolumeRecord
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.errors import BoltzFormerError, ConfigError, DatasetError
from boltzformer_monai.io.scan_list import tell_left_out
from boltzformer_monai.parallel import run_jobs
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.slice_report import Account, Tally, write_mapping, write_report
from boltzformer_monai.slicing.slicing import Job, JobSettings, Outcome, slice_case, source_digest, worker_problem
from boltzformer_monai.storage import require_writable


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    _set_up(commands.add_parser("slice", help="slice scans into a dataset for training", description=__doc__))


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a script; return the exit code."""
    return run_command(_set_up(CommandParser(description=__doc__)), argv)


def run(options: argparse.Namespace) -> int:
    """Slice, print the contents of the dataset, and return the exit code."""
    check_options(options)
    return _Run(options)()


def _set_up(parser: CommandParser) -> CommandParser:
    add_options(parser)
    parser.set_defaults(run=run, kept="finished scans are kept; the same command resumes")
    return parser


class RefusedError(BoltzFormerError):
    """A refused scan that stops the run."""


class _Run:
    """One run over a list of cases."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.outcomes: list[Outcome] = []
        self.account = Account([])
        self.warnings = Tally()
        # A refused scan stops the run if it is the only one.
        self.strict = options.strict or not options.recipe

    def __call__(self) -> int:
        options = self.options
        writer = SliceWriter(
            options.output, name=options.name, key=options.key, val_fraction=options.val_fraction, seed=options.seed
        )
        if options.remove:
            return self._remove(writer)
        job_settings(options, seed=writer.seed)  # check the settings before reading anything
        for place in (options.output, *([options.mapping.parent] if options.mapping is not None else [])):
            require_writable(place, make=False)
        self.account = account = listed_cases(options)
        cases = account.cases
        for line in tell_left_out(account.left_out, account.top) if account.top else ():
            print(f"warning: {line}", file=sys.stderr)
        unlabelled = sum(case.annotation is None and not case.problem for case in cases)
        if 0 < unlabelled < len(cases):
            print(f"warning: {unlabelled} of {len(cases)} scans have no annotation: no targets", file=sys.stderr)
        if not options.key and not all(case.public for case in cases):
            print("warning: pseudonyms made without --key-file can be guessed by trial", file=sys.stderr)
        with writer:
            settings = replace(job_settings(options, seed=writer.seed), run=writer.run)
            jobs = _jobs(cases, options, settings, writer.records)
            try:
                self._slice(jobs, writer, settings)
            finally:
                for line in self.warnings.lines():
                    print(f"warning: {line}", file=sys.stderr)
                if writer.records or (options.recipe and self.outcomes):
                    write_report(
                        options.output, settings, writer.records, writer.splits(), self.outcomes, account.counts()
                    )
                if options.mapping is not None:
                    write_mapping(options.mapping, jobs, writer.records, self.outcomes, account, key=options.key)
        return self._summary(writer)

    def _slice(self, jobs: list[Job], writer: SliceWriter, settings: JobSettings) -> None:
        done = {volume_id: (record.source, record.split) for volume_id, record in writer.records.items()}
        todo = [job for job in jobs if self.options.redo or done.get(job.volume_id) != (job.source, job.split)]
        same = _same_slices(jobs, writer.records)
        replaced = writer.hide([*(job.volume_id for job in todo), *same.values()])
        paths = {job.volume_id: _paths(job.case) for job in todo}
        with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="slicing", unit="volume", smoothing=0.1) as bar:
            for outcome in self._outcomes(todo, settings):
                self.outcomes.append(outcome)
                if outcome.volume_id in same:
                    writer.drop(same[outcome.volume_id])
                for line in outcome.warnings:
                    self.warnings.add(line, paths[outcome.volume_id])
                if outcome.record is not None:
                    writer.accept(outcome.record)
                else:
                    self._refuse(outcome, writer, bar)
                bar.set_postfix(refused=sum(each.record is None for each in self.outcomes), refresh=False)
                bar.update()
        if replaced:
            which = f"volume {min(replaced)} was" if len(replaced) == 1 else f"{len(replaced)} volumes were"
            print(
                f"warning: {which} in the data set already, of other files or settings, and replaced", file=sys.stderr
            )

    def _refuse(self, outcome: Outcome, writer: SliceWriter, bar: tqdm[Any]) -> None:
        writer.drop(outcome.volume_id)
        if self.strict:
            raise RefusedError(outcome.message)
        bar.write(f"refused: {outcome.message}", file=sys.stderr)

    def _outcomes(self, jobs: list[Job], settings: JobSettings) -> Iterator[Outcome]:
        return run_jobs(
            partial(slice_case, settings=settings),
            jobs,
            workers=self.options.workers,
            scheduler=self.options.scheduler,
            crashed=_crashed,
            problem=partial(worker_problem, settings),
        )

    def _summary(self, writer: SliceWriter) -> int:
        refused = sum(outcome.record is None for outcome in self.outcomes)
        records = writer.records.values()
        targets = {target for record in records for target in record.entry["targets"]}
        slices = sum(len(record.taken()) for record in records)
        splits = writer.splits()
        rows = sum(1 for record in records for _ in record.rows(splits[record.entry["patient"]]))
        count = len(writer.records)
        scans = len({record.scan for record in records})
        parts = [f"{count} volume{'s' * (count != 1)}{f' of {scans} scans' if scans < count else ''}"]
        parts += [f"{slices} slices", f"{len(targets)} targets", f"{rows} rows"]
        parts += [f"{refused} scan{'s' * (refused != 1)} refused"] if refused else []
        parts += [self.account.summary()] if self.account.left_out else []
        print(f"{', '.join(parts)} -> {self.options.output}")
        return 3 if refused else 0

    def _remove(self, writer: SliceWriter) -> int:
        with writer:
            wanted = {
                record.volume: name
                for record in writer.records.values()
                for name in (record.volume, record.scan, record.entry["patient"])
                if name in self.options.remove
            }
            unknown = sorted(set(self.options.remove) - set(wanted.values()))
            if unknown:
                raise ConfigError(
                    f"{self.options.output}: has no volume or patient {', '.join(unknown)}; none is removed"
                )
            writer.hide(wanted)
            for volume_id in wanted:
                writer.drop(volume_id)
        return self._summary(writer)


def _jobs(
    cases: list[Case], options: argparse.Namespace, settings: JobSettings, records: Mapping[str, VolumeRecord]
) -> list[Job]:
    jobs = []
    pinned = {record.scan: record.split for record in records.values()}
    for case in cases:
        scan = volume_id_of(case, options)
        # A pinned split stays, so that held-out patients do not move into training.
        split = options.split or case.split or pinned.get(scan)
        for plane in settings.planes:
            volume_id = scan if len(settings.planes) == 1 else f"{scan}-{plane}"
            jobs.append(Job(case, volume_id, source_digest(case, settings, plane), split, plane, scan))
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.volume_id, job)
        if other is not job:
            msg = f"{other.case.image} and {job.case.image} would both become volume {job.volume_id}; rename one"
            raise DatasetError(msg)
    return jobs


def _same_slices(jobs: Sequence[Job], records: Mapping[str, VolumeRecord]) -> dict[str, str]:
    """Volume ids of jobs → ids under which the same plane of the same scan is in the data set already.

    A scan alone in its plane has no plane in its id; once it is sliced along several, all of them have.
    """
    wanted = {(job.scan, job.plane): job.volume_id for job in jobs}
    found = {name: wanted.get((record.scan, record.entry["plane"]), name) for name, record in records.items()}
    return {volume_id: name for name, volume_id in found.items() if volume_id != name}


def _paths(case: Case) -> list[str]:
    """Names of a case's files in warnings."""
    labels = [] if case.annotation is None else list(map(str, case.annotation.files()))
    return [str(case.image), *labels, ", ".join(labels)]


def _crashed(job: Job) -> Outcome:
    message = f"{job.case.image}: reading it crashed the process (out of memory, or a fault in a codec)"
    return Outcome(job.volume_id, None, "crash", message)
