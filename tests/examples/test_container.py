"""``packaging/boltzformer.def``: what it copies is there, and what it installs and runs exists."""

from __future__ import annotations

import re
from pathlib import Path

from boltzformer_monai.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]


def _sections() -> tuple[list[str], dict[str, list[str]]]:
    """Header lines, and the lines of each section, without comments."""
    lines = (ROOT / "packaging" / "boltzformer.def").read_text(encoding="utf-8").splitlines()
    header: list[str] = []
    sections: dict[str, list[str]] = {}
    into = header
    for line in (line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")):
        if line.startswith("%"):
            into = sections[line[1:]] = []
        else:
            into.append(line)
    return header, sections


def test_its_sections_are_apptainer_s() -> None:
    header, sections = _sections()
    assert [line.partition(":")[0] for line in header] == ["Bootstrap", "From"]
    assert set(sections) == {"arguments", "files", "post", "environment", "runscript", "test"}
    arguments = dict(line.split("=", 1) for line in sections["arguments"])
    used = set(re.findall(r"{{ (\w+) }}", "\n".join(sections["post"])))
    assert used == set(arguments)


def test_what_it_copies_is_there_and_enough_for_a_wheel() -> None:
    _, sections = _sections()
    copied = {line.split()[0]: line.split()[1] for line in sections["files"]}
    assert all((ROOT / source).exists() and target == f"/opt/boltzformer/{source}" for source, target in copied.items())
    needed = {"boltzformer_monai", "bundles", "viewer", "pyproject.toml", "setup.py", "README.md"}
    assert needed <= set(copied)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (extras,) = re.findall(r"/opt/boltzformer\[([\w,]+)\]", "\n".join(sections["post"]))
    assert all(f"\n{extra} = [" in project for extra in extras.split(","))


def test_its_commands_exist() -> None:
    _, sections = _sections()
    commands = [line.split()[1] for line in sections["test"] if line.startswith("boltzformer ")]
    (known,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert commands
    assert set(commands) <= set(known or ())
