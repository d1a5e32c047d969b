"""``boltzformer train``: the bundle's training on a slice dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.bundle_command import add_options, run_bundle
from boltzformer_monai.cli.command_line import whole_number
from boltzformer_monai.data.split import MOST_FOLDS, check_folds

_DESCRIPTION = """Train on a slice dataset and write model.pt (best validation loss), last.pt and the curves.

    boltzformer slice --input SCANS --output SLICES …
    boltzformer train --data SLICES --output RUN --preset tiny --epochs 30

The same training as `python -m monai.bundle run training`; docs/how-to/training.md explains the settings.
"""

AUTO = "auto"
_MOST_PROCESSES = 256


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("train", help="train on a slice dataset", description=_DESCRIPTION)
    add_training_options(parser)
    add = parser.add_argument
    add(
        "--folds",
        type=whole_number(2, MOST_FOLDS),
        metavar="N",
        help="divide the patients of train and val into N folds",
    )
    add("--resume", metavar="auto|PATH", help="go on where --output stopped, or from a state (default: begin)")
    add("--fold", type=whole_number(0, MOST_FOLDS - 1), metavar="K", help="the fold that validates, from 0 to N-1")
    add_processes(parser, "1")
    add("--tracking", metavar="mlflow|FILE", help="track in MLflow too, by default in --output, or as FILE says")
    add_options(parser)
    parser.set_defaults(run=run)


def add_processes(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--processes``; ``default`` is only described."""
    parser.add_argument(
        "--processes",
        type=whole_number(1, _MOST_PROCESSES),
        metavar="N",
        help=f"train in N processes of this machine, each with its own GPU or share of the processors ({default})",
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that trains; :func:`training_keys` reads them."""
    presets = "hiera_s, hiera_bp, focal_l, biomedparse_v2 or tiny (hiera_s with a GPU, tiny without)"
    parser.add_argument("--preset", help=presets)
    parser.add_argument("--epochs", type=whole_number(1), metavar="N", help="most epochs (the preset's)")
    parser.add_argument(
        "--global_batch",
        type=whole_number(1),
        metavar="N",
        help="examples of a step, a multiple of batch_size: gradients are accumulated (one batch)",
    )


def training_keys(options: argparse.Namespace) -> dict[str, Any]:
    """Keys of the configuration from the options of :func:`add_training_options`; None where they are not given."""
    return {name: getattr(options, name) for name in ("preset", "epochs", "global_batch")}


def run(options: argparse.Namespace) -> int:
    """Train and print where the checkpoint is."""
    check_folds(options.folds, options.fold)
    resume = options.resume if options.resume in (None, AUTO) else str(Path(options.resume).absolute())
    own = {"folds": options.folds, "fold": options.fold, "resume": resume}
    settings = {**training_keys(options), **own}
    run_bundle("train", options, settings, tracking=options.tracking, processes=options.processes or 1)
    sys.stdout.write(f"{options.output / 'model.pt'}\n")
    return 0
