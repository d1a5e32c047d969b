"""The ``boltzformer`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from boltzformer_monai import __version__
from boltzformer_monai.cli.command_line import USER_ERROR, CommandParser, run_command

NEXT = """boltzformer: text-prompted segmentation of small objects in CT and MR. Research use only.

To see it work, without data (a small model is trained on synthetic scans):
  boltzformer demo

With a model:
  boltzformer segment scan.nii.gz --prompts "liver" --modality CT --checkpoint MODEL --output out.nii.gz
  boltzformer serve FOLDER --checkpoint MODEL
  boltzformer weights list

With scans and labels of your own:
  boltzformer slice --image scan.nii.gz --label label.nii.gz --labels-json labels.json --output SLICES
  boltzformer train --data SLICES --output RUN
  boltzformer evaluate --data SLICES --checkpoint RUN/model --output RUN/eval

All commands: boltzformer --help
"""
"""What the command says without arguments."""


def build_parser() -> CommandParser:
    """The parser with all subcommands."""
    from boltzformer_monai.cli import (
        check,
        compare,
        cross_validate,
        demo,
        evaluate,
        expert,
        export,
        export_dataset,
        info,
        key,
        measure,
        phantoms,
        search,
        segment,
        serve,
        slice,
        study,
        train,
        weights,
    )

    parser = CommandParser(
        prog="boltzformer", description="Text-prompted segmentation of small objects in CT and MR. Research use only."
    )
    parser.add_argument("--version", action="version", version=f"boltzformer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (
        demo,
        phantoms,
        slice,
        check,
        export_dataset,
        train,
        cross_validate,
        search,
        study,
        evaluate,
        expert,
        segment,
        measure,
        compare,
        serve,
        key,
        info,
        weights,
        export,
    ):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; user errors are one line on standard error and exit code 2, no command a guide and 2."""
    if not (sys.argv[1:] if argv is None else argv):
        sys.stderr.write(NEXT)
        return USER_ERROR
    return run_command(build_parser(), argv)
