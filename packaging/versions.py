"""Checks that pyproject.toml, CHANGELOG.md and CITATION.cff speak of the same version.

    python packaging/versions.py [TAG]

With a TAG (v1.2.3) it must be that version's, and the changelog must date it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_ENTRY = re.compile(r"^## \[([^\]]+)\] – (\d{4}-\d\d-\d\d|unreleased)$", re.MULTILINE)


def _found(name: str, pattern: str, root: Path) -> str:
    match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise ValueError(f"{name}: no line like {pattern}")
    return match[1]


def fault(tag: str | None = None, root: Path = ROOT) -> str | None:
    """What does not agree, in one line, or nothing."""
    version = _found("pyproject.toml", r'^version = "([^"]+)"$', root)
    cited = _found("CITATION.cff", r"^version: (\S+)$", root)
    entry = _ENTRY.search((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if entry is None:
        return "CHANGELOG.md: no entry like `## [1.2.3] – 2030-01-31`"
    if len({version, cited, entry[1]}) > 1:
        return f"pyproject.toml says {version}, CITATION.cff {cited}, CHANGELOG.md {entry[1]}; make them one"
    if tag is None:
        return None
    if tag != f"v{version}":
        return f"the tag {tag} is not v{version}, which pyproject.toml says"
    if entry[2] == "unreleased":
        return f"CHANGELOG.md calls {version} unreleased; give its date"
    released = _found("CITATION.cff", r"^date-released: (\S+)$", root)
    return None if released == entry[2] else f"CITATION.cff dates {version} {released}, CHANGELOG.md {entry[2]}"


def main() -> int:
    try:
        said = fault(*sys.argv[1:2])
    except (OSError, ValueError) as error:
        said = str(error)
    if said:
        sys.stderr.write(f"error: {said}\n")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
