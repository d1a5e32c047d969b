"""MSD hippocampus: slice the task, train with a split by patient, evaluate the held-out patients in 3-D.

    python benchmarks/msd_hippocampus.py --input Task04_Hippocampus --output runs/hippocampus \
        --json benchmarks/results/msd_hippocampus.json

The held-out patients are the validation split, one in five: no weight is fitted on them, but the checkpoint with the
best loss on them is the one that is evaluated, as in the paper's protocol.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402

BUNDLE = ROOT / "bundles" / "boltzformer"
# What differs from the preset's defaults: small slices, two targets that nearly always occur together.
TRAINING = {
    "preset": "tiny",
    "image_size": "128",
    "batch_size": "16",
    "prompts_per_image": "2",
    "epochs": "14",
    "val_interval": "2",
    "settings_overrides": "{'balance': 0.0, 'empty_weight': 0.5, 'negatives': None, 'target_weights': {}}",
}


def step(*command: str) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


def bundle(name: str, run_id: str, **overrides: str) -> None:
    flags = [part for key, value in overrides.items() for part in (f"--{key}", value)]
    config = str(BUNDLE / "configs" / f"{name}.json")
    step("-m", "monai.bundle", "run", run_id, "--config_file", config, "--bundle_root", str(BUNDLE), *flags)


def volume_rows(volumes: dict[str, Any]) -> list[dict[str, object]]:
    """Means over cases with the bounds of their confidence interval (patients resampled)."""
    rows: list[dict[str, object]] = []
    for name, unit in (("dice", "Dice"), ("surface_dice", "share"), ("hausdorff95_mm", "mm")):
        found = volumes["overall"][name]
        rows.extend(result(f"volumes {name} {key}", found[key], unit) for key in ("mean", "low", "high"))
    for name in ("lesion_detection_rate", "false_positive_rate"):
        rows.append(result(f"volumes {name}", volumes["overall"][name]["mean"], "share"))
    rows.append(result("volumes surface tolerance", volumes["tolerance_mm"], "mm"))
    rule = volumes["presence"] or {"high": None, "low": None}
    rows.extend(result(f"presence {name}", rule[name], "probability") for name in ("high", "low"))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, metavar="TASK_DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=int(TRAINING["epochs"]))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    task, output = arguments.input.resolve(), arguments.output.resolve()
    started = time.monotonic()
    slices = output / "slices"
    step(
        "preprocessing/slice_volumes.py", "--recipe", "msd", "--input", str(task), "--output", str(slices),
        "--val-fraction", "0.2",
    )  # fmt: skip
    sliced = time.monotonic()
    overrides = {**TRAINING, "epochs": str(arguments.epochs)}
    bundle("train", "training", dataset_dir=str(slices), output_dir=str(output), **overrides)
    trained = time.monotonic()
    bundle(
        "evaluate", "evaluating", dataset_dir=str(slices), output_dir=str(output), checkpoint=str(output / "model.pt"),
        split="val", tolerance_mm="1.0",
    )  # fmt: skip
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    history = json.loads((output / "history.json").read_text(encoding="utf-8"))
    patients = len({case["volume"] for case in metrics["volumes"]["cases"]})
    rows = [
        result("mean_dice_3d", metrics["volumes"]["overall"]["dice"]["mean"], "Dice"),
        *(
            result(f"dice_3d {name}", of["dice"]["mean"], "Dice")
            for name, of in metrics["volumes"]["by_target"].items()
        ),
        *volume_rows(metrics["volumes"]),
        result("mean_dice_2d", metrics["slices"]["overall"]["dice"]["mean"], "Dice"),
        result("held_out_patients", patients, "patients"),
        result("epochs", len(history), "epochs"),
        result("time_slicing", (sliced - started) / 60, "min"),
        result("time_training", (trained - sliced) / 60, "min"),
        result("time_total", (time.monotonic() - started) / 60, "min"),
    ]
    report(rows, arguments.json, settings=overrides)
    return 0


if __name__ == "__main__":
    sys.exit(main())
