"""Copies the viewer library of the page, with its licences, from the npm registry into the package.

    python viewer/vendor.py                what `make page` and the build of a wheel call
    python viewer/vendor.py --if-possible  where it cannot be had, say so and go on

Needs npm, and only the standard library of Python. Does nothing where the pinned version is there already.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENDOR = HERE.parent / "boltzformer_monai" / "label" / "page" / "vendor"
_PINNED = ("package.json", "package-lock.json", ".npmrc")
_LIBRARY = "@niivue/niivue"
_BUNDLE = "dist/index.js"  # one ES module, everything that it needs inside
_TIMEOUT_S = 300


class VendorError(Exception):
    """The library cannot be had; one line says why and what to do."""


def vendor(target: Path = VENDOR) -> bool:
    """Bring `target` (`niivue.js`, `LICENSES.txt`, `version.txt`) up to the pinned version.

    Returns:
        Whether anything had to be done.

    Raises:
        VendorError: npm is missing or fails, or the folder cannot be written.
    """
    pin = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()
    version = target / "version.txt"  # written last: where it is right, the rest is there
    if version.is_file() and version.read_text(encoding="utf-8").split() == [_LIBRARY, pin]:
        return False
    npm = shutil.which("npm")
    if npm is None:
        msg = "the page's viewer needs npm, which is missing; install it (Debian: apt install npm) and run `make page`"
        raise VendorError(msg)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in _PINNED:
            shutil.copyfile(HERE / name, folder / name)
        _npm_ci(npm, folder)
        modules = folder / "node_modules"
        try:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            (target / "niivue.js").write_text(_bundle(modules), encoding="utf-8")
            (target / "LICENSES.txt").write_text(_licences(modules), encoding="utf-8")
            version.write_text(f"{_LIBRARY} {pin}\n", encoding="utf-8")
        except OSError as error:
            msg = f"cannot write the page's viewer into {target}: {error.strerror}; make the folder writable"
            raise VendorError(msg) from error
    return True


def _npm_ci(npm: str, folder: Path) -> None:
    """Install exactly what the lock file names; npm compares every package with its hash."""
    command = [npm, "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("npm error")] or ["npm error unknown"]
        reason = lines[min(1, len(lines) - 1)].removeprefix("npm error").strip()
        msg = f"npm cannot fetch the page's viewer ({reason}); check the network and run `make page` again"
        raise VendorError(msg) from error
    except subprocess.TimeoutExpired as error:
        msg = f"npm did not fetch the page's viewer in {_TIMEOUT_S} s; check the network and run `make page` again"
        raise VendorError(msg) from error


def _bundle(modules: Path) -> str:
    """The library without the reference to its source map, which is not shipped."""
    text = (modules / _LIBRARY / _BUNDLE).read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("//# sourceMappingURL=")) + "\n"


def _licences(modules: Path) -> str:
    """The licences of the library, which its package lacks, of the font inside it, and of all that is bundled."""
    parts = [
        f"{_LIBRARY}\n\n" + (HERE / "LICENSE-niivue.txt").read_text(encoding="utf-8"),
        "Roboto (the letters in the picture)\n\nCopyright Google Inc., Apache License, Version 2.0\n",
    ]
    for path in sorted(modules.rglob("*")):
        if path.stem.lower() == "license" and path.is_file():
            name = path.parent.relative_to(modules).as_posix()
            parts.append(f"{name}\n\n" + path.read_text(encoding="utf-8"))
    return f"\n{'-' * 80}\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Copy the viewer library of the page into the package.")
    parser.add_argument("--if-possible", action="store_true", help="where it cannot be had, say so and go on")
    arguments = parser.parse_args()
    try:
        done = vendor()
    except VendorError as error:
        sys.stderr.write(f"{'warning' if arguments.if_possible else 'error'}: {error}\n")
        return 0 if arguments.if_possible else 2
    sys.stdout.write("the page's viewer was fetched\n" if done else "the page's viewer is up to date\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
