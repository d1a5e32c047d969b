"""``boltzformer demo``: phantoms → slices → training → evaluation → segmentation of a DICOM scan → report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.cli.bundle_command import add_bundle_root, require_training_packages
from boltzformer_monai.cli.command_line import whole_number
from boltzformer_monai.cli.train import add_processes
from boltzformer_monai.limits import LARGEST_SEED
from boltzformer_monai.storage import require_writable


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="train and evaluate on synthetic scans, with a report",
        description="Make synthetic CT scans, train the tiny preset on them with the bundle, evaluate and report.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder of the results (runs/demo)"
    )
    parser.add_argument(
        "--fast", action="store_true", help="few small scans and 2 epochs: every step in minutes, with poor masks"
    )
    parser.add_argument("--epochs", type=whole_number(1), help="5, or 2 with --fast")
    parser.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, metavar="N", help="of phantoms, split and training (0)"
    )
    add_processes(parser, "2 without a GPU where there are two processors, 1 with --fast")
    add_bundle_root(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print where its results are."""
    require_training_packages()
    root = bundle_root(arguments.bundle_root)
    require_writable(arguments.output)
    from boltzformer_monai.cli.demo_run import run_demo

    result = run_demo(
        arguments.output,
        bundle_root=root,
        epochs=arguments.epochs,
        seed=arguments.seed,
        fast=arguments.fast,
        processes=arguments.processes,
    )
    for name, path in result.files.items():
        sys.stdout.write(f"{name:<14}{path}\n")
    sys.stdout.write(f"mean Dice     {result.mean_dice:.3f} on held-out scans\n")
    return 0
