"""``boltzformer evaluate``: a checkpoint's scores on a slice dataset, in two and three dimensions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.bundle_command import add_options, run_bundle
from boltzformer_monai.errors import CheckpointError

_DESCRIPTION = """Score a checkpoint on a split of a slice dataset; writes metrics.json and scores.csv.

    boltzformer evaluate --data SLICES --checkpoint RUN/model.pt --output RUN/eval --split test

The same evaluation as `python -m monai.bundle run evaluating`; docs/training.md explains the metrics.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("evaluate", help="score a checkpoint on a slice dataset", description=_DESCRIPTION)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="model.pt of a training")
    parser.add_argument("--split", metavar="NAME", help="train, val or test (val)")
    add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate and print where the metrics are."""
    if not options.checkpoint.is_file():
        msg = f"no checkpoint at {options.checkpoint}; boltzformer train writes one as model.pt"
        raise CheckpointError(msg)
    run_bundle("evaluate", options, {"checkpoint": str(options.checkpoint), "split": options.split})
    sys.stdout.write(f"{options.output / 'metrics.json'}\n")
    return 0
