"""What the commands share: exit codes, messages, a fast ``--help``, and the scripts that are the same commands."""

from __future__ import annotations

import argparse
import ast
import errno
import logging
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boltzformer_monai.cli import NEXT, build_parser, check, export_dataset, main, slice
from boltzformer_monai.cli.command_line import CommandParser, run_command
from boltzformer_monai.errors import DatasetError
from tests.data.slice_cases import contents
from tests.slicing.scan_files import write_image

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"slice": "slice_volumes.py", "check": "check_dataset.py", "export-dataset": "export_biomedparse.py"}
MODULES = {"slice": slice, "check": check, "export-dataset": export_dataset}
HEAVY = ("torch", "SimpleITK", "nibabel", "pydicom", "matplotlib")


def _ends_with(action: Callable[[], int], **defaults: object) -> int:
    parser = CommandParser()
    parser.set_defaults(run=lambda _: action(), **defaults)
    return run_command(parser, [])


def _raising(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


def _wrapped() -> int:
    try:
        raise DatasetError("no data set at X; make one")
    except DatasetError as error:
        raise RuntimeError("failed to evaluate") from error


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (_raising(DatasetError("no data set at X; make one")), "error: no data set at X; make one\n"),
        (_wrapped, "error: no data set at X; make one\n"),
        (_raising(OSError(errno.ENOSPC, "No space left on device", "/x")), "error: /x: No space left on device\n"),
        (_raising(OSError(errno.ENOSPC, "No space left on device")), "error: No space left on device\n"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    action: Callable[[], int], line: str, capsys: pytest.CaptureFixture[str]
):
    assert _ends_with(action) == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), RuntimeError("bug"), OSError("of a library")])
def test_a_bug_keeps_its_traceback(error: Exception):
    with pytest.raises(type(error)):
        _ends_with(_raising(error))


def test_an_interrupted_command_says_what_is_kept(capsys: pytest.CaptureFixture[str]):
    assert _ends_with(_raising(KeyboardInterrupt()), kept="nothing is written") == 130
    assert _ends_with(_raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted: nothing is written\ninterrupted\n"


def test_messages_are_lines_and_those_of_libraries_are_not_shown(capsys: pytest.CaptureFixture[str]):
    def action() -> int:
        log = logging.getLogger("boltzformer_monai.io")
        log.info("read")
        log.warning("odd")
        logging.getLogger("library").info("detail")
        warnings.warn("deprecated", stacklevel=1)
        return 3

    handlers = list(logging.getLogger().handlers)
    assert _ends_with(action) == 3
    assert capsys.readouterr().err == "read\nwarning: odd\n"
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize("command", SCRIPTS)
def test_the_script_takes_the_options_of_the_command(command: str):
    script = subprocess.run(
        [sys.executable, str(ROOT / "preprocessing" / SCRIPTS[command]), "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # From the description on: before it comes the name of the program.
    options = next(action for action in build_parser()._actions if action.dest == "command").choices[command]
    assert script.stdout.partition("\n\n")[2] == options.format_help().partition("\n\n")[2]


def test_slice_check_and_export_dataset_do_what_the_scripts_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image = write_image(tmp_path / "scan.nii.gz")
    seen = {}
    for name in ("command", "script"):
        run = main if name == "command" else lambda argv: MODULES[argv[0]].main(argv[1:])
        out = tmp_path / name
        assert run(["slice", "--image", str(image), "--modality", "CT", "--output", str(out / "slices")]) == 0
        assert run(["check", "--input", str(out / "slices")]) == 0
        assert run(["export-dataset", "--input", str(out / "slices"), "--output", str(out / "export")]) == 2
        assert run(["slice", "--output", str(out / "slices"), "--colour", "red"]) == 2
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith(("error: ", "warning: "))]
        seen[name] = [line.replace(str(out), "OUT") for line in (*said.out.splitlines(), *errors)]
    assert seen["command"] == seen["script"]
    assert contents(tmp_path / "command") == contents(tmp_path / "script")


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in SCRIPTS)])
def test_help_imports_no_heavy_library(arguments: list[str]):
    code = (
        "import sys\nfrom boltzformer_monai.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action


def test_every_number_on_the_command_line_has_limits():
    """``int`` and ``float`` take 2**70, infinity and what is not a number at all."""
    numbers = 0
    for action in _actions(build_parser()):
        assert action.type not in (int, float, complex), action.option_strings
        if getattr(action.type, "__name__", "").endswith("number"):
            numbers += 1
            for text in (str(2**70), str(-(2**70)), "1e400", "-inf", "nan"):
                with pytest.raises((argparse.ArgumentTypeError, ValueError)):
                    action.type(text)
    assert numbers > 20


@pytest.mark.parametrize("option", ["--every", "--neighbours", "--min-area", "--channel", "--neighbour-mm", "--seed"])
def test_a_huge_number_is_one_line(option: str, capsys: pytest.CaptureFixture[str]):
    assert main(["slice", "--output", "out", option, str(2**70)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: argument {option}: must be ")
    assert line.count("\n") == 1


def test_without_arguments_it_says_what_to_do_next(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", NEXT)
    commands = [shlex.split(line)[1:] for line in NEXT.splitlines() if line.startswith("  boltzformer ")]
    assert len(commands) >= 6
    for words in commands:
        assert build_parser().parse_args(words).command == words[0]


def test_bars_count_down_and_nothing_is_coloured():
    """A bar knows its end and is tqdm's own, which shows the time left; without colours NO_COLOR has nothing to do."""
    bars = 0
    for file in (ROOT / "boltzformer_monai").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert re.search(r"\\x1b|\\033|\\u001b|colorama|termcolor", source) is None, file
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", "")
            given = {each.arg for each in call.keywords}
            if name in ("tqdm", "ProgressBar"):
                bars += 1
                assert not given & {"bar_format", "colour"}, file
            if name == "tqdm":
                assert call.args or "total" in given or "bar.total = " in source, file
    assert bars >= 9
