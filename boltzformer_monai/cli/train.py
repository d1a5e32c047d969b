"""``boltzformer train``: the bundle's training on a slice dataset."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from boltzformer_monai.cli.bundle_command import add_options, run_bundle
from boltzformer_monai.cli.command_line import whole_number

_DESCRIPTION = """Train on a slice dataset and write model.pt (best validation loss), last.pt and the curves.

    boltzformer slice --input SCANS --output SLICES …
    boltzformer train --data SLICES --output RUN --preset tiny --epochs 30

The same training as `python -m monai.bundle run training`; docs/training.md explains the settings.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("train", help="train on a slice dataset", description=_DESCRIPTION)
    presets = "hiera_s, hiera_bp, focal_l, biomedparse_v2 or tiny (hiera_s with a GPU, tiny without)"
    parser.add_argument("--preset", help=presets)
    parser.add_argument("--epochs", type=whole_number(1), metavar="N", help="most epochs (the preset's)")
    add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train and print where the checkpoint is."""
    run_bundle("train", options, {"preset": options.preset, "epochs": options.epochs})
    sys.stdout.write(f"{options.output / 'model.pt'}\n")
    return 0
