"""MSD hippocampus: slice the task, train a variant with a split by patient, evaluate the held-out patients in 3-D.

    python benchmarks/msd_hippocampus.py --input Task04_Hippocampus --output runs/hippocampus --variant axial \
        --json benchmarks/results/msd_hippocampus.json

``--variant NAME`` chooses what the network sees and how it is trained; all variants share the slices in ``OUTPUT`` and
the held-out patients, and each trains in ``OUTPUT/NAME``. A schedule is a number of steps, so that load does not change
a result. Without retraining, ``--evaluate-only`` scores what is there.

The held-out patients are the validation split, one in five: no weight is fitted on them, but the checkpoint with the
best loss on them is the one that is evaluated, as in the paper's protocol. Intervals resample patients. Besides each
target by itself ("dice_3d"), the label map that ``boltzformer segment`` writes is scored, in which a voxel has one
target at most ("label map"), and both targets joined into one ("label map joined"): what the border between them costs.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.data.planes import PLANE_AXES  # noqa: E402
from boltzformer_monai.data.slices.reader import SliceReader, SliceRow  # noqa: E402
from boltzformer_monai.engines import training_items  # noqa: E402
from boltzformer_monai.evaluation.bootstrap import Bootstrap, Observation  # noqa: E402
from boltzformer_monai.evaluation.mask_pair import dice  # noqa: E402
from boltzformer_monai.inferers.run_settings import RunSettings  # noqa: E402
from boltzformer_monai.inferers.segmenter import VolumeSegmenter  # noqa: E402
from boltzformer_monai.io.label_map import reorient_label  # noqa: E402
from boltzformer_monai.io.read import read_label_map, read_volume  # noqa: E402

BUNDLE = ROOT / "bundles" / "boltzformer"
BATCH, PROMPTS, VALIDATIONS = 16, 2, 7
# What differs from the preset's defaults: small slices, two targets that nearly always occur together.
SETTINGS: dict[str, Any] = {"balance": 0.0, "empty_weight": 0.5, "negatives": None, "target_weights": {}}
ALL = tuple(PLANE_AXES)


@dataclass(frozen=True)
class Variant:
    """What a training differs in.

    Attributes:
        planes: of the slices.
        network: settings of the network.
        training: settings of the training.
        loss: in the place of the paper's, which is Dice of every mask.
        steps: of the schedule, rounded to whole epochs.
        tta: poses in an additional evaluation.
    """

    planes: Sequence[str] = ("axial",)
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] | None = None
    steps: int = 4700
    tta: int = 5


CONTEXT_1 = {"neighbours": 1, "neighbour_mm": 1.0}
CONTEXT_2 = {"neighbours": 2, "neighbour_mm": 1.5}
CONTEXT_3 = {"neighbours": 3, "neighbour_mm": 1.0}
EMA = {"ema": 0.999}
# Dice of all masks of a batch together, as nnU-Net's in 2-D: a few voxels at an object's ends count for what they are.
BATCH_DICE = {
    "_target_": "monai.losses.DiceCELoss", "sigmoid": True, "squared_pred": True, "batch": True, "smooth_nr": 0.0,
    "smooth_dr": 1e-6,
}  # fmt: skip
VARIANTS: dict[str, Variant] = {
    "axial": Variant(),
    "coronal": Variant(("coronal",)),
    "sagittal": Variant(("sagittal",)),
    "axial_long": Variant(steps=10000),
    "neighbours_1": Variant(network=CONTEXT_1),
    "neighbours_2": Variant(network=CONTEXT_2),
    "neighbours_3": Variant(network=CONTEXT_3),
    "sagittal_neighbours_2": Variant(("sagittal",), CONTEXT_2),
    "ema": Variant(training=EMA),
    "neighbours_2_ema": Variant(network=CONTEXT_2, training=EMA),
    "planes": Variant(ALL),
    "planes_neighbours_1": Variant(ALL, CONTEXT_1),
    "planes_neighbours_2": Variant(ALL, CONTEXT_2),
    "planes_neighbours_3": Variant(ALL, CONTEXT_3),
    "planes_neighbours_2_ema": Variant(ALL, CONTEXT_2, EMA),
    "planes_neighbours_2_ema_batch": Variant(ALL, CONTEXT_2, EMA, BATCH_DICE),
    "planes_neighbours_2_ema_batch_strong": Variant(
        ALL, CONTEXT_2, EMA | {"augmentation": "strong"}, BATCH_DICE, steps=9400
    ),
    "planes_neighbours_2_ema_long": Variant(ALL, CONTEXT_2, EMA, steps=10000),
}


def processor_minutes() -> float:
    """Of all cores, by the commands that have ended: what a machine that is busy otherwise hardly changes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def step(*command: str) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


def bundle(name: str, run_id: str, **overrides: str) -> None:
    flags = [part for key, value in overrides.items() for part in (f"--{key}", value)]
    config = str(BUNDLE / "configs" / f"{name}.json")
    step("-m", "monai.bundle", "run", run_id, "--config_file", config, "--bundle_root", str(BUNDLE), *flags)


def slice_task(task: Path, slices: Path) -> None:
    """Along all planes; one patient in five validates."""
    step(
        "preprocessing/slice_volumes.py", "--recipe", "msd", "--input", str(task), "--output", str(slices),
        "--val-fraction", "0.2", "--plane", ",".join(ALL),
    )  # fmt: skip


def schedule(reader: SliceReader, steps: int) -> dict[str, str]:
    """Epochs of about so many steps in all, with a validation every seventh of them, and no early stopping."""
    items = training_items(reader, split="train", prompts_per_image=PROMPTS, negatives=SETTINGS["negatives"])
    epochs = max(1, round(steps / math.ceil(len(items) / BATCH)))
    interval = max(1, round(epochs / VALIDATIONS))
    return {"epochs": str(epochs), "val_interval": str(interval), "patience": str(epochs)}


def training_overrides(variant: Variant, reader: SliceReader, steps: int) -> dict[str, str]:
    return {
        "preset": "tiny",
        "image_size": "128",
        "batch_size": str(BATCH),
        "prompts_per_image": str(PROMPTS),
        **schedule(reader, steps),
        "planes": repr(list(variant.planes)),
        "network_overrides": repr(dict(variant.network)),
        "settings_overrides": repr({**SETTINGS, **variant.training}),
        **{f"loss#{name}": str(value) for name, value in (variant.loss or {}).items()},
    }


def evaluations(variant: Variant) -> dict[str, dict[str, Any]]:
    """Name of an evaluation → its settings; the first is that of the model as it is used by default."""
    chosen: dict[str, dict[str, Any]] = {"": {"planes": list(variant.planes), "tta": 1}}
    if len(variant.planes) > 1:
        chosen |= {plane: {"planes": [plane], "tta": 1} for plane in variant.planes}
    if variant.tta > 1:
        chosen[f"tta {variant.tta}"] = {"planes": list(variant.planes), "tta": variant.tta}
    return chosen


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


def metric_rows(metrics: dict[str, Any]) -> list[dict[str, object]]:
    volumes = metrics["volumes"]
    by_target = volumes["by_target"].items()
    return [
        result("mean_dice_3d", volumes["overall"]["dice"]["mean"], "Dice"),
        *(result(f"dice_3d {name}", of["dice"]["mean"], "Dice") for name, of in by_target),
        *volume_rows(volumes),
        result("mean_dice_2d", metrics["slices"]["overall"]["dice"]["mean"], "Dice"),
    ]


def label_map_rows(
    segmenter: VolumeSegmenter, task: Path, reader: SliceReader, settings: Mapping[str, Any]
) -> list[dict[str, object]]:
    """Dice of the label maps that a segmentation of the held-out scans writes, of each target and of all joined."""
    scans: dict[str, dict[str, SliceRow]] = {}
    for row in reader.select(split="val"):
        scans.setdefault(row.scan, {})[row.target] = row
    targets = sorted({target for rows in scans.values() for target in rows})
    rows = next(iter(scans.values()))
    inferer = segmenter.inferer(RunSettings(prompts=[rows[target].prompts[0] for target in targets], **settings))
    observations = []
    for scan, rows in scans.items():
        volume = read_volume(task / "imagesTr" / f"{scan}.nii.gz", modality=rows[targets[0]].modality)
        truth = reorient_label(read_label_map(task / "labelsTr" / f"{scan}.nii.gz"), volume).array
        found = inferer.label_map(volume, segmenter.network)
        pairs = {
            target: (found == value, np.isin(truth, rows[target].label_values))
            for value, target in enumerate(targets, start=1)
        }
        pairs["joined"] = (found > 0, truth > 0)
        for name, (mine, true) in pairs.items():
            score = dice(int((mine & true).sum()), int(mine.sum()), int(true.sum()))
            if score is not None:
                observations.append(Observation(rows[targets[0]].patient, score, 1.0, name))
    table: list[dict[str, object]] = []
    for name, group in (("mean", targets), ("joined", ["joined"])):
        estimate = Bootstrap().estimate([each for each in observations if each.group in group]).as_dict()
        table.extend(result(f"label map {name} {key}", estimate[key], "Dice") for key in ("mean", "low", "high"))
    return table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, metavar="TASK_DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--variant", choices=VARIANTS, default="axial")
    parser.add_argument("--steps", type=int, metavar="N", help="of the schedule (the variant's)")
    parser.add_argument("--seed", type=int, default=0, help="of the training; slices and split stay")
    parser.add_argument("--evaluate-only", action="store_true", help="score the model that is there")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    variant = VARIANTS[arguments.variant]
    task, output = arguments.input.resolve(), arguments.output.resolve() / arguments.variant
    started = time.monotonic()
    slices = arguments.output.resolve() / "slices"
    slice_task(task, slices)
    sliced, used = time.monotonic(), processor_minutes()
    reader = SliceReader(slices).along(variant.planes)
    overrides = training_overrides(variant, reader, arguments.steps or variant.steps)
    if not arguments.evaluate_only:
        paths = {"dataset_dir": str(slices), "output_dir": str(output)}
        bundle("train", "training", **paths, seed=str(arguments.seed), **overrides)
    trained, used = time.monotonic(), processor_minutes() - used
    rows: list[dict[str, Any]] = []
    checkpoint = output / "model.pt"
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint)
    for name, settings in evaluations(variant).items():
        folder = output / (name.replace(" ", "_") or "evaluation")
        bundle(
            "evaluate", "evaluating", dataset_dir=str(slices), output_dir=str(folder), checkpoint=str(checkpoint),
            split="val", tolerance_mm="1.0", planes=repr(settings["planes"]), tta=str(settings["tta"]),
        )  # fmt: skip
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        found = metric_rows(metrics) + label_map_rows(segmenter, task, reader, settings)
        rows.extend({**row, "name": f"{name}: {row['name']}" if name else row["name"]} for row in found)
        if not name:
            patients = len({case["volume"] for case in metrics["volumes"]["cases"]})
            rows.append(result("held_out_patients", patients, "patients"))
    history = json.loads((output / "history.json").read_text(encoding="utf-8"))
    items = training_items(reader, split="train", prompts_per_image=PROMPTS, negatives=SETTINGS["negatives"])
    rows += [
        result("epochs", len(history), "epochs"),
        result("steps", len(history) * math.ceil(len(items) / BATCH), "steps"),
        result("time_slicing", (sliced - started) / 60, "min"),
        result("time_training", None if arguments.evaluate_only else (trained - sliced) / 60, "min"),
        result("processor_time_training", None if arguments.evaluate_only else used, "core min"),
        result("time_total", (time.monotonic() - started) / 60, "min"),
    ]
    report(rows, arguments.json, settings={"variant": arguments.variant, "seed": arguments.seed, **overrides})
    return 0


if __name__ == "__main__":
    sys.exit(main())
