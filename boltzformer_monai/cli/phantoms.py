"""``boltzformer phantoms``: a slice dataset of hard phantoms."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.command_line import whole_number
from boltzformer_monai.limits import LARGEST_SEED
from boltzformer_monai.storage import require_writable


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "phantoms",
        help="make a slice dataset of hard synthetic scans",
        description="Make a slice dataset of synthetic CT with small objects that only their surroundings tell apart.",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the slice dataset")
    for split, count in (("train", 150), ("val", 20), ("test", 20)):
        least = 1 if split == "train" else 0
        add(
            f"--{split}", type=whole_number(least, 10_000), default=count, metavar="N",
            help=f"patients of the split {split} (default: {count})",
        )  # fmt: skip
    add("--slices", type=whole_number(1, 1000), default=8, metavar="N", help="of each patient (default: 8)")
    add("--edge", type=whole_number(96, 4096), default=192, metavar="PIXELS", help="of a slice (default: 192)")
    add("--seed", type=whole_number(0, LARGEST_SEED), default=0, metavar="N", help="of the patients (default: 0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the dataset and print where it is."""
    require_writable(arguments.output, make=False)
    from boltzformer_monai.demo.hard_phantoms import ensure_hard_dataset

    settings = {name: getattr(arguments, name) for name in ("train", "val", "test", "slices", "edge", "seed")}
    sys.stdout.write(f"{ensure_hard_dataset(arguments.output, **settings)}\n")
    return 0
