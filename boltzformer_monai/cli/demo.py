"""``boltzformer demo``: phantoms → slices → training → evaluation → segmentation of a DICOM scan → report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.storage import require_writable


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="train and evaluate on synthetic scans, with a report",
        description="Make synthetic CT scans, train the tiny preset on them with the bundle, evaluate and report.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR")
    parser.add_argument("--bundle-root", type=Path, default=Path("bundles/boltzformer"), metavar="DIR")
    parser.add_argument("--epochs", type=int, default=None, help="default: the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print where its results are."""
    if not (arguments.bundle_root / "configs" / "train.json").is_file():
        msg = f"no bundle at {arguments.bundle_root}; run from the repository's root or give --bundle-root"
        raise ConfigError(msg)
    for option, value, least in (("--epochs", arguments.epochs, 1), ("--seed", arguments.seed, 0)):
        if value is not None and value < least:
            msg = f"{option} must be at least {least}, not {value}"
            raise ConfigError(msg)
    require_writable(arguments.output)
    from boltzformer_monai.cli.demo_run import run_demo

    result = run_demo(arguments.output, bundle_root=arguments.bundle_root, epochs=arguments.epochs, seed=arguments.seed)
    for name, path in result.files.items():
        sys.stdout.write(f"{name:<14}{path}\n")
    sys.stdout.write(f"mean Dice     {result.mean_dice:.3f} on held-out scans\n")
    return 0
