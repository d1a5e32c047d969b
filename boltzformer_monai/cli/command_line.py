"""What the command lines of this folder share: mistakes are one line, Ctrl-C is not a mistake, warnings are seen."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from tqdm.contrib.logging import logging_redirect_tqdm

from boltzformer_monai.errors import BoltzFormerError, ConfigError, why

__all__ = ["CommandParser", "run_command", "warnings_shown"]


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are :class:`~boltzformer_monai.errors.ConfigError`."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def run_command(command: Callable[[], int], *, kept: Callable[[], str] = lambda: "nothing was lost") -> int:
    """Run a command and return its exit code: 2 for an error that the user can mend, 130 for Ctrl-C.

    Args:
        command: does the work and returns the exit code of success.
        kept: says after Ctrl-C what was done so far.
    """
    try:
        with warnings_shown():
            return command()
    except BoltzFormerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise  # nothing that a user can find
        print(f"error: {error.filename}: {why(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {kept()}", file=sys.stderr)
        return 130


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show warnings of the library as lines on stderr, above the progress bar."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with logging_redirect_tqdm():
            yield
    finally:
        root.removeHandler(handler)
