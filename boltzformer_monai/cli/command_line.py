"""Parser, messages on standard error and exit codes of all commands."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from boltzformer_monai.errors import ConfigError, user_line

__all__ = [
    "INTERRUPTED", "IN_DOUBT", "USER_ERROR", "CommandParser", "add_plugin", "real_number", "run_command", "run_parsed",
    "whole_number",
]  # fmt: skip

USER_ERROR = 2
IN_DOUBT = 4
"""Exit code for success with a caveat that puts a result in doubt."""
INTERRUPTED = 130


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises :class:`~boltzformer_monai.errors.ConfigError` instead of printing its usage.

    Its defaults contain ``run(options) -> exit code`` and optionally ``kept``, the state after Ctrl-C, for the message.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Add ``--plugin``, for :func:`~boltzformer_monai.registry.use_plugins`."""
    parser.add_argument(
        "--plugin", dest="plugins", action="append", default=[], metavar="MODULE",
        help="module or .py file with custom decoders, backbones, … (docs/how-to/extending.md); may be repeated",
    )  # fmt: skip


def whole_number(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Return an argparse type: an integer from ``least`` to ``most``."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            limit = f"at least {least}" if value < least else f"at most {most}"
            raise argparse.ArgumentTypeError(f"must be {limit}, not {value}")
        return value

    number.__name__ = "whole number"
    return number


def real_number(least: float, most: float) -> Callable[[str], float]:
    """Return an argparse type: a number from ``least`` to ``most``."""

    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:g} to {most:g}, not {value:g}")
        return value

    number.__name__ = "number"
    return number


def run_command(parser: CommandParser, argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run the command; return its exit code.

    User errors print one line on standard error and return 2; Ctrl-C returns 130. Other exceptions are bugs and keep
    their traceback.
    """
    return run_parsed(lambda: parser.parse_args(argv))


def run_parsed(parse: Callable[[], argparse.Namespace]) -> int:
    """As :func:`run_command`, with options from elsewhere: another process that parsed the command line."""
    kept = ""
    with _messages():
        try:
            options = parse()
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
    """Write the package's messages and all warnings to standard error, above progress bars."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root, package = logging.getLogger(), logging.getLogger("boltzformer_monai")
    before = package.level
    root.addHandler(handler)
    package.setLevel(logging.INFO)  # messages of libraries are not for users
    try:
        with logging_redirect_tqdm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        package.setLevel(before)
        root.removeHandler(handler)
