"""MSD hippocampus by an expert: slice the task, train a U-Net by nnU-Net's rules, score the held-out patients in 3-D.

    python benchmarks/msd_hippocampus_expert.py --input Task04_Hippocampus --output runs/hippocampus \
        --json benchmarks/results/msd_hippocampus_expert.json

Slices, split by patient and evaluation are those of ``msd_hippocampus.py``, in the same ``OUTPUT/slices``. The expert
sees the original volumes and is trained for both targets at once. Run again, a stopped training goes on; times are of
the last run alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.msd_hippocampus import metric_rows, processor_minutes, slice_task, step  # noqa: E402
from benchmarks.record import report, result  # noqa: E402

STEPS = 2000


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, metavar="TASK_DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dimensions", type=int, choices=(2, 3), default=3)
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"of the schedule ({STEPS})")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the expert's settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    task, slices = arguments.input.resolve(), arguments.output.resolve() / "slices"
    output = arguments.output.resolve() / f"expert_{arguments.dimensions}d"
    slice_task(task, slices)
    common = ["--data", str(slices), "--device", "cpu", "--recipe", "msd", "--scans", str(task)]
    started, used = time.monotonic(), processor_minutes()
    settings = [part for text in arguments.set for part in ("--set", text)]
    step(
        "-m", "boltzformer_monai", "expert", "train", *common, "--output", str(output), "--seed", str(arguments.seed),
        "--dimensions", str(arguments.dimensions), "--steps", str(arguments.steps), "--resume", "auto", *settings,
    )  # fmt: skip
    trained, processor = time.monotonic(), processor_minutes() - used
    rows: list[dict[str, Any]] = []
    for name in ("model", "last"):
        folder = output / f"evaluation_{name}"
        step(
            "-m", "boltzformer_monai", "expert", "evaluate", *common, "--output", str(folder), "--split", "val",
            "--checkpoint", str(output / f"{name}.pt"), "--tolerance-mm", "1",
        )  # fmt: skip
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        found = metric_rows(metrics)
        rows.extend(found if name == "model" else [{**row, "name": f"{name}: {row['name']}"} for row in found])
    patients = {case["patient"] for case in metrics["volumes"]["cases"]}
    rows += [
        result("held_out_patients", len(patients), "patients"),
        result("steps", arguments.steps, "steps"),
        result("time_training", (trained - started) / 60, "min"),
        result("processor_time_training", processor, "core min"),
        result("time_evaluation", (time.monotonic() - trained) / 60, "min"),
    ]
    plan = json.loads((output / "plan.json").read_text(encoding="utf-8"))
    report(rows, arguments.json, settings={"seed": arguments.seed, "settings": arguments.set, "plan": plan})
    return 0


if __name__ == "__main__":
    sys.exit(main())
