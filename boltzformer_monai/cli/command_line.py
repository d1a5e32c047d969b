"""What all commands share: the parser, messages on standard error, exit codes."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from boltzformer_monai.errors import ConfigError, user_line

__all__ = ["INTERRUPTED", "USER_ERROR", "CommandParser", "add_plugin", "run_command"]

USER_ERROR = 2
INTERRUPTED = 130


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are :class:`~boltzformer_monai.errors.ConfigError`: one line, no usage.

    Its defaults hold ``run(options) -> exit code`` and may hold ``kept``, which says what is left after Ctrl-C.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Add ``--plugin``, for :func:`~boltzformer_monai.registry.use_plugins`."""
    parser.add_argument(
        "--plugin", dest="plugins", action="append", default=[], metavar="MODULE",
        help="module or .py file with decoders, backbones, … of your own, see docs/extending.md; may be repeated",
    )  # fmt: skip


def run_command(parser: CommandParser, argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run the command; return its exit code.

    A mistake of the user is one line on standard error and exit code 2, Ctrl-C is exit code 130, and any other
    exception is a bug and keeps its traceback.
    """
    kept = ""
    with _messages():
        try:
            options = parser.parse_args(argv)
            kept = getattr(options, "kept", "")
            code: int = options.run(options)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            sys.stderr.write(f"interrupted{': ' if kept else ''}{kept}\n")
            return INTERRUPTED
        except Exception as error:
            if (line := user_line(error)) is None:
                raise
            sys.stderr.write(f"error: {line}\n")
            return USER_ERROR


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{'warning: ' if record.levelno == logging.WARNING else ''}{super().format(record)}"


@contextmanager
def _messages() -> Iterator[None]:
    """Show the package's messages and all warnings as lines on standard error, above a progress bar."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root, package = logging.getLogger(), logging.getLogger("boltzformer_monai")
    before = package.level
    root.addHandler(handler)
    package.setLevel(logging.INFO)  # its messages are for the user; those of libraries are for their developers
    try:
        with logging_redirect_tqdm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        package.setLevel(before)
        root.removeHandler(handler)
