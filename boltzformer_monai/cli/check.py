"""Check slice datasets before training, and measure their fingerprint.

Integrity (files, sizes, labels, splits, leakage of patients) and fingerprint (geometry, grey values, object sizes as in
Table 9 of the paper)::

    boltzformer check --input SLICES --json fingerprint.json --page fingerprint.html
    boltzformer check --input CT MR --strict

Exit code: 0 without errors, 1 with errors (with --strict also with warnings), 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from boltzformer_monai.cli.command_line import CommandParser, run_command
from boltzformer_monai.data.check.fingerprint import FORMAT, Checked, check_data_sets
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.limits import read_json
from boltzformer_monai.slicing.dataset_page import TABLE9_HEADINGS, count_line, is_page, table9_rows, write_page
from boltzformer_monai.storage import replacing, require_writable


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    _set_up(commands.add_parser("check", help="check and measure slice datasets", description=__doc__))


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a script; return the exit code."""
    return run_command(_set_up(CommandParser(description=__doc__)), argv)


def run(options: argparse.Namespace) -> int:
    """Check, write the outputs and print the findings; return 1 for unsound data."""
    _check_options(options)
    checked = _check(options.input)
    _write(checked, options)
    _print(checked)
    return 1 if checked.count("error") or (options.strict and checked.count("warning")) else 0


def _set_up(parser: CommandParser) -> CommandParser:
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, metavar="DIR", help="slice datasets, checked together")
    add("--json", type=Path, metavar="FILE", help="write the fingerprint with all findings")
    add("--page", type=Path, metavar="FILE", help="write the same as an HTML page")
    add("--strict", action="store_true", help="warnings count as errors")
    parser.set_defaults(run=run, kept="nothing is written")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    for option, path in (("--json", options.json), ("--page", options.page)):
        if path is not None:  # before the slices are read
            _check_target(option, path, options.input)
    if options.json is not None and options.page is not None and options.json.resolve() == options.page.resolve():
        raise ConfigError("--json and --page name the same file; give them different ones")


def _check_target(option: str, path: Path, roots: Sequence[Path]) -> None:
    """Refuse to overwrite anything but an older output of this command, or to write into a dataset.

    Raises:
        ConfigError: the reason.
        StorageError: its folder cannot be written.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file for {option}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder for {option}; make it first")
    if any(path.resolve().is_relative_to(root.resolve()) for root in roots):
        raise ConfigError(f"{path}: lies in a checked dataset; choose another place for {option}")
    if os.path.lexists(path) and not (_is_fingerprint(path) if option == "--json" else is_page(path)):
        raise ConfigError(f"{path}: exists and was not made by {option} of this command; remove it or name another")
    require_writable(path.parent)


def _is_fingerprint(path: Path) -> bool:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _check(roots: Sequence[Path]) -> Checked:
    with tqdm(desc="checking", unit="slice", dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return check_data_sets(roots, progress=show)


def _write(checked: Checked, options: argparse.Namespace) -> None:
    if options.json is not None:
        text = json.dumps(checked.content, indent=1, ensure_ascii=False, allow_nan=False)
        with replacing(options.json) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if options.page is not None:
        write_page(checked, options.page)


def _print(checked: Checked) -> None:
    for finding in checked.findings:
        print(finding.line)
    rows = [TABLE9_HEADINGS, *table9_rows(checked.content)]
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [text.ljust(width) if at < 3 else text.rjust(width) for at, (text, width) in
                     enumerate(zip(row, widths, strict=True))]  # fmt: skip
            print("  ".join(cells))
    print(count_line(checked))
