"""Peak memory of converting, importing and loading weights, as a multiple of the weights.

    python benchmarks/weights_memory.py biomedparse_v2.ckpt --json benchmarks/results/weights_memory.json

Each step runs in a process of its own. ``peak`` is all that the process ever held (VmHWM), ``above_libraries`` the same
less what it held when the libraries were imported. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.models.convert import convert  # noqa: E402
from boltzformer_monai.models.folder import load_model  # noqa: E402
from boltzformer_monai.networks.published import import_weights  # noqa: E402

STEPS = ("convert", "import", "load")


def peak_bytes() -> int:
    """The most that this process ever held in memory, pages of mapped files included."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def run_step(step: str, file: Path, model: Path) -> dict[str, int]:
    """Do one step in the process that is measured."""
    before = peak_bytes()
    if step == "convert":
        convert(file, model)
    elif step == "import":
        import_weights(file).network()
    else:
        load_model(model)
    return {"libraries": before, "peak": peak_bytes()}


def measure(file: Path, model: Path, *, steps: Sequence[str] = STEPS) -> dict[str, dict[str, int]]:
    """Step → bytes; ``model`` is the folder that the conversion writes and the last step loads."""
    found = {}
    for step in steps:
        command = [sys.executable, __file__, str(file), "--model", str(model), "--step", step]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[step] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="published weights of a whole network")
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="the model folder to write; by default a temporary one"
    )
    parser.add_argument("--step", choices=STEPS, help="do one step and print its bytes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.step is not None:
        print(json.dumps(run_step(arguments.step, arguments.file, arguments.model)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.file.resolve().parent) as folder:
        model = arguments.model or Path(folder) / "model"
        found = measure(arguments.file, model)
        weights = 4 * json.loads((model / "config.json").read_text(encoding="utf-8"))["parameters"]
    rows = [result("weights", weights / 1e9, "GB"), result("file", arguments.file.stat().st_size / 1e9, "GB")]
    for step, of_step in found.items():
        rows.append(result(f"{step}_peak", of_step["peak"] / weights, "weights"))
        above = of_step["peak"] - of_step["libraries"]
        rows.append(result(f"{step}_above_libraries", above / weights, "weights"))
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
