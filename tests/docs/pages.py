"""Pages of the documentation and their code blocks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is the content of ("" for none), and its text."""

    language: str
    title: str
    text: str


def pages() -> list[Path]:
    """All Markdown pages that users read."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(*found) for found in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(text: str) -> list[str]:
    """Commands of a shell block with their comments; lines that end in a backslash are joined with the next."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [each.strip() for line in lines for each in line.split(" && ") if each.strip()]


def words(command: str) -> list[str]:
    """Its words without the comment, which begins a word (``loss#alpha=0.3`` has none)."""
    return shlex.split(re.sub(r"\s#.*$", "", command))
