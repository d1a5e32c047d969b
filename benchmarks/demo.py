"""The demo's result on its held-out phantoms as a record, from the metrics that ``make demo`` wrote.

    make demo
    python benchmarks/demo.py --metrics runs/demo/metrics.json --json benchmarks/results/demo.json

The phantoms are easy: the numbers say that the whole pipeline works, and nothing about patients.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--metrics", type=Path, required=True, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if not arguments.metrics.is_file():
        parser.error(f"no metrics at {arguments.metrics}; run make demo first")
    metrics = json.loads(arguments.metrics.read_text(encoding="utf-8"))
    strata, minutes = metrics["strata"], metrics["minutes"]
    rows = [
        result("mean_dice", metrics["mean_dice"], "Dice"),
        *(result(f"dice {name}", value, "Dice") for name, value in metrics["dice_by_target"].items()),
        result("mean_dice_3d", metrics["mean_dice_3d"], "Dice"),
        result("dice below 1 % of the slice", strata["below_1_percent"]["mean_dice"], "Dice"),
        result("targets missed", metrics["missed_targets"]["fraction"], "share"),
        result("absent targets answered", metrics["absent_answered"], "share"),
        result("time_training", minutes["training"], "min"),
        result("time_total", minutes["total"], "min"),
    ]
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
