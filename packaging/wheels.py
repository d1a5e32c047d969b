"""A folder of wheels that installs without a network: this package, and what uv.lock says that it needs.

    python packaging/wheels.py FOLDER --extra label               on a machine with a network, uv and npm
    python -m venv VENV                                           on one without, with the same Python and system
    VENV/bin/pip install --no-index --find-links FOLDER --require-hashes -r FOLDER/requirements.txt

What is fetched is compared with the hashes of uv.lock, and what is installed with those of requirements.txt, which is
written last. Dependencies that exist as source only are built here, with whatever they need for that.
`--torch cpu` takes PyTorch of the locked version from its own index, without CUDA; uv.lock has no hashes of these.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_TORCH = ("torch", "torchvision")
_CUDA = re.compile(r"(nvidia|cuda)-.*|triton")


def make_wheels(folder: Path, extras: Iterable[str] = (), *, cpu: bool = False) -> None:
    """Fill `folder`.

    Args:
        folder: empty, or made.
        extras: of pyproject.toml.
        cpu: PyTorch without CUDA.

    Raises:
        subprocess.CalledProcessError: uv or pip failed, and have said why.
    """
    extras = list(extras)
    folder.mkdir(parents=True, exist_ok=True)
    locked = _export(extras, hashes=True)
    if cpu:
        names = {match[1] for match in re.finditer(r"^([\w.-]+)==", locked, re.MULTILINE)}
        left_out = [name for name in names if name in _TORCH or _CUDA.fullmatch(name)]
        locked = _export(extras, hashes=True, without=left_out)
    _fetch(locked, folder, "--require-hashes")
    if cpu:
        lines = _export(extras, hashes=False).splitlines()
        torch = "\n".join(line for line in lines if line.partition("==")[0] in _TORCH)
        _fetch(torch, folder, "--index-url", CPU_INDEX)
    page = {"BOLTZFORMER_REQUIRE_PAGE": "1"} if "label" in extras else {}
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, env={**os.environ, **page})
    (folder / ".gitignore").unlink(missing_ok=True)  # of uv
    (folder / "requirements.txt").write_text(pinned(folder), encoding="utf-8")


def pinned(folder: Path) -> str:
    """Requirements of exactly the wheels in a folder, with their hashes."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        with wheel.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{digest.hexdigest()}\n")
    return "".join(lines)


def _export(extras: Iterable[str], *, hashes: bool, without: Iterable[str] = ()) -> str:
    """The lock as requirements."""
    command = [sys.executable, "-m", "uv", "export", "--quiet", "--frozen", "--no-emit-project", "--no-annotate"]
    command += [word for extra in extras for word in ("--extra", extra)]
    command += [word for name in without for word in ("--no-emit-package", name)]
    command += [] if hashes else ["--no-hashes"]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


def _fetch(requirements: str, folder: Path, *options: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "requirements.txt")
        file.write_text(requirements, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), *options]
        subprocess.run([*command, "--requirement", str(file)], check=True, env={**os.environ, "SAM2_BUILD_CUDA": "0"})


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a folder of wheels that installs without a network.")
    parser.add_argument("folder", type=Path, help="empty, or made")
    parser.add_argument("--extra", action="append", default=[], help="train, label, …; may be given repeatedly")
    parser.add_argument(
        "--torch", choices=("cpu", "cuda"), default="cuda", help="PyTorch with CUDA (default), or without"
    )
    arguments = parser.parse_args()
    try:
        if arguments.folder.exists() and any(arguments.folder.iterdir()):
            parser.exit(2, f"error: {arguments.folder} is not empty; give a new folder\n")
        make_wheels(arguments.folder, arguments.extra, cpu=arguments.torch == "cpu")
    except subprocess.CalledProcessError as error:
        parser.exit(1, f"error: {' '.join(map(str, error.cmd[:4]))} … failed; see above\n")
    except OSError as error:
        parser.exit(1, f"error: {error.filename}: {error.strerror}\n")
    wheels = list(arguments.folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e9
    sys.stdout.write(f"{len(wheels)} wheels, {size:.2f} GB, in {arguments.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
