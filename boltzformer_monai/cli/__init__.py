"""The ``boltzformer`` command: a thin layer over the inferrer and the bundle."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from boltzformer_monai import __version__
from boltzformer_monai.errors import BoltzFormerError, user_error

USER_ERROR = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the whole usage is what ``--help`` is for."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    from boltzformer_monai.cli import demo, segment, serve

    parser = _Parser(
        prog="boltzformer", description="Text-prompted segmentation of small objects in CT and MR. Research use only."
    )
    parser.add_argument("--version", action="version", version=f"boltzformer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    segment.add_parser(commands)
    demo.add_parser(commands)
    serve.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on standard error and exit code 2."""
    arguments = build_parser().parse_args(argv)
    # The messages of this package are for the user; those of the libraries below it are for their developers.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("boltzformer_monai").setLevel(logging.INFO)
    warnings.filterwarnings("ignore")
    try:
        code: int = arguments.run(arguments)
    except BoltzFormerError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    except RuntimeError as error:  # MONAI wraps what its expressions raise
        known = user_error(error)
        if known is None:
            raise
        sys.stderr.write(f"error: {known}\n")
        return USER_ERROR
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {where}{error.strerror or error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED
    sys.stdout.flush()
    return code
