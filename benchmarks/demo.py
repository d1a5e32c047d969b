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
    slices, minutes = metrics["slices"], metrics["minutes"]
    overall = slices["overall"]
    rows = [
        result("mean_dice", overall["dice"]["mean"], "Dice"),
        *(result(f"dice {name}", of["dice"]["mean"], "Dice") for name, of in slices["by_target"].items()),
        result("mean_dice_3d", metrics["volumes"]["overall"]["dice"]["mean"], "Dice"),
        result("dice below 1 % of the slice", slices["strata"]["below_1_percent"]["dice"]["mean"], "Dice"),
        result("targets missed", overall["missed"]["mean"], "share"),
        result("false-positive rate", overall["false_positive_rate"]["mean"], "share"),
        result("time_training", minutes["training"], "min"),
        result("time_total", minutes["total"], "min"),
    ]
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
