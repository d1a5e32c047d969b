"""Commands in the documentation are ones that the command line takes; Python in it compiles and imports what exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from boltzformer_monai.cli import build_parser
from boltzformer_monai.errors import ConfigError
from tests.docs.pages import DOCS, ROOT, blocks, commands, pages, words

_FILE = re.compile(
    r"(?<![\w/.])((?:boltzformer_monai|tests|benchmarks|packaging|studies|examples|preprocessing|docs/tools|viewer)/[\w./*-]*\w)"
)
_PLACEHOLDER = re.compile(r"…|\$\{?\w+[^ ]*|^[A-Z]$")


def documented_commands() -> list[tuple[Path, str]]:
    found = [
        (page, line)
        for page in pages()
        for block in blocks(page)
        if block.language in ("", "bash", "sh")
        for line in commands(block.text)
        if line.startswith("boltzformer ") and "${" not in line
    ]
    assert len(found) > 80
    return found


def test_every_command_is_one_that_the_parser_takes() -> None:
    parser, wrong = build_parser(), []
    for page, line in documented_commands():
        given = [_PLACEHOLDER.sub("1", word) for word in words(line)[1:] if word != "…"]
        try:
            parser.parse_args(given)
        except ConfigError as error:
            if "required" not in str(error):  # a fragment that shows an option
                wrong.append(f"{page.relative_to(ROOT)}: {line}: {error}")
        except SystemExit:  # --help and --version
            continue
    assert wrong == []


@pytest.mark.parametrize("page", [page for page in pages() if any(b.language == "python" for b in blocks(page))],
                         ids=lambda page: page.stem)  # fmt: skip
def test_python_imports_what_exists(page: Path) -> None:
    for block in blocks(page):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boltzformer_monai"):
                module = importlib.import_module(node.module or "")
                assert [each.name for each in node.names if not hasattr(module, each.name)] == [], node.module


def test_files_of_the_repository_that_pages_name_are_there() -> None:
    named = {
        (page.name, found)
        for page in [*pages(), ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
        for found in _FILE.findall(page.read_text(encoding="utf-8"))
    }
    assert len(named) > 60
    assert [pair for pair in sorted(named) if not list(ROOT.glob(pair[1]))] == []


def test_no_page_is_left_out_of_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    written = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert {page for page in written if page not in text} == set()
