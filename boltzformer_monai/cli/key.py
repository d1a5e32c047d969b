"""``boltzformer key``: a new API key for the label server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    from boltzformer_monai.label.api_keys import ROLES

    parser = commands.add_parser(
        "key",
        help="make an API key for serve",
        description="Make a key for boltzformer serve --keys FILE. It is printed once; the file holds its hash.",
        epilog="To revoke a key, remove its line from the file; a running server notices.",
    )
    parser.add_argument("name", metavar="NAME", help="whose key it is; shown in the logs")
    parser.add_argument(
        "--file", type=Path, required=True, metavar="FILE", help="file of keys, made if it is not there"
    )
    parser.add_argument(
        "--role", choices=ROLES, default="annotator",
        help="user: segment and read; annotator, reviewer: save labels and score, too; admin: everything (annotator)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Add the key and print it.

    Raises:
        BoltzFormerError: the name is taken or not valid, or the file cannot be written.
    """
    from boltzformer_monai.label.api_keys import add_key

    print(add_key(arguments.file, arguments.name, arguments.role))
    return 0
