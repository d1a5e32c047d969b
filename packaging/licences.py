"""Checks the licences in a bill of materials against packaging/licences.toml.

    python packaging/licences.py SBOM.json [package-lock.json …]

Reads CycloneDX JSON as `make sbom` writes it, and npm's lock files. Prints each licence with what is under it. What is
neither allowed nor reviewed is an error that names it, and so is what states no licence: exit code 1. Runs in the
environment of the release's tools (`make licences`).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from license_expression import ExpressionError, get_spdx_licensing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIST = Path(__file__).with_suffix(".toml")
_SPDX = get_spdx_licensing()
_LONGEST_NAME = 80  # a longer text is a licence, not its name


@dataclass(frozen=True)
class Package:
    """A distribution and what it says of its licence: SPDX expressions, classifiers, names."""

    name: str
    version: str
    stated: tuple[str, ...]


@dataclass(frozen=True)
class Accepted:
    """The content of `licences.toml`."""

    allowed: frozenset[str]
    names: Mapping[str, str]
    reviewed: Mapping[str, str]

    @classmethod
    def read(cls, path: Path = LIST) -> Accepted:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        names = {_plain(name): identifier for name, identifier in content["names"].items()}
        return cls(frozenset(content["allowed"]), names, content["reviewed"])

    def allows(self, stated: str) -> bool:
        """Whether an expression or name holds only licences that are allowed; of `A OR B` one suffices."""
        try:
            parsed = _SPDX.parse(self.names.get(_plain(stated), stated), validate=True)
        except ExpressionError:
            return False
        return parsed is not None and self._holds(parsed)

    def _holds(self, part: Any) -> bool:
        if isinstance(part, _SPDX.OR):
            return any(self._holds(argument) for argument in part.args)
        if isinstance(part, _SPDX.AND):
            return all(self._holds(argument) for argument in part.args)
        return str(part) in self.allowed

    def fault(self, package: Package) -> str | None:
        """Why a package is not accepted, or nothing."""
        if any(fnmatch.fnmatchcase(package.name.lower(), pattern) for pattern in self.reviewed):
            return None
        if not package.stated:
            return "states no licence"
        refused = [stated for stated in package.stated if not self.allows(stated)]
        return f"is under {', '.join(refused)}, not among the allowed" if refused else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read_packages(path: Path) -> list[Package]:
    """The packages of a CycloneDX file or of npm's lock file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("bomFormat") == "CycloneDX":
        return [
            Package(part["name"], part["version"], tuple(dict.fromkeys(_stated(part))))
            for part in content.get("components", ())
        ]
    if "lockfileVersion" in content:
        return [
            Package(place.rpartition("node_modules/")[2], part["version"], tuple(filter(None, [part.get("license")])))
            for place, part in content["packages"].items()
            if place and not part.get("optional")
        ]
    raise ValueError(f"{path}: neither CycloneDX nor a lock file of npm")


def _stated(component: Mapping[str, Any]) -> Iterator[str]:
    """Expressions, identifiers and names; not the texts of licences, nor names of the files that hold them."""
    for choice in component.get("licenses", ()):
        if "expression" in choice:
            yield choice["expression"]
            continue
        licence = choice["license"]
        name = licence.get("id") or licence["name"]
        if name.startswith("declared license file"):
            continue
        if name.startswith("declared license of"):  # the metadata's field License, whose content is the text
            name = " ".join(licence.get("text", {}).get("content", "").split())
            if not name or len(name) > _LONGEST_NAME or name in ("UNKNOWN", "LICENSE"):
                continue
        yield name


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the licences in a bill of materials.")
    parser.add_argument("files", nargs="+", type=Path, help="CycloneDX JSON, or npm's lock file")
    arguments = parser.parse_args()
    accepted = Accepted.read()
    try:
        listed = {path: read_packages(path) for path in arguments.files}
        if empty := [str(path) for path, found in listed.items() if not found]:
            raise ValueError(f"{', '.join(empty)}: lists no package, so nothing was checked")
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    packages = [package for found in listed.values() for package in found]
    under = defaultdict(list)
    for package in packages:
        under["; ".join(package.stated) or "none stated"].append(package.name)
    for licence, names in sorted(under.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        sys.stdout.write(f"{licence}: {', '.join(sorted(names))}\n")
    faults = [(package, fault) for package in packages if (fault := accepted.fault(package))]
    for package, fault in faults:
        sys.stderr.write(f"error: {package.name} {package.version} {fault}; see packaging/licences.toml\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
