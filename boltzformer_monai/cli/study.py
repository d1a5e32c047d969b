"""``boltzformer study``: arms × seeds × folds on data sets, their scores, paired comparisons, tables and figures."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.cli.bundle_command import add_bundle_root, require_training_packages
from boltzformer_monai.cli.command_line import USER_ERROR, add_plugin, real_number, whole_number
from boltzformer_monai.errors import ConfigError, reject_unknown
from boltzformer_monai.registry import use_plugins
from boltzformer_monai.storage import replacing, require_writable, write_json

_log = logging.getLogger(__name__)

_DESCRIPTION = """Compare systems on small objects: train and evaluate all arms of a study, and make its page.

    boltzformer study studies/small.json --list
    boltzformer study studies/phantoms.json --output STUDY --minutes 55
    boltzformer study studies/phantoms.json --output STUDY --workers 2

Writes STUDY/study.html, results.json, scores.csv and figures/. A study is done in pieces: the same command goes on
where it was, also after a kill, and ends with code 75 while there is more to do.
docs/how-to/studies.md has the file's form.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("study", help="compare systems over seeds, with statistics", description=_DESCRIPTION)
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY.json", help="data sets, arms, experiments, comparisons")
    add("--output", type=Path, metavar="DIR", help="folder for runs and results (runs/NAME of the study)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=whole_number(1, 256), default=1, metavar="N", help="runs at a time (1)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers do the runs")
    add(
        "--minutes",
        type=real_number(0, 1e6),
        metavar="N",
        help="stop after so long, with states saved (when all is done)",
    )
    add("--device", metavar="NAME", help="cpu, cuda:1, … (all GPUs in turn, if there are any)")
    add("--only", action="append", default=[], metavar="EXPERIMENT", help="do this one's runs; may be repeated (all)")
    add("--list", action="store_true", help="check the study, say what there is to do, and do nothing")
    add("--page", action="store_true", help="make results and page of the runs that are done, and do none")
    add_plugin(parser)
    add_bundle_root(parser)
    parser.set_defaults(run=run, kept="finished runs are kept; the same command goes on")


def run(options: argparse.Namespace) -> int:
    """Do the runs that are left, write results and page, and print where the page is."""
    started = time.time()
    require_training_packages()
    if importlib.util.find_spec("pydantic") is None:
        raise ConfigError("a study needs pydantic; pip install 'boltzformer-monai[study]'")
    from boltzformer_monai.studies.plan import read_study

    study = read_study(options.study)
    root = bundle_root(options.bundle_root)
    if options.output is None:
        options.output = Path("runs") / study.name
    if not options.list:
        require_writable(options.output, make=False)
    from boltzformer_monai.engines.stop import STOPPED
    from boltzformer_monai.studies.runner import (
        check_data,
        check_study,
        do_runs,
        missing_data,
        planned_runs,
        prepare_data,
        require_same_data,
    )

    reject_unknown(options.only, study.experiments, what="experiment (--only)")
    use_plugins(options.plugins)
    devices = _devices(options.device)
    check_study(study, root=root)
    if options.list:
        for name, experiment in study.experiments.items():
            sys.stdout.write(f"{name}: {experiment.count} runs\n")
        for name, reason in missing_data(study).items():
            sys.stdout.write(f"data.{name} is missing: {reason}\n")
        return 0
    places = prepare_data(study, options.output.absolute(), options.only or study.experiments)
    if not options.page:
        check_data(study, places, options.only or study.experiments)
    require_same_data(study, places, options.output.absolute())
    planned = planned_runs(study, places)
    failed: list[str] = []
    if not options.page:
        deadline = None if options.minutes is None else started + 60 * options.minutes
        ended = do_runs(
            [each for name, runs in planned.items() if not options.only or name in options.only for each in runs],
            options.output.absolute(), places=places, root=root.absolute(), devices=devices, threads=study.threads,
            workers=options.workers, scheduler=options.scheduler, deadline=deadline,
        )  # fmt: skip
        failed = [each.reason for each in ended if each.state == "failed"]
    done, count = _write(options, study, planned, places)
    sys.stdout.write(f"{options.output / 'study.html'}\n")
    if failed:
        sys.stderr.write(f"error: {len(failed)} of {count} runs failed, e.g.: {failed[0]}\n")
        return USER_ERROR
    return 0 if done == count or options.page or options.only else STOPPED


def _devices(name: str | None) -> Sequence[str]:
    import torch

    from boltzformer_monai.precision import device_by_name

    if name is not None:
        return [str(device_by_name(name))]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def _write(options: argparse.Namespace, study: Any, planned: Any, places: Any) -> tuple[int, int]:
    """Write what the runs so far say; figures only once all are done. Returns how many are, and of how many."""
    from boltzformer_monai.studies.figures import CHOSEN, study_figures
    from boltzformer_monai.studies.page import write_page
    from boltzformer_monai.studies.results import collect
    from boltzformer_monai.studies.scores import write_rows
    from boltzformer_monai.studies.verdict import verdict

    folder: Path = options.output.absolute()
    results, rows = collect(study, folder, planned)
    runs = results["runs"]
    figures = []
    if runs["done"] == runs["planned"] or options.page:
        for name, caption, png in study_figures(study, folder, planned, places):
            with replacing(folder / "figures" / name) as temporary:
                temporary.write_bytes(png)
            figures.append((caption, png))
    line, sentences = verdict(results)
    write_rows(rows, folder / "scores.csv")
    write_json(folder / "results.json", {"verdict": [line, *sentences], **results})
    write_page(folder / "study.html", results, figures=figures, chosen=CHOSEN if figures else "")
    _log.info("%s", "\n".join([line, *sentences]))
    return runs["done"], runs["planned"]
