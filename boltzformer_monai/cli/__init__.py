"""The ``boltzformer`` command."""

from __future__ import annotations

from collections.abc import Sequence

from boltzformer_monai import __version__
from boltzformer_monai.cli.command_line import CommandParser, run_command


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
        info,
        weights,
        export,
    ):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; user errors are one line on standard error and exit code 2."""
    return run_command(build_parser(), argv)
