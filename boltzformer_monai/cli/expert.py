"""``boltzformer expert``: U-Nets by nnU-Net's published rules, trained and scored on a slice dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.bundle_command import parse_setting, require_training_packages
from boltzformer_monai.cli.command_line import real_number, whole_number
from boltzformer_monai.cli.originals import add_original_options, find_scans
from boltzformer_monai.data.slices.format import SPLITS
from boltzformer_monai.data.slices.tables import read_description
from boltzformer_monai.data.split import MOST_FOLDS, check_folds
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.limits import LARGEST_SEED
from boltzformer_monai.storage import require_writable

_TRAIN = """Train a U-Net by nnU-Net's rules on a slice dataset; writes model.pt, last.pt, plan.json and the curves.

    boltzformer expert train --data SLICES --output RUN --recipe msd --scans Task04_Hippocampus
    boltzformer expert train --data SLICES --output RUN --dimensions 2 --target "liver lesion"

With --recipe and --scans it sees the original scans, without them the dataset's 8-bit slices.
docs/how-to/experts.md explains the settings.
"""
_EVALUATE = """Score an expert on a split of a slice dataset; writes metrics.json, scores.csv and report.html.

    boltzformer expert evaluate --data SLICES --checkpoint RUN/model.pt --output RUN/eval --split test

The scores are those of `boltzformer evaluate`, of the same slices and volumes.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand with its own."""
    parser = commands.add_parser("expert", help="train or score a U-Net by nnU-Net's rules, to compare with")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = actions.add_parser("train", help="plan and train", description=_TRAIN)
    _add_common(train)
    add = train.add_argument
    add("--dimensions", type=whole_number(2, 3), metavar="2|3", help="2 for slices, 3 for volumes (3)")
    add("--target", dest="targets", action="append", metavar="NAME", help="to segment; may be repeated (all)")
    add("--steps", type=whole_number(1), metavar="N", help="of the optimizer (2000, with a GPU 250000)")
    add("--set", dest="settings", type=parse_setting, action="append", default=[], metavar="NAME=VALUE",
        help="any other setting of an expert, e.g. budget=500000 or mirror=False")  # fmt: skip
    add("--folds", type=whole_number(2, MOST_FOLDS), metavar="N", help="divide the patients of train and val")
    add("--fold", type=whole_number(0, MOST_FOLDS - 1), metavar="K", help="the fold that validates, from 0 to N-1")
    add("--resume", metavar="auto|PATH", help="go on where --output stopped, or from a state (default: begin)")
    add_original_options(train)
    train.set_defaults(run=run_train)
    evaluate = actions.add_parser("evaluate", help="score on a split", description=_EVALUATE)
    _add_common(evaluate)
    add = evaluate.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="model.pt or last.pt of an expert")
    add("--split", choices=SPLITS, default="val", help="to score (val)")
    add("--threshold", type=real_number(1e-6, 1 - 1e-6), default=0.5, metavar="P", help="of a mask's voxels (0.5)")
    add("--tolerance-mm", type=real_number(1e-6, 1e6), default=2.0, metavar="MM", help="of the surface Dice (2)")
    add("--no-mirror", dest="mirror", action="store_false", help="do not average over mirrored inputs")
    add_original_options(evaluate)
    evaluate.set_defaults(run=run_evaluate)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="slice dataset, made by boltzformer slice")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda:1, mps, … (the first CUDA GPU if there is one)")
    add("--seed", type=whole_number(0, LARGEST_SEED), default=0, metavar="N", help="of everything random (0)")


def _check(options: argparse.Namespace) -> None:
    """Check packages and places before PyTorch is imported."""
    require_training_packages()
    read_description(options.data)
    require_writable(options.output, make=False)


def run_train(options: argparse.Namespace) -> int:
    """Train and print where the checkpoint is."""
    check_folds(options.folds, options.fold)
    _check(options)
    own = {"dimensions": options.dimensions, "targets": options.targets, "steps": options.steps}
    given = {name: value for name, value in own.items() if value is not None}
    for name, _ in options.settings:
        if name in own:
            raise ConfigError(f"--set {name}: this command has an option for it (see boltzformer expert train --help)")
    from boltzformer_monai.engines.data import open_dataset
    from boltzformer_monai.experts.settings import expert_settings
    from boltzformer_monai.experts.train import train_expert
    from boltzformer_monai.precision import device_by_name

    device = device_by_name(options.device)
    settings = expert_settings(device, {**given, **dict(options.settings)})
    reader = open_dataset(options.data, demo_dir="", folds=options.folds, fold=options.fold)
    model = train_expert(
        reader, settings, output_dir=options.output, device=device, seed=options.seed,
        originals=find_scans(options, reader), resume=options.resume,
    )  # fmt: skip
    sys.stdout.write(f"{model}\n")
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    """Evaluate and print where the metrics are."""
    _check(options)
    from boltzformer_monai.data.slices.reader import SliceReader
    from boltzformer_monai.experts.evaluate import evaluate_expert
    from boltzformer_monai.precision import device_by_name

    evaluate_expert(
        options.checkpoint, options.data, output_dir=options.output, device=device_by_name(options.device),
        split=options.split, originals=find_scans(options, SliceReader(options.data)), threshold=options.threshold,
        tolerance_mm=options.tolerance_mm, seed=options.seed, mirror=options.mirror,
    )  # fmt: skip
    sys.stdout.write(f"{options.output / 'metrics.json'}\n")
    return 0
