"""``boltzformer evaluate``: a checkpoint's scores on a slice dataset, in two and three dimensions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.bundle_command import add_options, run_bundle
from boltzformer_monai.models.place import locate

_DESCRIPTION = """Score a checkpoint on a split of a slice dataset; writes metrics.json and scores.csv.

    boltzformer evaluate --data SLICES --checkpoint RUN/model.pt --output RUN/eval --split test

The same evaluation as `python -m monai.bundle run evaluating`; docs/how-to/training.md explains the metrics.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("evaluate", help="score a checkpoint on a slice dataset", description=_DESCRIPTION)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="MODEL",
        help="model.pt of a training, a model folder, or the id of a fetched model",
    )  # fmt: skip
    parser.add_argument("--split", metavar="NAME", help="train, val or test (val)")
    parser.add_argument(
        "--update-card", action="store_true", help="write the numbers into the model folder's card and metrics.json too"
    )
    parser.add_argument(
        "--focus", action="store_true", help="also measure where the sampling looks and whether attention is used"
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate and print where the metrics are."""
    checkpoint = locate(options.checkpoint).path.absolute()
    settings = {
        "checkpoint": str(checkpoint),
        "split": options.split,
        "update_card": options.update_card or None,
        "focus": options.focus or None,
    }
    run_bundle("evaluate", options, settings)
    sys.stdout.write(f"{options.output / 'metrics.json'}\n")
    return 0
