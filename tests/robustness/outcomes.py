"""What becomes of each of many files, read one after the other in a process of its own that must not die or hang.

Run as ``python -m tests.robustness.outcomes LIST OUT``: ``LIST`` has a path a line (a folder stands for the files in
it), ``OUT`` gets a JSON line for each as soon as it is known.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

SECONDS_PER_FILE = 20.0
_REPOSITORY = Path(__file__).resolve().parents[2]


def read_all(paths: list[Path], work: Path, *, timeout: float) -> list[dict[str, Any]]:
    """Return one outcome for each path; fail if the reading process dies or takes too long over one file."""
    listing, out = work / "paths.txt", work / "outcomes.jsonl"
    listing.write_text("\n".join(map(str, paths)))
    command = [sys.executable, "-m", "tests.robustness.outcomes", str(listing), str(out)]
    done = subprocess.run(command, cwd=_REPOSITORY, timeout=timeout, capture_output=True, text=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    where = paths[len(rows)] if len(rows) < len(paths) else "the end"
    assert done.returncode == 0, f"the reader died or hung at {where}: {done.stderr[-2000:]}"
    assert len(rows) == len(paths)
    return rows


def outcome(path: Path) -> dict[str, Any]:
    """Read one scan and return what became of it: "read", "refused", or "crashed" for any other exception."""
    from boltzformer_monai.errors import BoltzFormerError
    from boltzformer_monai.io import read_volume

    try:
        volume = read_volume(path)
    except BoltzFormerError as error:
        return {"outcome": "refused", "reason": error.reason, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - to be reported as what must not be
        return {"outcome": "crashed", "reason": type(error).__name__, "message": str(error)}
    finite = bool((abs(volume.array) < float("inf")).all())
    return {
        "outcome": "read",
        "reason": "",
        "message": "",
        "shape": list(volume.shape),
        "affine": volume.affine.tolist(),
        "modality": volume.modality,
        "finite": finite and str(volume.array.dtype) == "float32",
    }


def main(listing: str, out: str) -> None:
    """Write the outcome of each listed path; the process ends itself with a traceback where one takes too long."""
    warnings.simplefilter("ignore")
    with open(out, "w", encoding="utf-8") as file:
        for line in Path(listing).read_text().splitlines():
            faulthandler.dump_traceback_later(SECONDS_PER_FILE, exit=True)
            row = outcome(Path(line))
            faulthandler.cancel_dump_traceback_later()
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
